"""The real commands, run as a user would run them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

BIN = Path(sys.executable).parent
TINY = [
    "modality=image", "trainer=cpu", "model.width=16", "model.blocks=1", "data.batch_size=16", "steps=6",
    "every.log=1", "every.validate=3", "every.preview=3", "every.checkpoint=2", "preview_num=4", "val_num=20",
    "num=4", "metrics=none", "sampler.steps=3",
]  # fmt: skip
"""A run of seconds that still does everything a run does."""

Command = Callable[..., subprocess.CompletedProcess[str]]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command: one thread, byte code kept, no network, no W&B account."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "WANDB_API_KEY")}
    env |= {"OMP_NUM_THREADS": "1", "NETRC": "/nonexistent", "PATH": f"{BIN}{os.pathsep}{env['PATH']}"}
    return env | more


@pytest.fixture
def tiny() -> list[str]:
    """Return the words of a tiny training run."""
    return list(TINY)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Return a function that runs a console script in `tmp_path`."""

    def run(*words: str, cwd: Path = tmp_path, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]], cwd=cwd, capture_output=True, text=True, check=False,
            timeout=timeout, env=environment(**env),
        )  # fmt: skip

    return run


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Return a function like `command` that runs the script in this process, which has torch loaded already."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.hydra_config import HydraConfig
        from suffuse import cli

        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [str(BIN / words[0]), *words[1:]])
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        handlers, level = list(logging.root.handlers), logging.root.level
        capfd.readouterr()
        status = 0
        try:
            {"train": cli.train, "sample": cli.sample, "suffuse": cli.main}[words[0]]()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            torch.use_deterministic_algorithms(False)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(list(words), status, out, err)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny finished run; treat it as read-only."""
    folder = tmp_path_factory.mktemp("trained")
    done = subprocess.run(
        [str(BIN / "train"), *TINY, "name=tiny"], cwd=folder, capture_output=True, text=True, check=False,
        timeout=300, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "train.out").write_text(done.stdout)
    (folder / "train.err").write_text(done.stderr)
    return folder / "outputs" / "image" / "tiny"


@pytest.fixture(scope="session", name="environment")
def _environment() -> Callable[..., dict[str, str]]:
    """Return the function that makes a command's environment."""
    return environment
