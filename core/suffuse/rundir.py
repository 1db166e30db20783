"""Run directory: where the files of a run are, and what may be written there.

``outputs/<modality>/<name>/`` holds ``config.yaml``, ``checkpoints/``, ``metrics.csv``, ``metrics.json``, ``previews/``
and ``samples/``. Nothing in it is overwritten by another run, and every file appears whole.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from suffuse.checkpoint import newest
from suffuse.cli import find_checkpoint
from suffuse.disk import named
from suffuse.errors import ConfigError
from suffuse.training.progress import is_first_rank, say

__all__ = ["locked", "next_samples", "resume_path", "run_dir", "tuned_folder", "write_text"]


def run_dir(cfg: DictConfig) -> Path:
    """Return the directory of the run that `cfg` describes, relative to the current one where it lies below it."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():  # called from Python, not from the console script
        return Path("outputs") / str(cfg.modality.name) / str(cfg.name)
    found = Path(str(HydraConfig.get().runtime.output_dir))
    with contextlib.suppress(ValueError):
        found = found.relative_to(Path.cwd())
    return found


def resume_path(cfg: Mapping[str, Any], folder: Path) -> Path | None:
    """Return what to continue from, and refuse to overwrite a run.

    Raises:
        ConfigError: When the run directory holds a run and ``ckpt`` does not say to continue it.
        CheckpointError: When it is to be continued, and none of its checkpoints can be read.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if cfg["ckpt"] is None:
        if last.exists() and is_first_rank():
            raise ConfigError(f"name={folder.name}: {folder} already holds a run; add ckpt=auto to continue it")
        return None
    if cfg["ckpt"] == "auto":
        found, damaged = newest(last.parent)
        if damaged:
            say(f"{', '.join(map(str, damaged))}: damaged; falling back to {found}")
        return found
    return find_checkpoint(str(cfg["ckpt"]))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other jobs from writing into a run directory; the system lets go of it when this process ends, however.

    Raises:
        ConfigError: When another process trains there.
    """
    if not is_first_rank() or os.name == "nt":
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            # Of the process and not of the open file, so that workers that outlive it do not hold it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            who = file.read().strip() or "another process"
            raise ConfigError(
                f"name={folder.name}: {who} is training in {folder}; wait for its end or give another name"
            ) from error
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def next_samples(out: str | None, checkpoint: Path) -> Path:
    """Return where samples go: what was asked, or the next free number in the run's ``samples/``."""
    if out is not None:
        return Path(out).expanduser()
    in_run = checkpoint.parent.name == "checkpoints"
    base = checkpoint.parents[1] / "samples" if in_run else Path("samples")
    number = 1
    while (base / f"{number:03d}").exists():
        number += 1
    return base / f"{number:03d}"


def tuned_folder(checkpoint: Path) -> Path:
    """Return where the grids that were tuned to a checkpoint are."""
    return (checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent) / "tuned"


def write_text(path: Path, text: str) -> None:
    """Write a small file on the first rank, under a temporary name first."""
    if not is_first_rank():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with named(path):
        temporary.write_text(text)
    temporary.replace(path)
