"""Processes that die or meet: kills at random moments, a lost worker, two jobs in one directory."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from suffuse import checkpoint
from suffuse.testing import command as inside


# One run with two kills; then, slow, ten with ten each.
@pytest.mark.parametrize(
    ("kills", "seed"), [(2, 0), *(pytest.param(10, seed, marks=pytest.mark.slow) for seed in range(1, 11))]
)
def test_killed_at_random_moments(forked, campaign, short, until, tmp_path: Path, kills: int, seed: int) -> None:
    runs = campaign(lambda folder, *more: [forked(folder, "train", *short(*more))], tmp_path / "whole", until)
    needed = runs.torn(tmp_path / "torn", kills, seed)
    print(f"{runs.killed} kills of running jobs, {needed} runs, all ended as one that was never stopped")
    assert runs.killed == kills


def test_one_directory_takes_one_job(forked, short, until, tmp_path: Path) -> None:
    process = forked(tmp_path, "train", *short("steps=100000"))
    last = tmp_path / "outputs/image/run/checkpoints/last.ckpt"
    try:
        until(last.is_file, process)
        for more in ((), ("ckpt=auto",)):
            done = inside(tmp_path, "train", *short(), *more)
            assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"name=run: process {process.pid} on " in done.stderr
        assert "is training in outputs/image/run; wait for its end or give another name" in done.stderr
    finally:
        process.kill()
        process.communicate()
    # The system let go of what the killed one held.
    step = checkpoint.read(last)["suffuse"]["step"]
    done = inside(tmp_path, "train", *short(), f"steps={step + 1}", "ckpt=auto")
    assert done.returncode == 0, done.stderr


def test_a_worker_that_is_killed_is_one_line(forked, short, until, tmp_path: Path) -> None:
    process = forked(tmp_path, "train", *short("steps=100000", "data.workers=1"))
    try:
        until((tmp_path / "outputs/image/run/checkpoints/last.ckpt").is_file, process)
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
