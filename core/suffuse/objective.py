r"""Objective: what training minimises.

    L = E_{lam ~ p} sum over fields of c [ w(lam) mean |x0 - x0_hat|^2 ]

The weight w and the density p of noise levels are two things, each a function of lam alone (`suffuse.weight`,
`suffuse.density`): any pair can be combined, and losses of different parameterisations compared. All weights act on the
error of x0. Against the measure d lam, as the ELBO is written, the density only decides the variance:

    integral of w(lam) l(lam) d lam = E_{lam ~ p} [ w(lam) / p(lam) l(lam) ]        (``importance=True``).

c is a constant per field; a learned weight (`suffuse.uncertainty`) and a coupling of noise and data
(`suffuse.coupling`) are options beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from suffuse.categorical import Categorical
from suffuse.coupling import coupling
from suffuse.denoiser import Parameterization, Preconditioned
from suffuse.density import (
    CosMap,
    Density,
    LogitNormal,
    LogNormal,
    LogNormalMixture,
    LogStudent,
    Mode,
    PowerTime,
    UniformLogSNR,
    UniformTime,
)  # fmt: skip
from suffuse.errors import ConfigError, suggest
from suffuse.levels import CLEAN, TokenLevels
from suffuse.noise import KeyedNoise, mix
from suffuse.process import Process, bound, reference, rows, streams
from suffuse.schedule import Schedule
from suffuse.state import State, by_field, leaves, map_state
from suffuse.uncertainty import Uncertainty
from suffuse.weight import (
    P2,
    CosMapWeight,
    EDMWeight,
    EpsWeight,
    FlowWeight,
    MinSNR,
    ModeWeight,
    SigmoidWeight,
    SoftMinSNR,
    UniformWeight,
    VWeight,
    Weight,
)  # fmt: skip

__all__ = [
    "P2",
    "CosMap",
    "CosMapWeight",
    "Density",
    "EDMWeight",
    "EpsWeight",
    "FlowWeight",
    "LogNormal",
    "LogNormalMixture",
    "LogStudent",
    "LogitNormal",
    "Loss",
    "MinSNR",
    "Mode",
    "ModeWeight",
    "Objective",
    "PowerTime",
    "SigmoidWeight",
    "SoftMinSNR",
    "Uncertainty",
    "UniformLogSNR",
    "UniformTime",
    "UniformWeight",
    "VWeight",
    "Weight",
    "field_error",
]  # fmt: skip

TIME_STREAM = 100
"""Noise stream of the times; fields use those below."""

SELF_KEY = 103
"""Key of the coin for self-conditioning."""

LAM_MAX = CLEAN
"""Levels beyond are drawn as this one: weights stay finite in float64."""


@dataclass(frozen=True)
class Loss:
    """A loss.

    Arguments:
        total: Mean over the rows, a scalar.
        per_sample: Shape (B,).
        lam: Noise levels of the rows on the reference schedule, shape (B,); of rows whose tokens differ, the mean.
    """

    total: Tensor
    per_sample: Tensor
    lam: Tensor


def field_error(away: Tensor, out: Tensor, process: Process, weight: Weight, t: Tensor) -> Tensor:
    """Return the weighted error of one field, float32, shape (B,).

    Arguments:
        away: How far the network's output is from its target, see `Preconditioned.residual`.
        out: Factor from there to the error of x0.
        process: The field's process; its space knows which entries count.
        weight: Weight of the x0 error.
        t: Times of the rows, shape (B,), or of their tokens, (B, T). Of clean tokens there is nothing to learn; the
            error is the mean over the others.
    """
    if isinstance(process, Categorical):
        return process.space.mean(away)
    if not process.noised:
        return away.new_zeros(len(t))
    lam = process.schedule.lam(t)
    factor = weight(lam) * out**2
    if t.ndim > 1:
        noisy, there = lam < LAM_MAX - 1e-6, process.space.there(away)
        count: Any = noisy.shape[1]
        if there is not None:
            noisy, count = noisy & there, there.sum(1, keepdim=True)
        factor = torch.where(noisy, factor, 0.0) * (count / noisy.sum(1, keepdim=True).clamp(min=1))
        each = process.space.expand(factor.to(torch.float32), away)
        return process.space.mean(each * away.float() ** 2)
    error: Tensor = factor.to(torch.float32) * process.space.mean(away.float() ** 2)
    return error


@dataclass(frozen=True)
class Objective:
    """Weighted denoising error.

    Arguments:
        weight: Weight of the x0 error.
        density: Density of the noise levels.
        parameterization: What the network predicts; kept here because a config chooses the three together.
        stratified: One draw per equal share of the density over the whole batch, instead of independent draws.
        importance: Divide by the density: the weight is then against d lam.
        coupling: ``independent``, ``ot`` (or ``immiscible``), or a coupling; see `suffuse.coupling`.
        field_weights: Constant per named field; those not named count 1, a 0 trains a field no further.
        uncertainty: Learned weight; the model that trains with it must own its parameters.
        self_condition: Share of the micro-batches in which a network that takes one sees its own previous estimate.
        tokens: How the noise levels of a sample's tokens differ, for a process whose space names tokens; None for one
            level per sample.

    Raises:
        ConfigError: For negative field weights, a share outside [0, 1], or an unknown coupling; when called, for names
            that are no fields of the state.
    """

    weight: Weight = field(default_factory=EDMWeight)
    density: Density = field(default_factory=LogNormal)
    parameterization: Parameterization | Mapping[str, Parameterization] | None = None
    stratified: bool = True
    importance: bool = False
    coupling: Any = "independent"
    field_weights: Mapping[str, Any] | None = None
    uncertainty: Uncertainty | None = None
    self_condition: float = 0.5
    tokens: TokenLevels | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameterization", by_field(self.parameterization))
        object.__setattr__(self, "weight", by_field(self.weight))
        object.__setattr__(self, "coupling", coupling(self.coupling))
        for c in leaves(self.field_weights or {}):
            if isinstance(c, bool) or not isinstance(c, int | float) or not 0 <= c < math.inf:
                raise ConfigError(f"objective.field_weights: {c} must be a number of at least 0")
        if self.tokens is not None and (self.importance or self.uncertainty is not None):
            raise ConfigError("objective.tokens: importance and uncertainty want one noise level per sample")
        if not 0 <= self.self_condition <= 1:
            raise ConfigError(f"objective.self_condition={self.self_condition} must be in [0, 1]")

    def levels(
        self, noise: KeyedNoise, step: int, positions: Tensor, total: int, schedule: Schedule,
        tokens: int | None = None, there: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the noise levels of the rows, shape (B,), float64, or of their tokens, (B, T).

        Arguments:
            noise: One stream per row.
            step: Which draw.
            positions: Places of the rows in the global batch, shape (B,).
            total: Rows of the global batch, over all ranks.
            schedule: The reference schedule.
            tokens: Number of tokens whose levels may differ; None for one level per row.
            there: Which tokens exist, boolean (B, T); None for all.
        """
        like = torch.empty(len(positions), dtype=torch.float64, device=positions.device)
        u = noise.uniform(like, step, TIME_STREAM)
        if self.stratified:
            u = (positions + u) / total
        if tokens is None or self.tokens is None:
            return self.density.quantile(u, schedule).clamp(-LAM_MAX, LAM_MAX)
        u, clean = self.tokens.quantiles(noise, step, u, tokens, there)
        lam = self.density.quantile(u.flatten(), schedule).clamp(-LAM_MAX, LAM_MAX - 1).view(u.shape)
        return torch.where(clean, LAM_MAX, lam)

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
        process = bound(denoiser.process, x0)
        count, leaf = rows(process, x0), next(leaves(x0))
        if positions is None:
            positions = torch.arange(count, device=leaf.device)
        schedule = reference(process).schedule
        tokens, there = self._tokens(process, x0)
        lam = self.levels(noise, step, positions, total or count, schedule, tokens, there)
        t = schedule.time(lam)
        eps = map_state(lambda x, p, stream: p.draw(x, noise, step, stream), x0, process, streams(process))
        eps = self.coupling(x0, eps, process)
        previous = self._previous(denoiser, x0, eps, t, cond, step)
        away, out = denoiser.residual(x0, eps, t, cond, previous)
        errors = list(leaves(map_state(field_error, away, out, process, self.weight, t)))
        per_sample = self._sum(errors, lam, schedule, _constants(self.field_weights, x0))
        if lam.ndim > 1:
            lam = lam.mean(1) if there is None else (lam * there).sum(1) / there.sum(1).clamp(min=1)
        return Loss(per_sample.mean(), per_sample, lam)

    def _tokens(self, process: Any, x0: State) -> tuple[int | None, Tensor | None]:
        """Return how many tokens have levels of their own, and which of them exist, None for all."""
        if self.tokens is None:
            return None, None
        space = reference(process).space
        axes = space.tokens
        if len(axes) != 1:
            raise ConfigError(
                f"objective.tokens: the process's space names {len(axes)} axes of tokens; give it one, for example "
                "process.space.tokens=[2]"
            )
        leaf = next(leaf for p, leaf in zip(leaves(process), leaves(x0), strict=False) if p.noised)
        return leaf.shape[axes[0]], space.there(leaf)

    def _sum(self, errors: list[Tensor], lam: Tensor, schedule: Schedule, constants: list[float]) -> Tensor:
        """Return the sum over the fields, shape (B,)."""
        if not any(constants):
            raise ConfigError("objective.field_weights: every field has the weight 0, so there is nothing to train")
        stacked = torch.stack(errors)
        if self.importance:
            stacked = stacked * (-self.density.log_prob(lam, schedule)).exp().to(stacked)
        if self.uncertainty is not None and self.uncertainty.training:
            u = self.uncertainty(lam)
            if len(u) != len(stacked):
                raise ConfigError(f"objective.uncertainty.fields={len(u)}, but the state has {len(stacked)} fields")
            stacked = stacked * (-u).exp() + u
        if any(c != 1 for c in constants):
            # A field of weight 0 is left out, not multiplied: its error may be infinite.
            return torch.stack([c * error for c, error in zip(constants, stacked, strict=True) if c]).sum(0)
        return stacked.sum(0)

    def _previous(
        self, denoiser: Preconditioned, x0: State, eps: State, t: Tensor, cond: Any, step: int
    ) -> State | None:
        """Return the network's own estimate, without a gradient, where the coin of this step says so.

        One coin for the batch: with one per row the first pass would be paid for always. Validation always looks.
        """
        if not denoiser.self_condition or (denoiser.training and mix(step, SELF_KEY) >= self.self_condition * 2**62):
            return None
        with torch.no_grad():
            x = map_state(lambda leaf, e, p: p.corrupt(leaf, t, e), x0, eps, bound(denoiser.process, x0))
            found: State = denoiser(x, t, cond).x0
        torch.clear_autocast_cache()  # or the pass with a gradient would reuse casts of the weights that have none
        return found


def _constants(weights: Any, x0: Any, where: str = "") -> list[float]:
    """Return the constant of every field of x0 in their order; `weights` need not name all."""
    if not isinstance(x0, Mapping):
        if isinstance(weights, Mapping):
            kind = f"{where} has no fields of its own" if where else "the state has no named fields"
            raise ConfigError(f"objective.field_weights={dict(weights)}: {kind}; leave it out")
        return [1.0 if weights is None else float(weights)]
    weights = {} if weights is None else weights
    if not isinstance(weights, Mapping):
        raise ConfigError(f"objective.field_weights: {where} has fields of its own; give a weight to each of them")
    for name in weights:
        if name not in x0:
            raise ConfigError(f"objective.field_weights.{name}: no such field{suggest(name, x0, listing='fields')}")
    found = [_constants(weights.get(name), leaf, f"{where}.{name}".strip(".")) for name, leaf in x0.items()]
    return [c for constants in found for c in constants]
