r"""Betas: variance-preserving schedules that are tables of N steps, as DDPM and Stable Diffusion were trained with.

Step k = 1 … N adds noise of variance beta_k, so alpha_k^2 = prod_{j<=k} (1 - beta_j). It stands at time t = k / N;
between the steps alpha is linear in t, from alpha(0) = 1. "Denoising Diffusion Probabilistic Models", Ho et al. 2020,
equation 4.

Zero terminal SNR: alpha_k <- (alpha_k - alpha_N) alpha_1 / (alpha_1 - alpha_N), so that alpha(1) = 0. "Common Diffusion
Noise Schedules and Sample Steps are Flawed", Lin et al. 2024, algorithm 1.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.schedule import AlphaSigma, Schedule, as_float64

__all__ = ["Betas", "VPBetas", "VPTable"]


class Betas(Schedule):
    """Variance preserving, from the betas of N steps.

    Arguments:
        zero_terminal_snr: Rescale so that the last step has no signal.
    """

    zero_terminal_snr: bool

    @abstractmethod
    def betas(self) -> NDArray[np.float64]:
        """Return the betas, shape (N,)."""

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return alpha and sigma at t."""
        t = as_float64(t)
        lost = _lost(self).to(t.device)
        steps = len(lost) - 1
        low = (t * steps).floor().clamp(0, steps - 1).long()
        share = t * steps - low
        # What alpha has lost, 1 - alpha, keeps its digits where alpha is nearly one.
        gone = lost[low] + share * (lost[low + 1] - lost[low])
        return AlphaSigma(1 - gone, (gone * (2 - gone)).clamp(min=0).sqrt())

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t."""
        lam = as_float64(lam)
        lost = _lost(self).to(lam.device)
        gone = torch.sigmoid(-2 * lam) / (1 + torch.sigmoid(2 * lam).sqrt())
        low = (torch.searchsorted(lost, gone.contiguous(), right=True) - 1).clamp(0, len(lost) - 2)
        return (low + (gone - lost[low]) / (lost[low + 1] - lost[low])) / (len(lost) - 1)


@functools.lru_cache(maxsize=64)
def _lost(schedule: Betas) -> Tensor:
    """Return 1 - alpha at t = 0, 1/N, …, 1."""
    log_alpha = 0.5 * np.cumsum(np.log1p(-schedule.betas()))
    gone = -np.expm1(log_alpha)
    if schedule.zero_terminal_snr:
        first, last = 1 - gone[0], 1 - gone[-1]
        gone = 1 - (1 - gone - last) * first / (first - last)
        gone[-1] = 1.0
    return torch.from_numpy(np.concatenate([[0.0], gone]))


@dataclass(frozen=True)
class VPTable(Betas):
    """The table itself.

    Arguments:
        values: The betas.
        zero_terminal_snr: Rescale so that the last step has no signal.

    Raises:
        ConfigError: For fewer than two betas, or one outside (0, 1).
    """

    values: tuple[float, ...]
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if len(self.values) < 2:
            raise ConfigError(f"schedule.values needs at least two betas, not {len(self.values)}")
        for i, beta in enumerate(self.values):
            if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < 1:
                raise ConfigError(f"schedule.values[{i}]={beta} must be in (0, 1)")

    def betas(self) -> NDArray[np.float64]:
        """Return the betas."""
        return np.array(self.values, dtype=np.float64)


@dataclass(frozen=True)
class VPBetas(Betas):
    """Betas, or their square roots, evenly spaced.

    Arguments:
        beta_start: First beta.
        beta_end: Last beta.
        count: Number of steps N.
        scaled: The square roots are evenly spaced (Stable Diffusion's "scaled linear") instead of the betas (DDPM).
        zero_terminal_snr: Rescale so that the last step has no signal.

    Raises:
        ConfigError: Unless 0 < beta_start < beta_end < 1 and count >= 2.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    count: int = 1000
    scaled: bool = True
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.beta_start < self.beta_end < 1:
            raise ConfigError(
                f"schedule: need 0 < beta_start < beta_end < 1, not {self.beta_start} and {self.beta_end}"
            )
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 2:
            raise ConfigError(f"schedule.count={self.count} must be a whole number of at least 2")

    def betas(self) -> NDArray[np.float64]:
        """Return the betas."""
        power = 0.5 if self.scaled else 1.0
        even = np.linspace(self.beta_start**power, self.beta_end**power, self.count)
        betas: NDArray[np.float64] = even ** (1 / power)
        return betas
