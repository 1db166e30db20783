"""Grid: the times at which a solver evaluates the denoiser.

A grid is a float64 table t_0 > t_1 > … > t_N on the host, independent of solver and model. `steps` is always the number
N of intervals. The last node may be noise-free (`clean`): sigma = 0 there even on a schedule that never reaches it. A
table of shape (N + 1, T) gives every token its own times; a token whose time does not change is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from suffuse.errors import ConfigError
from suffuse.schedule import Schedule

__all__ = ["Exponential", "Grid", "Karras", "Linear", "Trailing"]

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Times of the nodes.

    Arguments:
        t: Shape (N + 1,) or (N + 1, T), float64, non-increasing along the first axis.
        clean: The last node has no noise at all. In a table that holds for the tokens that come down to t = 0; one that
            rests throughout, or stops earlier, keeps the noise it has.

    Raises:
        ConfigError: When there is no interval, or time runs backwards.
    """

    t: Table
    clean: bool = True

    def __post_init__(self) -> None:
        if self.t.shape[0] < 2:
            raise ConfigError("grid: needs at least two nodes, that is sampler.steps >= 1")
        if not (np.diff(self.t, axis=0) <= 0).all():
            raise ConfigError("grid: times must not increase")

    @property
    def steps(self) -> int:
        """Number of intervals N."""
        return int(self.t.shape[0]) - 1

    def table(self, schedule: Schedule) -> tuple[Table, Table, Table]:
        """Return alpha, sigma and lam at the nodes, each of the shape of t."""
        t = torch.from_numpy(self.t)
        alpha, sigma = (value.numpy().copy() for value in schedule(t))
        lam = schedule.lam(t).numpy().copy()
        if self.clean:
            arrives = np.asarray(self.t.ndim == 1 or (self.t[-1] <= 0) & (self.t[0] > self.t[-1]))
            lam[-1], sigma[-1] = np.where(arrives, math.inf, lam[-1]), np.where(arrives, 0.0, sigma[-1])
        return alpha, sigma, lam


@dataclass(frozen=True)
class _Spaced:
    """Nodes between two noise levels.

    Arguments:
        sigma_min: Lowest sigma/alpha before the end; raised to the schedule's own lowest.
        sigma_max: Highest sigma/alpha; lowered to the schedule's own highest.
        end: ``zero`` adds a noise-free node after sigma_min, ``min`` ends there.

    Raises:
        ConfigError: Unless 0 < sigma_min < sigma_max, and for another `end`.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    end: str = "zero"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError(f"grid: need 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}")
        if self.end not in ("zero", "min"):
            raise ConfigError(f"grid.end={self.end} is neither 'zero' nor 'min'")

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid of `steps` intervals on a schedule."""
        lowest, highest = (float(torch.exp(-schedule.lam(t))) for t in (0.0, 1.0))
        low, high = max(self.sigma_min, lowest), min(self.sigma_max, highest)
        if not low < high:
            raise ConfigError(
                f"grid: sigma_min={self.sigma_min} and sigma_max={self.sigma_max} lie outside the schedule's levels, "
                f"{lowest:.3g} to {highest:.3g}; move them inside"
            )
        count = steps if self.end == "zero" else steps + 1
        sigma = self.levels(low, high, count)
        t = schedule.time(-torch.from_numpy(np.log(sigma))).numpy()
        if high == highest:
            t[0] = 1.0
        t = np.minimum.accumulate(t)
        if self.end == "zero":
            t = np.append(t, min(0.0, t[-1]))
        return Grid(t, clean=self.end == "zero")

    def levels(self, low: float, high: float, count: int) -> Table:
        """Return `count` values of sigma/alpha from high to low."""
        raise ConfigError(f"grid: {type(self).__name__} defines no levels")


@dataclass(frozen=True)
class Karras(_Spaced):
    """sigma^(1/rho) evenly spaced. "Elucidating the Design Space …", Karras et al. 2022, eq. 5."""

    rho: float = 7.0

    def levels(self, low: float, high: float, count: int) -> Table:
        """Return the levels."""
        ends = high ** (1 / self.rho), low ** (1 / self.rho)
        return np.linspace(*ends, count) ** self.rho


@dataclass(frozen=True)
class Exponential(_Spaced):
    """log sigma evenly spaced: equal steps in log-SNR."""

    def levels(self, low: float, high: float, count: int) -> Table:
        """Return the levels."""
        return np.exp(np.linspace(math.log(high), math.log(low), count))


@dataclass(frozen=True)
class Linear:
    """Time evenly spaced from 1 to t_min, then a noise-free node.

    Raises:
        ConfigError: Unless 0 <= t_min < 1.
    """

    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < 1:
            raise ConfigError(f"grid.t_min={self.t_min} must be in [0, 1)")

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid of `steps` intervals."""
        return Grid(np.append(np.linspace(1.0, self.t_min, steps), 0.0))


@dataclass(frozen=True)
class Trailing:
    """t_i = 1 - i / N: even steps that begin at pure noise and end at the data.

    "Common Diffusion Noise Schedules and Sample Steps are Flawed", Lin et al. 2024, table 2.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid of `steps` intervals."""
        return Grid(1.0 - np.arange(steps + 1) / steps)
