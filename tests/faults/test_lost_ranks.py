"""One of two ranks dies: the other says which and ends. Both die: the run goes on, and ends the same after all."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from suffuse import checkpoint
from suffuse.errors import DataError
from suffuse.training import peers
from suffuse.training.module import TrainingModule

LAST = "outputs/image/run/checkpoints/last.ckpt"


def lines(said: str) -> list[str]:
    """Return the lines of an error."""
    return [line for line in said.splitlines() if "train: " in line]


@pytest.mark.parametrize("lost", [0, 1])
def test_the_other_says_which_and_ends(start, of_two, until, tmp_path: Path, lost: int) -> None:
    ranks = start(tmp_path, 2, *of_two("steps=100000"))
    until((tmp_path / LAST).is_file, *ranks)
    ranks[lost].kill()
    said, _ = ranks[1 - lost].communicate(timeout=60)
    assert ranks[lost].poll() == -signal.SIGKILL and ranks[1 - lost].returncode == 1, said
    assert "Traceback" not in said and len(lines(said)) == 1, said
    assert f"train: rank {lost} (process {ranks[lost].pid} on " in said
    assert f"was lost; the last checkpoint is {LAST}: continue with the same command and ckpt=auto" in said
    checkpoint.read(tmp_path / LAST)


def test_one_that_waits_for_something_else_is_ended(start, of_two, until, tmp_path: Path, monkeypatch) -> None:
    step = TrainingModule.training_step

    def asleep(self: TrainingModule, *args: object) -> torch.Tensor:
        if self.global_rank == 0 and self.global_step == 2:
            time.sleep(900)
        return step(self, *args)

    monkeypatch.setattr(TrainingModule, "training_step", asleep)
    monkeypatch.setattr(peers, "GRACE", 0.5)
    ranks = start(tmp_path, 2, *of_two())
    until(lambda: (tmp_path / LAST).with_name("step-000002.ckpt").is_file(), *ranks)
    ranks[1].kill()
    said, _ = ranks[0].communicate(timeout=60)
    assert ranks[0].returncode == 1 and "rank 1 (" in said and len(lines(said)) == 1, said


def test_an_error_of_one_is_named_once(start, of_two, until, tmp_path: Path, monkeypatch) -> None:
    step = TrainingModule.training_step

    def failing(self: TrainingModule, *args: object) -> torch.Tensor:
        if self.global_rank == 1 and self.global_step == 2:
            raise DataError("data.path: gone")
        return step(self, *args)

    monkeypatch.setattr(TrainingModule, "training_step", failing)
    ranks = start(tmp_path, 2, *of_two())
    said = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1] and "Traceback" not in "".join(said), said
    assert lines(said[1]) == ["[rank 1] train: data.path: gone"]
    assert len(lines(said[0])) == 1 and "ended with an error of its own, which it has named; the last" in said[0]


def test_one_that_dies_before_they_meet(forked, of_two, until, tmp_path: Path) -> None:
    process = forked(tmp_path, "train", *of_two())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.is_file():
        process.kill()
        pytest.skip("this system does not list the children of a process")
    try:
        until(lambda: children.read_text().split(), process)
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1 and "Traceback" not in said, said
    assert "train: rank 1 (not met yet) was killed" in said and "no checkpoint was written yet" in said


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_no_rank_outlives_the_one_that_started_it(forked, of_two, until, tmp_path: Path) -> None:
    for moment in (0.5, None):  # while it starts, and while it trains
        process = forked(tmp_path, "train", *of_two("steps=100000", f"name=at-{moment}"))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda children=children: children.read_text().split(), process)
        child = Path("/proc") / children.read_text().split()[0]
        if moment is None:
            until((tmp_path / LAST.replace("run", f"at-{moment}")).is_file, process)
        else:
            time.sleep(moment)
        process.kill()
        process.communicate()
        end = time.monotonic() + 60
        while child.exists() and "Z" not in (child / "stat").read_text().rpartition(")")[2].split()[:1]:
            assert time.monotonic() < end, process.log.read_text()
            time.sleep(0.1)
        assert "Traceback" not in process.log.read_text()


# One kill; then, slow, ten with ten each.
@pytest.mark.parametrize(
    ("kills", "seed"), [(1, 0), *(pytest.param(10, seed, marks=pytest.mark.slow) for seed in range(1, 11))]
)
def test_both_killed_at_random_moments(start, campaign, of_two, until, tmp_path: Path, kills: int, seed: int) -> None:
    steps = f"steps={16 if kills > 1 else 8}"
    runs = campaign(lambda folder, *more: start(folder, 2, *of_two(steps, *more)), tmp_path / "whole", until)
    needed = runs.torn(tmp_path / "torn", kills, seed)
    print(f"{runs.killed} kills of running jobs, {needed} runs, all ended as one that was never stopped")
    assert runs.killed == kills
