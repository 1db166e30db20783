"""Commands inside the process of a test: a new process would import torch for seconds."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Done", "as_command", "command", "status"]


class Done(NamedTuple):
    """What a command did: the status its process would have ended with, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def command(folder: Path, *words: str) -> Done:
    """Run a command line, as ``train modality=image``, in `folder` and in this process.

    What is printed by other processes or past Python is not among the result.
    """
    out, err = io.StringIO(), io.StringIO()
    with as_command(folder, *words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = status(words[0])
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def as_command(folder: Path, *words: str) -> Iterator[None]:
    """Let this process look like a command that starts in `folder`, and put back what a command leaves behind."""
    import torch
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    before, argv = Path.cwd(), sys.argv
    handlers, level = list(logging.root.handlers), logging.root.level
    os.chdir(folder)
    # The script's own path, which Lightning starts again for every further rank.
    sys.argv = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = argv
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        torch.use_deterministic_algorithms(False)


def status(name: str) -> int:
    """Call the function behind a console script; return the status its process would end with."""
    from suffuse import cli

    try:
        {"train": cli.train, "sample": cli.sample, "suffuse": cli.main}[name]()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
