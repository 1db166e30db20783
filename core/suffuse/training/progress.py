"""Progress: one line that says how far a long job is, how fast, and how long it still takes."""

from __future__ import annotations

import sys
import time

from lightning.fabric.utilities.rank_zero import rank_zero_only

__all__ = ["Progress", "duration", "is_first_rank", "per_second", "say"]


def duration(seconds: float) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def per_second(done: float, began: float) -> float:
    """Return how much is done per second since `began`, of ``time.perf_counter``; finite where that stood still."""
    return done / max(time.perf_counter() - began, 1e-9)


def is_first_rank() -> bool:
    """Return whether this process is the one that writes and speaks."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def say(text: str) -> None:
    """Print a line of the job's story, once whatever the number of ranks."""
    print(text, flush=True)


class Progress:
    """A line on a terminal, rewritten; one line now and then in a log file.

    Arguments:
        total: Steps in all.
        unit: What `rate` counts per second.
        word: What a step is called.
    """

    def __init__(self, total: int, unit: str = "samples", word: str = "step") -> None:
        self.total, self.unit, self.word = total, unit, word
        self.live = sys.stderr.isatty()
        self._first = self._shown_step = 0
        self._began = self._shown = time.monotonic()
        self._figures = ""
        self._width = 0

    def start(self, step: int) -> None:
        """Begin at `step`, which is not 0 for a resumed run."""
        self._first = self._shown_step = step
        self._began = self._shown = time.monotonic()

    def update(
        self, step: int, *, loss: float | None = None, rate: float | None = None, wait: float | None = None,
        error: float | None = None,
    ) -> None:  # fmt: skip
        """Show `step`; the figures stay until new ones come."""
        if rate is not None:
            parts = [f"loss {loss:.4f}"] if loss is not None else []
            parts += [f"error {error:.3g}"] if error is not None else []
            parts.append(f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2f} {self.unit}/s")
            if wait is not None:
                parts.append(f"data-wait {100 * wait:.0f}%")
            self._figures = "  ".join(parts)
        now = time.monotonic()
        if now - self._shown < (0.2 if self.live else 5.0) and step != self.total:
            return
        self._shown = now
        left = (now - self._began) / max(step - self._first, 1) * (self.total - step)
        line = f"{self.word} {step}/{self.total}  {100 * step // self.total}%  {self._figures}  left {duration(left)}"
        self._print(line, last=step == self.total)

    @rank_zero_only
    def _print(self, line: str, last: bool) -> None:
        if not self.live:
            print(line, file=sys.stderr, flush=True)
            return
        print(f"\r{line:<{self._width}}", end="\n" if last else "", file=sys.stderr, flush=True)
        self._width = len(line)
