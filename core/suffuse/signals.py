"""Signals: one that SLURM sends while a job still starts is kept until there is something to save."""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["kept", "listen"]

_kept: list[int] = []


def listen() -> None:
    """Keep SIGUSR1 of a job of SLURM's, which would end a process that does not expect it, and with it the run."""
    if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _keep)


def kept() -> int | None:
    """Return the signal that has arrived, and forget it."""
    return _kept.pop() if _kept else None


def _keep(signum: int, frame: FrameType | None) -> None:
    _kept[:] = [signum]
