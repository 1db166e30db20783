r"""Density: which noise levels training sees, and how often.

A density of half log-SNRs is given by its quantile function, so that stratified draws cost nothing, and by its log
density, so that any weight can be put against any measure:

    lam = Q(u),  u ~ U(0, 1),    log p(Q(u)) = -log |Q'(u)|.

Q falls with u: like time, a larger share is more noise.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.schedule import Schedule
from suffuse.weight import check_mode, mode_share, mode_slope, mode_time

__all__ = [
    "CosMap", "Density", "LogNormal", "LogNormalMixture", "LogStudent", "LogitNormal", "Mode", "PowerTime",
    "UniformLogSNR", "UniformTime",
]  # fmt: skip


class Density(ABC):
    """A density of noise levels."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return lam at the share u in (0, 1), float64: lam falls as u, like time, grows."""

    @abstractmethod
    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return the log density of lam."""


@dataclass(frozen=True)
class UniformTime(Density):
    """Every time of the schedule as often as another."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return lam(u)."""
        return schedule.lam(u)

    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return log |dt / dlam|, and -inf outside the schedule's times."""
        t = schedule.time(lam)
        (alpha, sigma), (d_alpha, d_sigma) = schedule(t), schedule.rates(t)
        density = -(d_alpha / alpha - d_sigma / sigma).abs().log()
        return torch.where((t >= 0) & (t <= 1), density, torch.full_like(density, -math.inf))


