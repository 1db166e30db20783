r"""Weight: how much the error of x0 counts at a noise level.

    L = E_{lam ~ p} [ w(lam) mean |x0 - x0_hat|^2 ],    snr = e^{2 lam},    t = 1 / (1 + e^lam)

t is the flow time sigma / (alpha + sigma). All weights act on the error of x0, whatever the network predicts, so that
losses of different parameterisations compare; where a paper weights another error, the map is

    |eps error|^2 = snr |x0 error|^2,    |v error|^2 = (snr + 1) |x0 error|^2,    |u error|^2 = |x0 error|^2 / t^2.

A weight is relative to the density p that levels are drawn from. Papers that weight against d lam (the ELBO's measure)
or against uniform times are the same objective only with that density, or with ``Objective(importance=True)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.state import leaves

__all__ = [
    "P2", "CosMapWeight", "EDMWeight", "EpsWeight", "FlowWeight", "MinSNR", "ModeWeight", "SigmoidWeight", "SoftMinSNR",
    "UniformWeight", "VWeight", "Weight",
]  # fmt: skip


class Weight(ABC):
    """A weight of the x0 error as a function of the half log-SNR."""

    @abstractmethod
    def __call__(self, lam: Tensor) -> Tensor:
        """Return w(lam), float64."""


@dataclass(frozen=True)
class UniformWeight(Weight):
    """1: the error of x0 itself."""

    def __call__(self, lam: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(lam)


@dataclass(frozen=True)
class EpsWeight(Weight):
    """snr: the error of eps. "Denoising Diffusion Probabilistic Models", Ho et al. 2020, eq. 14.

    Against d lam it is the ELBO: "Variational Diffusion Models", Kingma et al. 2021, eq. 18.
    """

    def __call__(self, lam: Tensor) -> Tensor:
        """Return e^{2 lam}."""
        return torch.exp(2 * lam)


@dataclass(frozen=True)
class VWeight(Weight):
    """snr + 1: the error of v. "Progressive Distillation", Salimans and Ho 2022, section 4."""

    def __call__(self, lam: Tensor) -> Tensor:
        """Return e^{2 lam} + 1."""
        return torch.exp(2 * lam) + 1


@dataclass(frozen=True)
class FlowWeight(Weight):
    """(1 + e^lam)^2 = 1 / t^2: the error of the velocity, SD3's ``sigma_sqrt``."""

    def __call__(self, lam: Tensor) -> Tensor:
        """Return (1 + e^lam)^2."""
        return (1 + torch.exp(lam)) ** 2


@dataclass(frozen=True)
class EDMWeight(Weight):
    """snr + 1/d^2 = (sigma^2 + d^2) / (sigma d)^2. "Elucidating the Design Space …", Karras et al. 2022, table 1.

    Arguments:
        sigma_data: Standard deviation d of the data, or a mapping with one per field.
        most: Highest snr that counts, or None: a network that predicts x0 itself has an error of its own there, which
            a growing weight would make the whole of the loss.

    Raises:
        ConfigError: Unless sigma_data > 0 and most > 0.
    """

    sigma_data: Any = 1.0
    most: float | None = None

    def __post_init__(self) -> None:
        for d in leaves(self.sigma_data):
            _check_positive("sigma_data", d)
        if self.most is not None:
            _check_positive("most", self.most)

    def __call__(self, lam: Tensor) -> Tensor:
        """Return min(e^{2 lam}, most) + 1/d^2."""
        snr = torch.exp(2 * lam)
        found: Tensor = (snr if self.most is None else snr.clamp(max=self.most)) + self.sigma_data**-2
        return found


@dataclass(frozen=True)
class MinSNR(Weight):
    """min(snr, gamma). "Efficient Diffusion Training via Min-SNR Weighting Strategy", Hang et al. 2023, eq. 8.

    Raises:
        ConfigError: Unless gamma > 0.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check_positive("gamma", self.gamma)

    def __call__(self, lam: Tensor) -> Tensor:
        """Return min(e^{2 lam}, gamma)."""
        return torch.exp(2 * lam).clamp(max=self.gamma)


@dataclass(frozen=True)
class SoftMinSNR(Weight):
    """snr gamma / (snr + gamma) = 1 / (sigma^2 + 1/gamma): min-SNR without the corner.

    "Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers", Crowson et al. 2024,
    section 3.3, with gamma 4; k-diffusion's ``soft-min-snr`` is gamma = 1/sigma_data^2.

    Raises:
        ConfigError: Unless gamma > 0.
    """

    gamma: float = 4.0

    def __post_init__(self) -> None:
        _check_positive("gamma", self.gamma)

    def __call__(self, lam: Tensor) -> Tensor:
        """Return gamma / (1 + gamma e^{-2 lam})."""
        return self.gamma * torch.sigmoid(2 * lam - math.log(self.gamma))


@dataclass(frozen=True)
class P2(Weight):
    """snr / (k + snr)^gamma: their 1 / (k + snr)^gamma multiplies the eps error.

    "Perception Prioritized Training of Diffusion Models", Choi et al. 2022, eq. 8.

    Arguments:
        k: Where the weight starts to fall.
        gamma: How fast; 0 is the eps error, 1 nearly the x0 error at high SNR.

    Raises:
        ConfigError: Unless k > 0 and gamma >= 0.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("k", self.k)
        if not 0 <= self.gamma < math.inf:
            raise ConfigError(f"objective.weight.gamma={self.gamma} must be at least 0")

    def __call__(self, lam: Tensor) -> Tensor:
        """Return e^{2 lam} / (k + e^{2 lam})^gamma."""
        snr = torch.exp(2 * lam)
        return snr / (self.k + snr) ** self.gamma


