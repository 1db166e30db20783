"""Learning-rate schedules: the share of the full rate as a function of the optimizer step and the total."""

from __future__ import annotations

import math
from dataclasses import dataclass

from suffuse.errors import ConfigError

__all__ = ["Constant", "Cosine"]


@dataclass(frozen=True)
class Constant:
    """min(1, (k + 1) / warmup) at step k."""

    warmup: int = 0

    def __call__(self, step: int, total: int) -> float:
        """Return the share at optimizer step `step` of `total`."""
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0


@dataclass(frozen=True)
class Cosine:
    """Warm-up, then 1 until `hold` of the steps are done, then a half cosine from 1 to `final`.

    Raises:
        ConfigError: When hold is not in [0, 1) or final not in [0, 1].
    """

    warmup: int = 0
    hold: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.hold < 1:
            raise ConfigError(f"lr_schedule.hold={self.hold} must be in [0, 1)")
        if not 0 <= self.final <= 1:
            raise ConfigError(f"lr_schedule.final={self.final} must be in [0, 1]")

    def __call__(self, step: int, total: int) -> float:
        """Return the share at optimizer step `step` of `total`."""
        progress = min(1.0, max(0.0, (step / max(total, 1) - self.hold) / (1 - self.hold)))
        cosine = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        return Constant(self.warmup)(step, total) * cosine
