"""What SLURM says of a job decides whether it is asked to start it again; a script stands in for `scontrol`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from suffuse import signals
from suffuse.training.callbacks import Stop
from suffuse.training.distributed import requeue

# What SLURM 22.05 said, in the order of the tests.
RUNNING = "JobState=RUNNING Reason=None Dependency=(null) Restarts=0"
CANCELLED = "JobState=COMPLETING Reason=None Dependency=(null) Restarts=0"
OVER = "JobState=COMPLETING Reason=TimeLimit Dependency=(null) Restarts=0"
REQUEUED = "JobState=COMPLETING Reason=None Dependency=(null) Restarts=1"
AGAIN = "JobState=RUNNING Reason=None Dependency=(null) Restarts=1"


@pytest.mark.parametrize(
    ("known", "before", "again", "asked"),
    [
        (RUNNING, "", True, ["requeue 17"]), (CANCELLED, "", False, []), (OVER, "", True, ["requeue 17"]),
        (REQUEUED, "", True, []), (AGAIN, "1", True, ["requeue 17"]), ("", "", True, ["requeue 17"]),
        (REQUEUED, "1", False, []),
    ],
)  # fmt: skip
def test_who_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str, before: str, again: bool, asked: list[str]
) -> None:
    log = tmp_path / "asked"
    script = f'#!/bin/sh\ncase "$1" in show) echo "JobId=17 {known}";; *) echo "$@" >> {log};; esac\n'
    (tmp_path / "scontrol").write_text(script)
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if before:
        monkeypatch.setenv("SLURM_RESTART_COUNT", before)
    assert requeue() is again
    assert (log.read_text().splitlines() if log.exists() else []) == asked


def test_a_signal_that_comes_while_a_job_starts_stops_it_after_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    before = signal.getsignal(signal.SIGUSR1)
    stop, trainer, module = Stop(["USR1"]), SimpleNamespace(global_step=0, world_size=1, should_stop=False), Any
    try:
        signals.listen()
        os.kill(os.getpid(), signal.SIGUSR1)
        stop.on_train_start(trainer, module)
        stop.on_step(trainer, module, 1)
        assert trainer.should_stop and stop.signum == signal.SIGUSR1 and signals.kept() is None
    finally:
        stop.on_exception(trainer, module, ValueError())
        signal.signal(signal.SIGUSR1, before)
