r"""Schedule: how much data and how much noise there is at a time.

A state at time t in [0, 1] (0 = data, 1 = noise) is

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I),

and its noise level is the half log-SNR lam = log(alpha / sigma). Everything a solver or a loss needs is a function of
lam; t only names a point of a schedule. All arithmetic is float64 and finite wherever the mathematics is: lam = +inf
(no noise) and lam = -inf (no data) are legal and round-trip.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from suffuse.errors import ConfigError

__all__ = [
    "EDM", "VE", "AlphaSigma", "Polynomial", "RectifiedFlow", "Schedule", "Shifted", "VPCosine", "VPLinear",
    "VPSigmoid", "as_float64", "resolution_shift", "token_shift",
]  # fmt: skip


class AlphaSigma(NamedTuple):
    """Signal and noise scale at a time, float64, of the shape of t."""

    alpha: Tensor
    sigma: Tensor


def as_float64(value: float | Tensor) -> Tensor:
    """Return `value` as a float64 tensor where it is."""
    return torch.as_tensor(value, dtype=torch.float64, device=value.device if isinstance(value, Tensor) else None)


class Schedule(ABC):
    """A pair of functions alpha(t), sigma(t) whose half log-SNR falls strictly with t."""

    @abstractmethod
    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return alpha and sigma at t, of any shape."""

    @abstractmethod
    def time(self, lam: float | Tensor) -> Tensor:
        """Return t with ``lam(t) == lam``: the exact inverse."""

    def lam(self, t: float | Tensor) -> Tensor:
        """Return the half log-SNR log(alpha / sigma) at t."""
        alpha, sigma = self(t)
        return alpha.log() - sigma.log()

    def rates(self, t: float | Tensor) -> AlphaSigma:
        """Return d alpha / dt and d sigma / dt at t."""
        at = as_float64(t)
        both: tuple[Any, ...] = torch.func.jvp(lambda s: tuple(self(s)), (at,), (torch.ones_like(at),))
        return AlphaSigma(*both[1])

    def shift(self, factor: float) -> Shifted:
        """Return this schedule with its log-SNR lowered by log(factor).

        SD3's timestep shift, the resolution shift ``mu`` (factor = e^mu) and simple diffusion's shift are all this:
        lam -> lam - log(factor).
        """
        return Shifted(self, factor)


