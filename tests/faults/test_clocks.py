"""Clocks that jump: which checkpoint is the newest, what a run computes and what it shows do not hang on them."""

from __future__ import annotations

import csv
import math
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from suffuse import checkpoint
from suffuse.training.background import Background
from suffuse.training.callbacks import Checkpoints

DAY = 86400.0


class Clock:
    """Stands in for a function of `time`: it goes on as it does, but for jumps, or stands still."""

    def __init__(self, moves, jumps: tuple[float, ...], still: bool = False) -> None:
        self.moves, self.jumps, self.still = moves, jumps, still
        self.began, self.shift, self.random = moves(), 0.0, random.Random(0)

    def __call__(self) -> float:
        if self.still:
            return self.began
        if self.random.random() < 0.05:
            self.shift += self.random.choice(self.jumps)
        return self.moves() + self.shift


@pytest.mark.parametrize(
    ("clocks", "still"),
    # The last two do not go back; they may leap over the sleep of a machine, and stand still where they are coarse.
    [({"time": (-DAY, DAY), "monotonic": (DAY,), "perf_counter": (DAY,)}, False), ({"perf_counter": ()}, True)],
)
def test_a_run(
    local, tiny: list[str], trained: Path, tmp_path: Path, monkeypatch, clocks: dict[str, tuple], still: bool
) -> None:
    for name, jumps in clocks.items():
        monkeypatch.setattr(time, name, Clock(getattr(time, name), jumps, still))
    done = local("train", *tiny, "name=tiny")
    monkeypatch.undo()
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert not re.search(r"left -|-\d+(\.\d+)? samples/s|nan|data-wait -", done.stderr), done.stderr
    run = tmp_path / "outputs/image/tiny"
    assert sorted(p.name for p in run.glob("checkpoints/*")) == [
        "last.ckpt", "step-000002.ckpt", "step-000004.ckpt", "step-000006.ckpt",
    ]  # fmt: skip
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            rate, wait = float(row["perf/samples_per_s"]), float(row["perf/data_wait"])
            assert 0 <= rate < math.inf and 0 <= wait <= 1
    a, b = (torch.load(one / "checkpoints/last.ckpt", weights_only=True) for one in (trained, run))
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)


def test_the_newest_checkpoint_is_the_one_of_the_last_step(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(trained / "checkpoints", folder)
    now = time.time()
    for name, shift in (("step-000002", 3 * DAY), ("step-000004", 2 * DAY), ("step-000006", -DAY), ("last", -9 * DAY)):
        os.utime(folder / f"{name}.ckpt", (now + shift, now + shift))
    assert checkpoint.newest(folder) == (folder / "last.ckpt", [])
    (folder / "last.ckpt").unlink()
    assert checkpoint.newest(folder) == (folder / "step-000006.ckpt", [])


def test_a_millionth_step_comes_after_the_one_before(trained: Path, tmp_path: Path) -> None:
    source = trained / "checkpoints/step-000006.ckpt"
    for step in (999_998, 999_999, 1_000_000):
        shutil.copyfile(source, tmp_path / f"step-{step:06d}.ckpt")
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-1000000.ckpt", [])
    Checkpoints(1, 2, tmp_path, Background())._publish(tmp_path / "step-1000000.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "step-1000000.ckpt", "step-999999.ckpt"]
