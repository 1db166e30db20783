"""Guidance: a denoiser around a denoiser that pulls towards the condition.

    x0 = x0(null) + w (x0(cond) - x0(null))

"Classifier-Free Diffusion Guidance", Ho and Salimans 2022, eq. 6, with w = 1 + their w: 1 is no guidance. It acts on x0
and only where the noise level lam lies in an interval: "Applying Guidance in a Limited Interval Improves Sample and
Distribution Quality", Kynkäänniemi et al. 2024, eq. 5; in log-SNR, so it does not depend on the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suffuse.denoiser import Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse.process import Process, reference
from suffuse.state import State, map_state

__all__ = ["ClassifierFree"]


class ClassifierFree(Denoiser):
    """Classifier-free guidance.

    Arguments:
        denoiser: The denoiser, trained with dropped conditions.
        scale: w, at least 0; 0 ignores the condition, 1 is the denoiser itself.
        null: The embedded absent condition, of one row or as many as the batch.
        interval: (lowest, highest) half log-SNR at which guidance acts; None leaves an end open.

    Raises:
        ConfigError: For a negative scale or an empty interval.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        null: Mapping[str, Tensor],
        interval: tuple[float | None, float | None] = (None, None),
    ) -> None:
        super().__init__()
        if not 0 <= scale < math.inf:
            raise ConfigError(f"guidance.scale={scale} must be at least 0")
        self.low = -math.inf if interval[0] is None else float(interval[0])
        self.high = math.inf if interval[1] is None else float(interval[1])
        if self.low >= self.high:
            raise ConfigError(f"guidance.interval=[{self.low}, {self.high}] is empty; give [lowest, highest] log-SNR")
        self.denoiser, self.scale, self.null = denoiser, float(scale), dict(null)
        self.process = denoiser.process
        self._inside: dict[float, bool] = {}

    def forward(self, x: State, t: float | Tensor, cond: Any = None) -> Prediction:
        """Return the guided prediction; one call of the denoiser with twice the rows."""
        if self.scale == 1 or cond is None or (not isinstance(t, Tensor) and not self._acts(t)):
            prediction: Prediction = self.denoiser(x, t, cond)
            return prediction
        twice = map_state(lambda leaf: torch.cat([leaf, leaf]), x)
        both = {name: torch.cat([value, self._null(name, value)]) for name, value in cond.items()}
        times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        out = self.denoiser(twice, times, both).x0

        def guide(leaf: Tensor, process: Process) -> Tensor:
            given, without = leaf.chunk(2)
            guided = without + self.scale * (given - without)
            if not isinstance(t, Tensor) or (self.low == -math.inf and self.high == math.inf):
                return guided
            lam = reference(self.process).schedule.lam(t)
            inside = (lam >= self.low) & (lam <= self.high)
            return torch.where(process.space.expand(inside, given), guided, given)

        return Prediction(map_state(guide, out, self.process))

    def _acts(self, t: float) -> bool:
        if t not in self._inside:
            self._inside[t] = self.low <= float(reference(self.process).schedule.lam(t)) <= self.high
        return self._inside[t]

    def _null(self, name: str, value: Tensor) -> Tensor:
        null = self.null[name].to(value)
        return null if len(null) == len(value) else null[:1].expand_as(value)