@dataclass(frozen=True)
class VPLinear(Schedule):
    r"""Variance preserving, rate linear in time.

    log alpha(t) = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2,  sigma^2 = 1 - alpha^2.

    "Score-Based Generative Modeling through SDEs", Song et al. 2021, eq. 29 and 33.

    Raises:
        ConfigError: Unless 0 < beta_min <= beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ConfigError(f"schedule: need 0 < beta_min <= beta_max, not {self.beta_min} and {self.beta_max}")

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return alpha and sigma at t."""
        t = as_float64(t)
        log_alpha = -t * (0.25 * (self.beta_max - self.beta_min) * t + 0.5 * self.beta_min)
        return AlphaSigma(log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt())

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t; the quadratic is solved in the form that does not cancel."""
        minus_log_alpha = 0.5 * torch.nn.functional.softplus(-2 * as_float64(lam), threshold=700)
        a, b = 0.25 * (self.beta_max - self.beta_min), 0.5 * self.beta_min
        root = 2 * minus_log_alpha / (b + (b * b + 4 * a * minus_log_alpha).sqrt())
        # At lam = -inf the fraction is inf / inf; its limit is infinite.
        return torch.where(minus_log_alpha.isinf(), minus_log_alpha, root)


@dataclass(frozen=True)
class VPCosine(Schedule):
    r"""Variance preserving, alpha a cosine.

    alpha(t) = cos(phi) / cos(phi_0),  phi = (t + s) / (1 + s) pi / 2,  phi_0 = phi(0),  s = `offset`.

    "Improved Denoising Diffusion Probabilistic Models", Nichol and Dhariwal 2021, eq. 17 (offset 0.008); offset 0 is
    the plain cosine of "Progressive Distillation", Salimans and Ho 2022.

    Raises:
        ConfigError: Unless 0 <= offset < 1.
    """

    offset: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.offset < 1:
            raise ConfigError(f"schedule: offset={self.offset} must be in [0, 1)")

    @property
    def _phi0(self) -> float:
        return self.offset / (1 + self.offset) * math.pi / 2

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return alpha and sigma at t; alpha(1) is exactly 0."""
        t = as_float64(t)
        quarter = math.pi / 2 / (1 + self.offset)
        # cos(phi) as a sine of what is left to pi/2, and 1 - cos^2/cos^2 as a product of sines: nothing cancels.
        alpha = torch.sin(quarter * (1 - t)) / math.cos(self._phi0)
        squared = torch.sin(quarter * t) * torch.sin(quarter * t + 2 * self._phi0)
        return AlphaSigma(alpha, squared.clamp(min=0).sqrt() / math.cos(self._phi0))

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t."""
        lam = as_float64(lam)
        alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
        sine = (math.sin(self._phi0) ** 2 + (sigma * math.cos(self._phi0)) ** 2).sqrt()
        phi = torch.atan2(sine, alpha * math.cos(self._phi0))
        if self.offset:
            # sin(phi - phi_0) sin(phi + phi_0) = sigma^2 cos^2(phi_0) keeps the digits near t = 0.
            sine = (sigma * math.cos(self._phi0)) ** 2 / torch.sin(phi + self._phi0)
            phi = torch.atan2(sine, torch.cos(phi - self._phi0))
        return phi * 2 / math.pi * (1 + self.offset)


@dataclass(frozen=True)
class VPSigmoid(Schedule):
    r"""Variance preserving, alpha^2 a falling sigmoid.

    alpha^2(t) = (s(end) - s(start + t (end - start))) / (s(end) - s(start)),  s(v) = sigmoid(v / temperature).

    "Scalable Adaptive Computation for Iterative Generation", Jabri et al. 2023, appendix B; "On the Importance of Noise
    Scheduling for Diffusion Models", Chen 2023, algorithm 1.

    Raises:
        ConfigError: Unless start < end and temperature > 0.
    """

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not -math.inf < self.start < self.end < math.inf:
            raise ConfigError(f"schedule: need start < end, not {self.start} and {self.end}")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"schedule.temperature={self.temperature} must be positive")

    @property
    def _ends(self) -> tuple[float, float]:
        return self.start / self.temperature, self.end / self.temperature

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return alpha and sigma at t; differences of sigmoids as products, so nothing cancels."""
        a, b = self._ends
        t = as_float64(t)
        v = a + t * (b - a)
        whole = _sigmoid(b) * _sigmoid(-a) * -math.expm1(a - b)
        left = _sigmoid(b) * torch.sigmoid(-v) * -torch.expm1((t - 1) * (b - a))
        gone = torch.sigmoid(v) * _sigmoid(-a) * -torch.expm1(-t * (b - a))
        return AlphaSigma((left / whole).clamp(min=0).sqrt(), (gone / whole).clamp(min=0).sqrt())

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t, measured from the nearer end."""
        lam = as_float64(lam)
        a, b = self._ends
        whole = _sigmoid(b) * _sigmoid(-a) * -math.expm1(a - b)
        left, gone = torch.sigmoid(2 * lam) * whole, torch.sigmoid(-2 * lam) * whole
        early = torch.log1p(gone / _sigmoid(a)) - torch.log1p(-gone / _sigmoid(-a))
        late = torch.log1p(-left / _sigmoid(b)) - torch.log1p(left / _sigmoid(-b))
        return torch.where(lam > 0, early / (b - a), 1 + late / (b - a))


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding, sigma geometric in time: alpha = 1, sigma(t) = sigma_min^(1-t) sigma_max^t.

    "Score-Based Generative Modeling through SDEs", Song et al. 2021, eq. 30. Defined beyond [0, 1], so that it can be
    shifted.

    Raises:
        ConfigError: Unless 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return alpha = 1 and sigma at t."""
        t = as_float64(t)
        span = math.log(self.sigma_max / self.sigma_min)
        return AlphaSigma(torch.ones_like(t), torch.exp(math.log(self.sigma_min) + t * span))

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t."""
        return (-as_float64(lam) - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(Schedule):
    r"""Variance exploding, sigma^(1/rho) linear in time.

    alpha = 1,  sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    "Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al. 2022, eq. 5.

    Raises:
        ConfigError: Unless 0 < sigma_min < sigma_max and rho >= 1.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        if not 1 <= self.rho < math.inf:
            raise ConfigError(f"schedule: rho={self.rho} must be at least 1")

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return alpha = 1 and sigma at t."""
        t = as_float64(t)
        low, high = self._ends
        return AlphaSigma(torch.ones_like(t), (low + t * (high - low)).clamp(min=0) ** self.rho)

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t; below 0 for less noise than sigma_min."""
        low, high = self._ends
        return (torch.exp(-as_float64(lam) / self.rho) - low) / (high - low)


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """The straight line: alpha = 1 - t, sigma = t.

    "Flow Straight and Fast", Liu et al. 2023, eq. 1; "Flow Matching for Generative Modeling", Lipman et al. 2023,
    eq. 20 with sigma_min = 0.
    """

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return 1 - t and t."""
        t = as_float64(t)
        return AlphaSigma(1 - t, t.clone())

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t = sigmoid(-lam)."""
        return torch.sigmoid(-as_float64(lam))


