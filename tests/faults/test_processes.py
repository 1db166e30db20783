"""Processes that die or meet: kills at random moments, a lost worker, two jobs in one directory."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from suffuse import checkpoint
from suffuse.testing import command as inside

STEPS = 24


def words(tiny: list[str], *more: str) -> list[str]:
    """Return a run that writes a checkpoint after every step, so that most kills meet one being written."""
    left = ("steps=", "every.", "num=", "preview_num=", "val_num=")
    return [
        *(word for word in tiny if not word.startswith(left)), f"steps={STEPS}", "every.log=1", "every.validate=0",
        "every.preview=0", "every.checkpoint=1", "keep=2", "num=1", "name=run", *more,
    ]  # fmt: skip


def wait(found, process, seconds: float = 600) -> None:
    """Wait until `found` returns something true, or the process has ended."""
    end = time.monotonic() + seconds
    while process.poll() is None and not found():
        assert time.monotonic() < end, process.log.read_text()
        time.sleep(0.005)


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_while_checkpoints_are_written(forked, tiny: list[str], tmp_path: Path, kills: int) -> None:
    moments, killed = random.Random(kills), 0
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for folder in (whole, torn):
        folder.mkdir()
    assert inside(whole, "train", *words(tiny)).returncode == 0
    last = torn / "outputs/image/run/checkpoints/last.ckpt"
    for _ in range(kills):
        before = last.stat().st_ino if last.is_file() else 0
        process = forked(torn, "train", *words(tiny), "ckpt=auto")
        wait(lambda before=before: last.is_file() and last.stat().st_ino != before, process)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        checkpoint.read(last)  # whatever the moment, it is whole
    done = inside(torn, "train", *words(tiny), "ckpt=auto")
    assert done.returncode == 0, done.stderr
    assert killed
    a, b = (torch.load(folder / last.relative_to(torn), weights_only=True) for folder in (whole, torn))
    for kind in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, b[kind][name]) for name, value in a[kind].items())


def test_one_directory_takes_one_job(forked, tiny: list[str], tmp_path: Path) -> None:
    process = forked(tmp_path, "train", *words(tiny, "steps=100000"))
    last = tmp_path / "outputs/image/run/checkpoints/last.ckpt"
    try:
        wait(last.is_file, process)
        for more in ((), ("ckpt=auto",)):
            done = inside(tmp_path, "train", *words(tiny), *more)
            assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"name=run: process {process.pid} on " in done.stderr
        assert "is training in outputs/image/run; wait for its end or give another name" in done.stderr
    finally:
        process.kill()
        process.communicate()
    # The system let go of what the killed one held.
    step = checkpoint.read(last)["suffuse"]["step"]
    done = inside(tmp_path, "train", *words(tiny), f"steps={step + 1}", "ckpt=auto")
    assert done.returncode == 0, done.stderr


def test_a_worker_that_is_killed_is_one_line(forked, tiny: list[str], tmp_path: Path) -> None:
    process = forked(tmp_path, "train", *words(tiny, "steps=100000", "data.workers=1"))
    try:
        wait((tmp_path / "outputs/image/run/checkpoints/last.ckpt").is_file, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.is_file():
            pytest.skip("this system does not list the children of a process")
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
        output, _ = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 1 and "Traceback" not in output, output
    assert "a process that loads data was killed" in output and "lower data.workers (now 1)" in output
