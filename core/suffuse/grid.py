"""Grid: the times at which a solver evaluates the denoiser.

A grid is a float64 table t_0 > t_1 > … > t_N on the host, independent of solver and model. `steps` is always the number
N of intervals. The last node may be noise-free (`clean`): sigma = 0 there even on a schedule that never reaches it. A
table of shape (N + 1, T) gives every token its own times; a token whose time does not change is left alone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from suffuse.errors import ConfigError
from suffuse.schedule import Schedule

__all__ = [
    "AlignYourSteps", "Beta", "Explicit", "Exponential", "Grid", "Karras", "Leading", "Linear", "Polyexponential",
    "Trailing",
]  # fmt: skip

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
        if not np.isfinite(self.t).all():
            raise ConfigError("grid: a time is NaN or infinite")
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
        _check_steps(steps)
        return self._nodes(schedule, steps)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a frozen value, not an object with a life; batches of a job share one
    def _nodes(self, schedule: Schedule, steps: int) -> Grid:
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
class Polyexponential(_Spaced):
    """log sigma falls as a power of an even ramp; rho 1 is `Exponential`, more spends more steps on little noise.

    `get_sigmas_polyexponential` of k-diffusion, Crowson 2022.

    Raises:
        ConfigError: Unless rho > 0.
    """

    rho: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rho < math.inf:
            raise ConfigError(f"grid.rho={self.rho} must be positive")

    def levels(self, low: float, high: float, count: int) -> Table:
        """Return the levels."""
        ramp: Table = np.linspace(1, 0, count) ** self.rho
        return np.exp(ramp * math.log(high / low) + math.log(low))


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
        _check_steps(steps)
        return Grid(np.append(np.linspace(1.0, self.t_min, steps), 0.0))


@dataclass(frozen=True)
class Trailing:
    """t_i = 1 - i / N: even steps that begin at pure noise and end at the data.

    "Common Diffusion Noise Schedules and Sample Steps are Flawed", Lin et al. 2024, table 2.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid of `steps` intervals."""
        _check_steps(steps)
        return Grid(1.0 - np.arange(steps + 1) / steps)


@dataclass(frozen=True)
class Leading:
    """Every (count // N)-th step of a table of `count`, from the data side: DDIM's and PNDM's spacing.

    It never visits the last step, which is its known fault; `Trailing` does. "Common Diffusion Noise Schedules and
    Sample Steps are Flawed", Lin et al. 2024, table 2.

    Arguments:
        count: Steps of the training table.
        offset: Added to the step numbers; 1 for Stable Diffusion.

    Raises:
        ConfigError: Unless 0 <= offset < count; for more steps than the table has.
    """

    count: int = 1000
    offset: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.offset < self.count:
            raise ConfigError(f"grid: need 0 <= offset < count, not {self.offset} and {self.count}")

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid of `steps` intervals."""
        _check_steps(steps)
        if steps > self.count:
            raise ConfigError(f"sampler.steps={steps} is more than the {self.count} steps of grid=leading; lower it")
        numbers = np.arange(steps)[::-1] * (self.count // steps) + self.offset
        return Grid(np.append(np.minimum((numbers + 1) / self.count, 1.0), 0.0))


@dataclass(frozen=True)
class Beta:
    """Times at even quantiles of a Beta distribution: with both parameters below 1, dense at both ends.

    "Beta Sampling is All You Need", Lee et al. 2024, section 4.

    Raises:
        ConfigError: Unless alpha > 0 and beta > 0.
    """

    alpha: float = 0.6
    beta: float = 0.6

    def __post_init__(self) -> None:
        if not (0 < self.alpha < math.inf and 0 < self.beta < math.inf):
            raise ConfigError(f"grid: need alpha > 0 and beta > 0, not {self.alpha} and {self.beta}")

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid of `steps` intervals."""
        _check_steps(steps)
        return Grid(_beta_quantile(1 - np.arange(steps + 1) / steps, self.alpha, self.beta))


def _beta_quantile(share: Table, a: float, b: float) -> Table:
    """Return the quantiles of Beta(a, b), by bisection of its distribution function."""
    low, high = np.zeros_like(share), np.ones_like(share)
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = _beta_cdf(middle, a, b) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    found = 0.5 * (low + high)
    return np.where(share <= 0, 0.0, np.where(share >= 1, 1.0, found))


def _beta_cdf(x: Table, a: float, b: float) -> Table:
    """Return the regularised incomplete beta function by its continued fraction, "Numerical Recipes", section 6.4."""
    swap = x > (a + 1) / (a + b + 2)  # where it converges faster from the other side
    x = np.clip(np.where(swap, 1 - x, x), 1e-300, 1.0)
    p, q = np.where(swap, b, a), np.where(swap, a, b)
    c, d = np.ones_like(x), 1 / _away(1 - (p + q) * x / (p + 1))
    value = d.copy()
    for m in range(1, 60):
        for top in (m * (q - m) * x / ((p + 2 * m - 1) * (p + 2 * m)),
                    -(p + m) * (p + q + m) * x / ((p + 2 * m) * (p + 2 * m + 1))):  # fmt: skip
            d = 1 / _away(1 + top * d)
            c = _away(1 + top / c)
            value = value * c * d
    factor = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    tail = factor * np.exp(p * np.log(x) + q * np.log1p(-np.minimum(x, 1 - 1e-16))) * value / p
    share: Table = np.where(swap, 1 - tail, tail)
    return share


def _away(x: Table) -> Table:
    return np.where(np.abs(x) < 1e-300, 1e-300, x)


@dataclass(frozen=True)
class Explicit:
    """Levels from a list.

    Arguments:
        sigmas: sigma/alpha of the nodes, falling; a last 0 is a noise-free end.
        resample: For another number of steps than the list has, read levels in between, log-linear in the node's
            number; otherwise that is an error.

    Raises:
        ConfigError: For fewer than two levels, or levels that are not finite, positive and falling; for another number
            of steps.
    """

    sigmas: tuple[float, ...]
    resample: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", tuple(self.sigmas))
        if len(self.sigmas) < 2:
            raise ConfigError(f"grid.sigmas needs at least two levels, not {len(self.sigmas)}")
        for i, value in enumerate(self.sigmas):
            last = i == len(self.sigmas) - 1
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"grid.sigmas[{i}]={value} is not a finite number")
            if value < 0 or (value == 0 and not last) or (i and value >= self.sigmas[i - 1]):
                raise ConfigError(f"grid.sigmas[{i}]={value}: levels must be positive and fall; only the last may be 0")

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid of `steps` intervals on a schedule."""
        _check_steps(steps)
        clean = self.sigmas[-1] == 0
        noisy = np.array(self.sigmas[:-1] if clean else self.sigmas, dtype=np.float64)
        count = steps if clean else steps + 1
        if count != len(noisy):
            if not self.resample:
                raise ConfigError(f"grid.sigmas has {len(self.sigmas) - 1} intervals, not sampler.steps={steps}")
            noisy = _resampled(noisy, count)
        return _at_levels(schedule, noisy, clean)


TABLES = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Levels of 10 steps published for Stable Diffusion 1.5, XL and Video."""


@dataclass(frozen=True)
class AlignYourSteps:
    """Published levels, log-linear in between for other numbers of steps, and a noise-free end.

    "Align Your Steps: Optimizing Sampling Schedules in Diffusion Models", Sabour et al. 2024, appendix. For a model of
    your own, `suffuse tune` finds such levels.

    Arguments:
        model: ``sd15``, ``sdxl`` or ``svd``.

    Raises:
        ConfigError: For another model.
    """

    model: str = "sd15"

    def __post_init__(self) -> None:
        if self.model not in TABLES:
            raise ConfigError(f"grid.model={self.model} is none of {', '.join(TABLES)}")

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid of `steps` intervals on a schedule; the last published level gives way to the clean end."""
        _check_steps(steps)
        return _at_levels(schedule, _resampled(np.array(TABLES[self.model]), steps + 1)[:-1], True)


def _resampled(levels: Table, count: int) -> Table:
    """Return `count` levels, log-linear in the number of the node."""
    if count == 1:
        return levels[:1]
    places = np.linspace(0, len(levels) - 1, count)
    return np.exp(np.interp(places, np.arange(len(levels)), np.log(levels)))


def _at_levels(schedule: Schedule, sigmas: Table, clean: bool) -> Grid:
    """Return the grid whose nodes have these sigma/alpha; those beyond the schedule's ends are moved to them."""
    t = schedule.time(-torch.from_numpy(np.log(sigmas))).numpy()
    t = np.minimum.accumulate(np.clip(t, 0.0, 1.0))
    return Grid(np.append(t, 0.0) if clean else t, clean)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"sampler.steps={steps} must be at least 1")