@dataclass(frozen=True)
class Polynomial(Schedule):
    """alpha = (1 - t)^power, sigma = 1 - alpha; power 1 is the straight line in time, as every power is in space.

    "Flow Matching Guide and Code", Lipman et al. 2024, section 4.8.2 (convex schedulers), with time reversed.

    Raises:
        ConfigError: Unless power > 0.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ConfigError(f"schedule.power={self.power} must be positive")

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return (1 - t)^power and what is left to 1."""
        log = self.power * torch.log1p(-as_float64(t))
        return AlphaSigma(log.exp(), -torch.expm1(log))

    def rates(self, t: float | Tensor) -> AlphaSigma:
        """Return the derivatives, finite at t = 1 too for power >= 1."""
        rate = self.power * (1 - as_float64(t)) ** (self.power - 1)
        return AlphaSigma(-rate, rate)

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t."""
        return -torch.expm1(torch.nn.functional.logsigmoid(as_float64(lam)) / self.power)


@dataclass(frozen=True)
class Shifted(Schedule):
    """A schedule with lam lowered by log(factor): more noise at the same time for factor > 1.

    "Scaling Rectified Flow Transformers", Esser et al. 2024, eq. 23; "Simple Diffusion", Hoogeboom et al. 2023, eq. 4.

    Raises:
        ConfigError: Unless factor > 0.
    """

    base: Schedule
    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ConfigError(f"schedule: shift factor={self.factor} must be positive")

    def __call__(self, t: float | Tensor) -> AlphaSigma:
        """Return the base's alpha and sigma where its log-SNR is lower by log(factor)."""
        return self.base(self.base.time(self.base.lam(t) - math.log(self.factor)))

    def lam(self, t: float | Tensor) -> Tensor:
        """Return the base's lam minus log(factor)."""
        return self.base.lam(t) - math.log(self.factor)

    def time(self, lam: float | Tensor) -> Tensor:
        """Return t."""
        return self.base.time(as_float64(lam) + math.log(self.factor))


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ConfigError(f"schedule: need 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > 0 else math.exp(value) / (1 + math.exp(value))


def resolution_shift(base: Schedule, size: float, base_size: float = 64.0) -> Shifted:
    """Return a schedule for pictures `size` wide with the noise that `base` has at `base_size`.

    Neighbouring pixels of a larger picture say the same, so it takes more noise to hide as much: factor = size /
    base_size. "Simple Diffusion", Hoogeboom et al. 2023, eq. 4 (log-SNR + 2 log(base_size / size), here halved).

    Raises:
        ConfigError: Unless both sizes are positive.
    """
    if not (0 < size < math.inf and 0 < base_size < math.inf):
        raise ConfigError(f"schedule: size={size} and base_size={base_size} must be positive")
    return base.shift(size / base_size)


def token_shift(
    base: Schedule, tokens: int, low_tokens: int = 256, high_tokens: int = 4096, low: float = 0.5, high: float = 1.15
) -> Shifted:
    """Return a schedule shifted by e^mu, mu linear in the number of tokens: the dynamic shift of Flux and SD3.

    "Scaling Rectified Flow Transformers", Esser et al. 2024, section 5.3.2, with the line through (low_tokens, low) and
    (high_tokens, high) that Flux takes.

    Raises:
        ConfigError: Unless tokens >= 1 and low_tokens < high_tokens.
    """
    if tokens < 1 or not 0 < low_tokens < high_tokens:
        raise ConfigError(f"schedule: need tokens >= 1 and 0 < low_tokens < high_tokens, not {tokens}, {low_tokens}, …")
    return base.shift(math.exp(low + (high - low) * (tokens - low_tokens) / (high_tokens - low_tokens)))