@dataclass(frozen=True)
class PowerTime(Density):
    """1 - t ~ Beta(power, 1): more often near the data, where details are decided.

    The density of "SemlaFlow", Irwin et al. 2025, section 3.3 (there Beta(2, 1)); power 1 is `UniformTime`.

    Raises:
        ConfigError: Unless power > 0.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.power, bool) or not 0 < self.power < math.inf:
            raise ConfigError(f"objective.density.power={self.power} must be a positive number")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return lam(1 - (1 - u)^{1 / power}): a rising u is a rising time, as in `UniformTime`."""
        return schedule.lam(1 - (1 - u) ** (1 / self.power))

    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return the log-density of lam."""
        t = schedule.time(lam)
        return UniformTime().log_prob(lam, schedule) + math.log(self.power) + (self.power - 1) * torch.log1p(-t)


@dataclass(frozen=True)
class UniformLogSNR(Density):
    """Every lam in an interval as often as another: the measure of the ELBO.

    "Understanding Diffusion Objectives as the ELBO", Kingma and Gao 2023, section 3; the default interval is that of
    "Simple Diffusion", Hoogeboom et al. 2023: log-SNR from -15 to 15.

    Arguments:
        low: Lowest half log-SNR.
        high: Highest half log-SNR.

    Raises:
        ConfigError: Unless low < high, both finite.
    """

    low: float = -7.5
    high: float = 7.5

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(f"objective.density: need low < high, both finite, not {self.low} and {self.high}")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return high - u (high - low)."""
        return self.high - u * (self.high - self.low)

    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return -log(high - low), and -inf outside."""
        inside = (lam >= self.low) & (lam <= self.high)
        return torch.where(inside, -math.log(self.high - self.low), torch.full_like(lam, -math.inf))


@dataclass(frozen=True)
class LogNormal(Density):
    """log(sigma/alpha) = -lam is normal. "Elucidating the Design Space …", Karras et al. 2022, table 1.

    On the straight line logit(t) = -lam: the logit-normal density of times of SD3 is this one with other numbers.

    Raises:
        ConfigError: Unless std > 0.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_positive("std", self.std)

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return -(mean + std Phi^{-1}(u))."""
        lam: Tensor = -(self.mean + self.std * torch.special.ndtri(u))
        return lam

    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return the normal log density."""
        z = (-lam - self.mean) / self.std
        return -0.5 * z**2 - math.log(self.std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class LogNormalMixture(Density):
    """log(sigma/alpha) = -lam is drawn from one of several normals: for data whose layout is decided at one noise level
    and whose edges at another.

    Arguments:
        means: Of each normal.
        stds: Of each normal.
        shares: How often each is drawn, brought to a sum of 1.

    Raises:
        ConfigError: Unless there is one positive std and one positive share for every mean.
    """

    means: Sequence[float] = (2.2, -0.3)
    stds: Sequence[float] = (1.0, 1.2)
    shares: Sequence[float] = (0.6, 0.4)

    def __post_init__(self) -> None:
        lengths = {len(self.means), len(self.stds), len(self.shares)}
        if len(lengths) > 1 or lengths == {0}:
            raise ConfigError(
                f"objective.density: need as many means {list(self.means)} as stds {list(self.stds)} and shares "
                f"{list(self.shares)}, and one at least"
            )
        for std, share in zip(self.stds, self.shares, strict=True):
            _check_positive("stds", std)
            _check_positive("shares", share)

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return -x with F(x) = u, by cubic interpolation in Phi^{-1}(u), in which tails are straight."""
        x, slope = (torch.from_numpy(table).to(u.device) for table in _mixture_table(self._parts()))
        width = 2 * _FAR / (len(x) - 1)
        place = (torch.special.ndtri(u.to(torch.float64)).clamp(-_FAR, _FAR) + _FAR) / width
        cell = place.long().clamp(max=len(x) - 2)
        s = place - cell
        low = (1 + 2 * s) * x[cell] + s * width * slope[cell]
        high = (3 - 2 * s) * x[cell + 1] + (s - 1) * width * slope[cell + 1]
        lam: Tensor = -((1 - s) ** 2 * low + s**2 * high)
        return lam

    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return the log of the weighted sum of the normals' densities."""
        return torch.logsumexp(
            torch.stack([LogNormal(m, s).log_prob(lam, schedule) + math.log(w) for m, s, w in self._parts()]), 0
        )

    def _parts(self) -> tuple[tuple[float, float, float], ...]:
        """Return mean, std and share of each normal."""
        whole = sum(self.shares)
        return tuple((m, s, w / whole) for m, s, w in zip(self.means, self.stds, self.shares, strict=True))


_FAR = 8.2
"""Phi^{-1} of the nearest share to 0 and 1 that is told from them."""


@functools.lru_cache(maxsize=8)
def _mixture_table(parts: tuple[tuple[float, float, float], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return x and dx/dz at even z in [-`_FAR`, `_FAR`] with F(x) = Phi(z), F a mixture of normals, by bisection.

    The tail that is compared is the smaller one, as a logarithm: no digit of either is lost.
    """
    z = torch.linspace(-_FAR, _FAR, 4097, dtype=torch.float64)
    mean, std, share = (torch.tensor(column, dtype=torch.float64)[:, None] for column in zip(*parts, strict=True))
    side = torch.where(z <= 0, 1.0, -1.0)
    wanted = torch.special.log_ndtr(-z.abs())
    ends = mean + std * z
    low, high = ends.amin(0), ends.amax(0)
    for _ in range(60):
        middle = (low + high) / 2
        tail = torch.logsumexp(share.log() + torch.special.log_ndtr(side * (middle - mean) / std), 0)
        rises = side * (wanted - tail) > 0
        low, high = torch.where(rises, middle, low), torch.where(rises, high, middle)
    x = (low + high) / 2
    # dx/dz = phi(z) / f(x); the factor (2 pi)^{-1/2} is in both.
    density = torch.logsumexp(share.log() - std.log() - 0.5 * ((x - mean) / std) ** 2, 0)
    return x.numpy(), torch.exp(-0.5 * z**2 - density).numpy()


@dataclass(frozen=True)
class LogitNormal(LogNormal):
    """logit of the flow time t = sigma/(alpha+sigma) is normal. "Scaling Rectified Flow Transformers", Esser et al.
    2024, eq. 19."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Mode(Density):
    """Flow times f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u) with u uniform: heavy tails, no density of 0 anywhere.

    "Scaling Rectified Flow Transformers", Esser et al. 2024, eq. 20.

    Arguments:
        scale: s: 0 is uniform in flow time, positive prefers the middle, negative the ends.

    Raises:
        ConfigError: Unless scale is in [-1, 2/(pi - 2)).
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        check_mode("objective.density.scale", self.scale)

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return log((1 - t) / t) at t = f(1 - u)."""
        return mode_time(1 - u, self.scale).log() - mode_time(u, self.scale).log()

    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return log(t (1 - t) / f')."""
        slope = mode_slope(mode_share(lam, self.scale), self.scale)
        return torch.nn.functional.logsigmoid(lam) + torch.nn.functional.logsigmoid(-lam) - slope.log()


@dataclass(frozen=True)
class CosMap(Density):
    """Uniform times of the cosine schedule, on any schedule: lam = -log tan(pi u / 2), p(lam) = sech(lam) / pi.

    "Improved Denoising Diffusion Probabilistic Models", Nichol and Dhariwal 2021, eq. 17 without its offset; CosMap in
    "Scaling Rectified Flow Transformers", Esser et al. 2024, eq. 21.
    """

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return -log tan(pi u / 2), as a ratio of sines so that neither end loses digits."""
        return torch.sin(math.pi / 2 * (1 - u)).log() - torch.sin(math.pi / 2 * u).log()

    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return log(sech(lam) / pi)."""
        far = lam.abs()
        return math.log(2 / math.pi) - far - torch.log1p(torch.exp(-2 * far))


@dataclass(frozen=True)
class LogStudent(Density):
    """log(sigma/alpha) = -lam = mean + std T with Student's T: a log-normal that also visits the far levels.

    "Truncated Consistency Models", Lee et al. 2024, who draw times so.

    Arguments:
        mean: Location.
        std: Scale of T; its standard deviation is sqrt(df / (df - 2)) times that.
        df: Degrees of freedom; infinity would be the log-normal, 1 is Cauchy's.

    Raises:
        ConfigError: Unless std > 0 and df is in [0.001, 1000].
    """

    mean: float = -1.2
    std: float = 1.2
    df: float = 3.0

    def __post_init__(self) -> None:
        _check_positive("std", self.std)
        if not 0.001 <= self.df <= 1000:
            raise ConfigError(f"objective.density.df={self.df} must be in [0.001, 1000]; LogNormal is the limit")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return -(mean + std F^{-1}(u)), F^{-1} by cubic interpolation of asinh(x) in log F."""
        log_cdf, place, slope = (torch.from_numpy(table).to(u.device) for table in student_table(self.df))
        y = torch.minimum(u, 1 - u).log().to(torch.float64).clamp(float(log_cdf[0]), float(log_cdf[-1]))
        cell = torch.searchsorted(log_cdf, y.contiguous()).clamp(1, len(log_cdf) - 1)
        start, width = log_cdf[cell - 1], log_cdf[cell] - log_cdf[cell - 1]
        s = (y - start) / width
        low = (1 + 2 * s) * place[cell - 1] + s * width * slope[cell - 1]
        high = (3 - 2 * s) * place[cell] + (s - 1) * width * slope[cell]
        x = torch.sinh((1 - s) ** 2 * low + s**2 * high)
        return -(self.mean + self.std * torch.where(u < 0.5, x, -x))

    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return Student's log density."""
        z = (-lam - self.mean) / self.std
        return _student(self.df) - 0.5 * (self.df + 1) * torch.log1p(z**2 / self.df) - math.log(self.std)


def _student(df: float) -> float:
    """Return the log of Student's density at 0."""
    return math.lgamma(0.5 * (df + 1)) - math.lgamma(0.5 * df) - 0.5 * math.log(df * math.pi)


@functools.lru_cache(maxsize=8)
def student_table(df: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log F, s and ds / d log F at rising points s = asinh(x) <= 0 of Student's distribution.

    In s both tails of F are exponentials, so a fixed step resolves them: Gauss-Legendre sums of the density per cell,
    added to the tail below the first point, where dF/ds = df F. That point, x = -e^60, is beyond any noise level.
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    edges = np.linspace(-60.0, 0.0, 8193)
    half = 0.5 * (edges[1] - edges[0])

    def density(s: np.ndarray) -> np.ndarray:
        """Return the density of s; log cosh and log(1 + x^2/df) without overflow."""
        far = np.abs(s)
        log_cosh = far + np.log1p(np.exp(-2 * far)) - math.log(2)
        log_square = 2 * (far + np.log(-np.expm1(-2 * far) + 1e-300) - math.log(2)) - math.log(df)
        density: np.ndarray = np.exp(_student(df) - 0.5 * (df + 1) * np.logaddexp(0, log_square) + log_cosh)
        return density

    cells = (density(edges[:-1, None] + half * (1 + nodes)) * weights).sum(1) * half
    below = density(edges[:1]) / df
    cdf = np.concatenate([below, below + np.cumsum(cells)])
    keep = cdf > 1e-16
    cdf, edges = cdf[keep], edges[keep]
    return np.log(cdf), edges, cdf / density(edges)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"objective.density.{name}={value} must be positive")
