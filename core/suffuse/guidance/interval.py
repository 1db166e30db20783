"""Interval: the noise levels at which guidance acts.

"Applying Guidance in a Limited Interval Improves Sample and Distribution Quality", Kynkäänniemi et al. 2024, eq. 5;
here in half log-SNR, so that it depends neither on the number of steps nor on the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.process import reference

__all__ = ["Ends", "Interval", "check_scale"]

Ends = tuple[float | None, float | None]
"""(lowest, highest) half log-SNR; None leaves an end open."""


@dataclass(frozen=True)
class Interval:
    """Levels low <= lam <= high, of the first field's schedule."""

    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def of(cls, ends: Sequence[float | None] | Interval | None, key: str = "guidance.interval") -> Interval:
        """Return the interval a user wrote.

        Raises:
            ConfigError: Unless it is [lowest, highest] with lowest < highest.
        """
        if isinstance(ends, Interval):
            return ends
        ends = (None, None) if ends is None else tuple(ends)
        if len(ends) != 2 or any(isinstance(e, bool) or not isinstance(e, int | float | None) for e in ends):
            raise ConfigError(f"{key}={list(ends)} must be [lowest, highest] log-SNR, null for an open end")
        low, high = (float(o if e is None else e) for e, o in zip(ends, (-math.inf, math.inf), strict=True))
        if not low < high:
            raise ConfigError(f"{key}=[{low}, {high}] is empty; give [lowest, highest] log-SNR")
        return cls(low, high)

    @property
    def open(self) -> bool:
        """Whether it holds every level."""
        return self.low == -math.inf and self.high == math.inf

    def __call__(self, process: Any, t: float | Tensor) -> bool | Tensor:
        """Return whether t lies in it: a bool for a float, a mask of the shape of t for a tensor."""
        if self.open:
            return True
        lam = reference(process).schedule.lam(t)
        if isinstance(t, Tensor):
            return (lam >= self.low) & (lam <= self.high)
        return self.low <= float(lam) <= self.high


def check_scale(scale: float, key: str = "guidance.scale") -> float:
    """Return the scale as a float.

    Raises:
        ConfigError: Unless it is a finite number of at least 0.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
        raise ConfigError(f"{key}={scale} must be a number of at least 0 (1 = no guidance)")
    return float(scale)
