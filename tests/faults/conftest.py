"""What the tests of faults share: short runs that write a checkpoint after every step, and kills at random moments."""

from __future__ import annotations

import csv
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from suffuse import checkpoint

STEPS = 16
RUN = Path("outputs/image/run")
LAST = RUN / "checkpoints/last.ckpt"


@pytest.fixture
def short(tiny: list[str]) -> Callable[..., list[str]]:
    """Return a function that returns the words of a run, so short that most kills meet a checkpoint being written."""

    def words(*more: str) -> list[str]:
        left = ("steps=", "every.", "num=", "preview_num=", "val_num=")
        return [
            *(word for word in tiny if not word.startswith(left)), f"steps={STEPS}", "every.log=1", "every.validate=0",
            "every.preview=0", "every.checkpoint=1", "keep=2", "num=1", "name=run", *more,
        ]  # fmt: skip

    return words


@pytest.fixture
def of_two(short: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Return a function like `short` for two ranks."""
    own = ("trainer=", "data.batch_size=")
    two = ["trainer=ddp", "trainer.accelerator=cpu", "devices=2", "data.batch_size=8"]
    return lambda *more: [*(word for word in short() if not word.startswith(own)), *two, *more]


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Return a function that waits until something is true, or one of some processes has ended."""

    def wait(found: Callable[[], Any], *processes: Any, seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while all(process.poll() is None for process in processes) and not found():
            assert time.monotonic() < end, "\n".join(process.log.read_text() for process in processes)
            time.sleep(0.005)

    return wait


class Campaign:
    """Runs that are killed at random moments and continued must end as one that was never stopped.

    Half of the kills come within 50 ms of a checkpoint's end, which is while the next is written; the others at any
    moment from the start of the processes on.

    Arguments:
        begin: Starts all processes of a run in a folder, with further words.
        whole: Folder of the run that is never stopped, which is made now.
    """

    def __init__(self, begin: Callable[..., Sequence[Any]], whole: Path, until: Callable[..., None]) -> None:
        self.begin, self.whole, self.until = begin, whole, until
        self.killed = 0
        began = time.monotonic()
        self.end(whole)
        self.seconds = time.monotonic() - began

    def end(self, folder: Path, *more: str) -> None:
        """Let a run go on to its end."""
        folder.mkdir(exist_ok=True)
        processes = self.begin(folder, *more)
        said = [process.communicate()[0] for process in processes]
        assert all(process.returncode == 0 for process in processes), "\n".join(said)

    def torn(self, folder: Path, kills: int, seed: int) -> int:
        """Kill runs so many times, let each end, and compare; return how many runs that took."""
        moments, runs = random.Random(seed), 0
        while self.killed < kills:
            runs += 1
            run = folder / str(runs)
            run.mkdir(parents=True)
            while self.killed < kills and self._kill(run, moments):
                self.killed += 1
            self.end(run, "ckpt=auto")
            self.compare(run)
        return runs

    def _kill(self, run: Path, moments: random.Random) -> bool:
        """Start a run, or go on with it, and kill it; return whether it was still running."""
        last = run / LAST
        before = last.stat().st_ino if last.is_file() else 0
        processes = self.begin(run, "ckpt=auto")
        if self.killed % 2:
            _pause(processes, moments.uniform(0, 0.6 * self.seconds))
        else:
            self.until(lambda: last.is_file() and last.stat().st_ino != before, *processes)
        for process in moments.sample(processes, len(processes)):
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
        said = [process.communicate()[0] for process in processes]
        if last.is_file():
            checkpoint.read(last)  # whatever the moment, it is whole
        if any(process.returncode == -signal.SIGKILL for process in processes):
            return True
        assert all(process.returncode == 0 for process in processes), "\n".join(said)
        return False

    def compare(self, folder: Path) -> None:
        """Compare weights, averages, optimizer, losses and samples, bit for bit."""
        a, b = (torch.load(where / LAST, weights_only=True) for where in (self.whole, folder))
        for kind in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "training"):
            torch.testing.assert_close(b[kind], a[kind], rtol=0, atol=0)
        assert _figures(folder) == _figures(self.whole)
        drawn = [sorted((where / RUN / "samples/final").glob("*.png")) for where in (self.whole, folder)]
        assert [p.read_bytes() for p in drawn[0]] == [p.read_bytes() for p in drawn[1]] and drawn[0]
        assert not [p.name for p in (folder / RUN / "checkpoints").iterdir() if p.is_dir()]


def _pause(processes: Sequence[Any], seconds: float) -> None:
    """Let processes run for so long, or to their end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        time.sleep(0.005)


def _figures(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv but for speed and memory."""
    with (folder / RUN / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def campaign() -> type[Campaign]:
    """Return `Campaign`."""
    return Campaign
