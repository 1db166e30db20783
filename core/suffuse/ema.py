r"""EMA: the average of a model's weights along training.

    avg <- avg + (1 - beta_k) (weights - avg)     after update k = 1, 2, …

with a constant beta, or beta_k = (1 - 1/k)^(gamma + 1), whose averaged window is a fixed share of the run ("Analyzing
and Improving the Training Dynamics of Diffusion Models", Karras et al. 2024, eq. 127; gamma solves
std = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), eq. 123).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import ConfigError

__all__ = ["EMA", "ConstantDecay", "PowerDecay"]


@dataclass(frozen=True)
class ConstantDecay:
    """beta, or with warm-up min(beta, (1 + k) / (10 + k)), so that early weights do not linger.

    Raises:
        ConfigError: Unless 0 <= decay < 1.
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"ema.decay={self.decay} must be in [0, 1)")

    def __call__(self, update: int) -> float:
        """Return beta of update number `update`, the first is 1."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay


@dataclass(frozen=True)
class PowerDecay:
    """(1 - 1/k)^(gamma + 1).

    Arguments:
        std: Width of the averaged window as a share of the run.

    Raises:
        ConfigError: Unless 0 < std < 0.289, the width of a plain mean.
    """

    std: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.std < 12**-0.5:
            raise ConfigError(f"ema.std={self.std} must be in (0, {12**-0.5:.3f})")

    @property
    def gamma(self) -> float:
        """The exponent whose window has the width `std`; falls with it, found by bisection."""
        low, high = 0.0, 1e9
        for _ in range(200):
            middle = 0.5 * (low + high)
            wide = math.sqrt(middle + 1) / ((middle + 2) * math.sqrt(middle + 3)) > self.std
            low, high = (middle, high) if wide else (low, middle)
        return low

    def __call__(self, update: int) -> float:
        """Return beta of update number `update`."""
        return float((1 - 1 / update) ** (self.gamma + 1))


class EMA:
    """Averages of parameters, beside them.

    Arguments:
        parameters: What is averaged; the average starts as a copy.
        decay: beta as a function of the update's number.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: Callable[[int], float]) -> None:
        self.parameters = [parameter for parameter in parameters]
        self.decay = decay
        self.updates = 0
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the parameters."""
        self.updates += 1
        now = [parameter.detach() for parameter in self.parameters]
        torch._foreach_lerp_(self.averages, now, 1 - self.decay(self.updates))

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Put the averages into the parameters for a while; the parameters come back bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of updates."""
        return {"updates": self.updates, "averages": [average.clone() for average in self.averages]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.updates = state["updates"]
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