@dataclass(frozen=True)
class SigmoidWeight(Weight):
    r"""snr sigmoid(bias - 2 lam) = e^bias sigmoid(2 lam - bias).

    "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation" (VDM++), Kingma and Gao 2023, and
    "Simpler Diffusion (SiD2)", Hoogeboom et al. 2024, minimise

        1/2 integral of sigmoid(bias - l) |eps error|^2 d l,    l = 2 lam the log-SNR,

    so this weight is theirs when levels are drawn uniformly in log-SNR, or with importance weights; drawn from another
    density p, the objective is theirs times p. As a function of lam it is soft-min-SNR with gamma = e^bias.

    Arguments:
        bias: Log-SNR at which the weight has fallen to half; theirs is 2 in VDM++, -1 … -3 for larger images in SiD2.

    Raises:
        ConfigError: Unless bias is finite.
    """

    bias: float = 2.0

    def __post_init__(self) -> None:
        if not -100 < self.bias < 100:
            raise ConfigError(f"objective.weight.bias={self.bias} must be a log-SNR between -100 and 100")

    def __call__(self, lam: Tensor) -> Tensor:
        """Return e^bias sigmoid(2 lam - bias)."""
        return math.exp(self.bias) * torch.sigmoid(2 * lam - self.bias)


@dataclass(frozen=True)
class CosMapWeight(Weight):
    """q(t) / t^2 with q(t) = 2 / (pi (1 - 2 t + 2 t^2)): the velocity's error, tilted to the middle times.

    "Scaling Rectified Flow Transformers", Esser et al. 2024, eq. 21, where q is a density of times. With uniform times
    of the straight line this is the objective of `suffuse.density.CosMap` with the velocity's weight, by weight
    instead of by draws.
    """

    def __call__(self, lam: Tensor) -> Tensor:
        """Return 2 / (pi (1 - 2 t + 2 t^2) t^2)."""
        t = torch.sigmoid(-lam)
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2)) * (1 + torch.exp(lam)) ** 2


@dataclass(frozen=True)
class ModeWeight(Weight):
    """q(t) / t^2 with the mode density q: as `CosMapWeight` is to its density.

    "Scaling Rectified Flow Transformers", Esser et al. 2024, eq. 20.

    Arguments:
        scale: See `suffuse.density.Mode`.

    Raises:
        ConfigError: Unless scale is in [-1, 2/(pi - 2)).
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        check_mode("objective.weight.scale", self.scale)

    def __call__(self, lam: Tensor) -> Tensor:
        """Return 1 / (g'(u) t^2) with g(u) = t, see `mode_share`."""
        return (1 + torch.exp(lam)) ** 2 / mode_slope(mode_share(lam, self.scale), self.scale)


def mode_time(u: Tensor, scale: float) -> Tensor:
    """Return g(u) = u + s (u - sin^2(pi u / 2)), the flow time at the share u; 1 - g(u) = g(1 - u)."""
    return u + scale * (u - torch.sin(math.pi / 2 * u) ** 2)


def mode_slope(u: Tensor, scale: float) -> Tensor:
    """Return g'(u)."""
    return 1 + scale * (1 - math.pi / 2 * torch.sin(math.pi * u))


def mode_share(lam: Tensor, scale: float) -> Tensor:
    """Return the share u or 1 - u, the one below 1/2, whose flow time has the half log-SNR lam or -lam."""
    t = torch.sigmoid(-lam.abs())  # the nearer end: no digits are lost to 1 - t
    low, high = torch.zeros_like(t), torch.full_like(t, 0.5)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = mode_time(middle, scale) < t
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def check_mode(key: str, scale: float) -> None:
    """Raise `ConfigError` unless g rises strictly."""
    if not -1 <= scale < 2 / (math.pi - 2):
        raise ConfigError(f"{key}={scale} must be in [-1, {2 / (math.pi - 2):.4f}), where the map of times rises")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"objective.weight.{name}={value} must be a positive number")
