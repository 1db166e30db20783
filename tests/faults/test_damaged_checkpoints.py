"""A checkpoint that was cut short, wherever: the run goes on from the one before, says so, and ends the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from suffuse import checkpoint
from suffuse.errors import CheckpointError


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run, whose last checkpoint has two names."""
    folder = tmp_path / "outputs" / "image" / "tiny"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("samples"))
    checkpoint.link(folder / "checkpoints" / "step-000006.ckpt", folder / "checkpoints" / "last.ckpt")
    return folder


def cut(path: Path, tenth: int) -> None:
    """Keep so many tenths of a file, under all of its names."""
    os.truncate(path, path.stat().st_size * tenth // 10)


@pytest.mark.parametrize("tenth", range(10))
def test_the_one_before_is_found(run: Path, tenth: int) -> None:
    folder = run / "checkpoints"
    assert checkpoint.newest(folder) == (folder / "last.ckpt", [])
    cut(folder / "last.ckpt", tenth)
    found, damaged = checkpoint.newest(folder)
    assert found == folder / "step-000004.ckpt"
    assert damaged == [folder / "last.ckpt", folder / "step-000006.ckpt"]


def test_a_run_that_lost_all_says_so(run: Path) -> None:
    folder = run / "checkpoints"
    for path in folder.iterdir():
        cut(path, 5)
    with pytest.raises(CheckpointError, match="no checkpoint there can be read; remove them to start anew"):
        checkpoint.newest(folder)
    assert checkpoint.newest(run / "nowhere") == (None, [])


def test_the_run_goes_on_and_ends_the_same(run: Path, trained: Path, tiny: list[str], local) -> None:
    cut(run / "checkpoints" / "last.ckpt", 9)
    done = local("train", *tiny, "name=tiny", "ckpt=auto")
    assert done.returncode == 0, done.stderr
    assert "last.ckpt" in done.stdout and "damaged; falling back to outputs/image/tiny/checkpoints/" in done.stdout
    assert "at step 4" in done.stdout
    a, b = (torch.load(one / "checkpoints" / "last.ckpt", weights_only=True) for one in (trained, run))
    for kind in ("state_dict", "current_model_state"):
        assert a[kind].keys() == b[kind].keys() and all(torch.equal(a[kind][name], b[kind][name]) for name in a[kind])
    assert checkpoint.newest(run / "checkpoints") == (Path(run / "checkpoints" / "last.ckpt"), [])
