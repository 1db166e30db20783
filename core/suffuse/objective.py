r"""Objective: what training minimises.

    L = E_{lam ~ p} [ w(lam) mean |x0 - x0_hat|^2 ]

The weight w and the density p of noise levels are two things, each a function of lam alone: any pair can be combined,
and losses of different parameterisations compared. All weights act on the error of x0:

    x0: 1    eps: snr    v: snr + 1    flow: (1 + e^lam)^2    EDM: snr + 1/d^2    min-SNR: min(snr, gamma)

with snr = e^{2 lam}. A density is given by its quantile function, so that stratified draws cost nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from suffuse.denoiser import Parameterization, Preconditioned
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.process import reference, streams
from suffuse.schedule import Schedule
from suffuse.state import State, by_field, leaves, map_state

__all__ = [
    "Density", "EDMWeight", "EpsWeight", "FlowWeight", "LogNormal", "LogitNormal", "Loss", "MinSNR", "Objective",
    "UniformTime", "UniformWeight", "VWeight", "Weight",
]  # fmt: skip

TIME_STREAM = 100
"""Noise stream of the times; fields use those below."""

LAM_MAX = 15.0
"""Levels beyond are drawn as this one: weights stay finite in float64."""


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
    """snr: the error of eps. "Denoising Diffusion Probabilistic Models", Ho et al. 2020, eq. 14."""

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
    """(1 + e^lam)^2 = 1 / sigma^2 on the straight line: the error of the velocity."""

    def __call__(self, lam: Tensor) -> Tensor:
        """Return (1 + e^lam)^2."""
        return (1 + torch.exp(lam)) ** 2


@dataclass(frozen=True)
class EDMWeight(Weight):
    """snr + 1/d^2 = (sigma^2 + d^2) / (sigma d)^2. "Elucidating the Design Space …", Karras et al. 2022, table 1.

    Arguments:
        sigma_data: Standard deviation d of the data, or a mapping with one per field.

    Raises:
        ConfigError: Unless sigma_data > 0.
    """

    sigma_data: Any = 1.0

    def __post_init__(self) -> None:
        for d in leaves(self.sigma_data):
            if isinstance(d, bool) or not isinstance(d, int | float) or not 0 < d < math.inf:
                raise ConfigError(f"objective.weight.sigma_data={d} must be a positive number")

    def __call__(self, lam: Tensor) -> Tensor:
        """Return e^{2 lam} + 1/d^2."""
        found: Tensor = torch.exp(2 * lam) + self.sigma_data**-2
        return found


@dataclass(frozen=True)
class MinSNR(Weight):
    """min(snr, gamma). "Efficient Diffusion Training via Min-SNR Weighting Strategy", Hang et al. 2023, eq. 8.

    Raises:
        ConfigError: Unless gamma > 0.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ConfigError(f"objective.weight.gamma={self.gamma} must be positive")

    def __call__(self, lam: Tensor) -> Tensor:
        """Return min(e^{2 lam}, gamma)."""
        return torch.exp(2 * lam).clamp(max=self.gamma)


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
class LogNormal(Density):
    """log(sigma/alpha) = -lam is normal. "Elucidating the Design Space …", Karras et al. 2022, table 1.

    On the straight line logit(t) = -lam: the logit-normal density of times of SD3 is this one with other numbers.

    Raises:
        ConfigError: Unless std > 0.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ConfigError(f"objective.density.std={self.std} must be positive")

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """Return -(mean + std Phi^{-1}(u))."""
        lam: Tensor = -(self.mean + self.std * torch.special.ndtri(u))
        return lam

    def log_prob(self, lam: Tensor, schedule: Schedule) -> Tensor:
        """Return the normal log density."""
        z = (-lam - self.mean) / self.std
        return -0.5 * z**2 - math.log(self.std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class LogitNormal(LogNormal):
    """logit of the flow time t = sigma/(alpha+sigma) is normal. "Scaling Rectified Flow Transformers", Esser et al.
    2024, eq. 19."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Loss:
    """A loss.

    Arguments:
        total: Mean over the rows, a scalar.
        per_sample: Shape (B,).
        lam: Noise levels of the rows on the reference schedule, shape (B,).
    """

    total: Tensor
    per_sample: Tensor
    lam: Tensor


@dataclass(frozen=True)
class Objective:
    """Weighted denoising error.

    Arguments:
        weight: Weight of the x0 error.
        density: Density of the noise levels.
        parameterization: What the network predicts; kept here because a config chooses the three together.
        stratified: One draw per equal share of the density over the whole batch, instead of independent draws.
    """

    weight: Weight = field(default_factory=EDMWeight)
    density: Density = field(default_factory=LogNormal)
    parameterization: Parameterization | Mapping[str, Parameterization] | None = None
    stratified: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameterization", by_field(self.parameterization))
        object.__setattr__(self, "weight", by_field(self.weight))

    def levels(self, noise: KeyedNoise, step: int, positions: Tensor, total: int, schedule: Schedule) -> Tensor:
        """Return the noise levels of the rows, shape (B,), float64.

        Arguments:
            noise: One stream per row.
            step: Which draw.
            positions: Places of the rows in the global batch, shape (B,).
            total: Rows of the global batch, over all ranks.
            schedule: The reference schedule.
        """
        like = torch.empty(len(positions), dtype=torch.float64, device=positions.device)
        u = noise.uniform(like, step, TIME_STREAM)
        if self.stratified:
            u = (positions + u) / total
        return self.density.quantile(u, schedule).clamp(-LAM_MAX, LAM_MAX)

    def __call__(
        self,
        denoiser: Preconditioned,
        x0: State,
        cond: Any,
        noise: KeyedNoise,
        step: int = 0,
        positions: Tensor | None = None,
        total: int | None = None,
    ) -> Loss:
        """Return the loss of a batch.

        Arguments:
            denoiser: What is trained.
            x0: Clean state, shape (B, ...).
            cond: Embedded condition.
            noise: One stream per row; everything random comes from it.
            step: Which draw.
            positions: Places of the rows in the global batch; by default their places in this one.
            total: Rows of the global batch; by default B.
        """
        leaf = next(leaves(x0))
        if positions is None:
            positions = torch.arange(leaf.shape[0], device=leaf.device)
        process = denoiser.process
        schedule = reference(process).schedule
        lam = self.levels(noise, step, positions, total or leaf.shape[0], schedule)
        t = schedule.time(lam)
        eps = map_state(lambda x, p, stream: p.draw(x, noise, step, stream), x0, process, streams(process))
        away, out = denoiser.residual(x0, eps, t, cond)

        def weighted(r: Tensor, scale: Tensor, p: Any, weight: Weight) -> Tensor:
            factor = weight(p.schedule.lam(t)) * scale**2
            loss: Tensor = factor.to(torch.float32) * p.space.mean(r.float() ** 2)
            return loss

        per_field: State = map_state(weighted, away, out, process, self.weight)
        per_sample = torch.stack(list(leaves(per_field))).sum(0)
        return Loss(per_sample.mean(), per_sample, lam)
