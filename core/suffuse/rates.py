r"""Rates: schedules of the probability that a token is still itself, for categorical fields.

    alpha(t) = P(x_t = x_0),    sigma(t) = 1 - alpha(t),    lam = log(alpha / sigma) = logit alpha

A `Schedule` like any other, with alpha + sigma = 1: it can be shifted, and shares the time grid of a composite state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.schedule import AlphaSigma, Schedule, as_float64

__all__ = ["CosineRate", "LogLinear", "PolynomialRate"]


@dataclass(frozen=True)
class LogLinear(Schedule):
    """alpha = 1 - (1 - eps) t: as many tokens go in every interval of time.

    "Simple and Effective Masked Diffusion Language Models", Sahoo et al. 2024, section 5 (there alpha = 1 - t).

    Raises:
        ConfigError: Unless 0 <= eps < 1.
    """

    eps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ConfigError(f"schedule.eps={self.eps} must be in [0, 1)")

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return alpha and 1 - alpha."""
        sigma = (1 - self.eps) * as_float64(t)
        return AlphaSigma(1 - sigma, sigma)

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t."""
        return torch.sigmoid(-as_float64(lam)) / (1 - self.eps)


@dataclass(frozen=True)
class CosineRate(Schedule):
    """The share of tokens that are gone is cos((1 - t) pi/2): few come back first, many at the end of sampling.

    "MaskGIT: Masked Generative Image Transformer", Chang et al. 2022, section 3.3.
    """

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return 2 sin^2((1 - t) pi/4), which is 1 - cos without its cancellation, and sin(t pi/2)."""
        t = as_float64(t)
        return AlphaSigma(2 * torch.sin((1 - t) * math.pi / 4) ** 2, torch.sin(t * math.pi / 2))

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t, from whichever of alpha and sigma is small."""
        lam = as_float64(lam)
        alpha, sigma = torch.sigmoid(lam), torch.sigmoid(-lam)
        late = 1 - 4 / math.pi * torch.asin((alpha / 2).sqrt())
        return torch.where(sigma < 0.5, torch.asin(sigma) * 2 / math.pi, late)


@dataclass(frozen=True)
class PolynomialRate(Schedule):
    """alpha = 1 - t^power. "Discrete Flow Matching", Gat et al. 2024, section 3 (kappa = t^n, time reversed).

    Raises:
        ConfigError: Unless power > 0.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ConfigError(f"schedule.power={self.power} must be positive")

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return 1 - t^power and t^power."""
        t = as_float64(t)
        return AlphaSigma(-torch.expm1(self.power * t.log()), t**self.power)

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t."""
        return torch.sigmoid(-as_float64(lam)) ** (1 / self.power)
