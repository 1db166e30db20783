r"""Discrete: how a categorical field takes a step, beside Gaussian fields or alone.

Every method is a `Jump` from one level to the next on the prediction made at its start; rows in between (stages of a
Gaussian field's method) leave tokens alone. Ancestral draws from the exact posterior; tau-leaping holds the rates of
the step's start and counts their events as Poisson (Campbell et al. 2022, algorithm 1; error of first order in the
step); confidence unmasks the surest tokens first, as many as the schedule says (MaskGIT, Chang et al. 2022, section
3.2). Nothing is read back from the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.categorical import Categorical, Masked, choose, limited, scales
from suffuse.denoiser import Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.noise import KeyedNoise
from suffuse.process import Process
from suffuse.sampler.engine import Leg, Route, Sampler, Stage
from suffuse.solver import Node
from suffuse.state import State, leaves

__all__ = ["AncestralTokens", "CachedAncestral", "Confidence", "Hold", "Jump", "TauLeaping", "Tokens"]


@dataclass(frozen=True)
class Hold:
    """A row that leaves a field alone."""

    depth: int = 0

    def advance(self, base: Tensor, x: Tensor, d: Any, history: Any, eps: Sequence[Tensor], process: Process) -> Tensor:
        """Return the base."""
        return base

    def remember(self, x: Tensor, d: Any, process: Process, history: Any) -> Any:
        """Return the history."""
        return history

    def place(self, leaf: Tensor) -> Hold:
        """Return itself."""
        return self


@dataclass(frozen=True)
class Take(Hold):
    """Where another field's base is corrected, this one's becomes what it has moved to."""

    def advance(self, base: Tensor, x: Tensor, d: Any, history: Any, eps: Sequence[Tensor], process: Process) -> Tensor:
        """Return the state."""
        return x


@dataclass(frozen=True)
class Jump:
    """A step of a categorical field from alpha_t to alpha_s, numbers or (1, T) per token."""

    method: Tokens
    alpha_t: Any
    alpha_s: Any
    depth: int = 0

    def advance(
        self, base: Tensor, x: Tensor, d: Tensor, history: Any, eps: Sequence[Tensor], process: Process
    ) -> Tensor:
        """Return the tokens at the end of the step; `d` are logits, `eps[-1]` two uniform numbers per token."""
        if not isinstance(process, Categorical):
            raise ConfigError(f"sampler: {type(self.method).__name__} is for categorical fields only")
        logits = limited(process.space.project(d), self.method.temperature, self.method.top_k, self.method.top_p)
        at, to = scales(self.alpha_t, process, base), scales(self.alpha_s, process, base)
        moved = self.method.tokens(process, base, logits, at, to, eps[-1])
        # A level that does not change leaves its tokens alone, whatever the method.
        return process.space.project(torch.where(at == to, base, moved))

    def remember(self, x: Tensor, d: Any, process: Process, history: Any) -> Any:
        """Return the history: nothing is stored."""
        return history

    def place(self, leaf: Tensor) -> Jump:
        """Return the step with its levels on the device of `leaf`."""
        start, end = (v.to(leaf.device) if isinstance(v, Tensor) else v for v in (self.alpha_t, self.alpha_s))
        return Jump(self.method, start, end)


@dataclass(frozen=True)
class Tokens(Sampler):
    """A sampler of categorical fields.

    Arguments:
        steps: Intervals of the grid.
        temperature: Of the predicted distribution.
        top_k: Only the k most probable tokens, or None.
        top_p: Only the fewest tokens that hold this probability, or None.

    Raises:
        ConfigError: For a temperature that is not positive, top_k < 1, top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"sampler.temperature={self.temperature} must be positive")
        if self.top_k is not None and (isinstance(self.top_k, bool) or self.top_k < 1):
            raise ConfigError(f"sampler.top_k={self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"sampler.top_p={self.top_p} must be in (0, 1]")

    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Refuse: this is no method for Gaussian fields."""
        raise ConfigError(f"sampler: {type(self).__name__} draws tokens; for a Gaussian field choose another, as dpmpp")

    @abstractmethod
    def tokens(
        self, process: Categorical, x: Tensor, logits: Tensor, alpha_t: Tensor, alpha_s: Tensor, u: Tensor
    ) -> Tensor:
        """Return the tokens at s given those at t, the predicted logits, both levels and two uniform numbers each."""


@dataclass(frozen=True)
class AncestralTokens(Tokens):
    """A draw from the exact posterior: with an exact prediction of independent tokens, exact at any number of steps."""

    def tokens(
        self, process: Categorical, x: Tensor, logits: Tensor, alpha_t: Tensor, alpha_s: Tensor, u: Tensor
    ) -> Tensor:
        """Return the tokens at s."""
        moved, shares = process.moves(x, logits, alpha_t, alpha_s)
        return torch.where(u[..., 0].double() < moved, choose(shares, u[..., 1]), x)


class _Cached(Denoiser):
    """Gives its last prediction again while the state and the condition are the same."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process
        self._last: tuple[State, Prediction] | None = None

    def forward(self, x: State, t: float | Tensor, cond: Any = None) -> Prediction:
        """Return the prediction."""
        if self._last is not None:
            pairs = zip(leaves(x), leaves(self._last[0]), strict=True)
            if all(torch.equal(now, then) for now, then in pairs):
                return self._last[1]
        prediction: Prediction = self.denoiser(x, t, cond)
        self._last = (x, prediction)
        return prediction


@dataclass(frozen=True)
class CachedAncestral(AncestralTokens):
    """Ancestral, without asking the network again while no token of the batch has changed.

    With many steps most change nothing. The law is the same for a network that is not told the time, as the posterior
    of masked tokens does not depend on it; another one is asked too seldom. To know, the host reads the device once per
    step. "Simple and Effective Masked Diffusion Language Models", Sahoo et al. 2024, section 4.2.
    """

    def run(
        self, denoiser: Denoiser, process: Process | Mapping[str, Process], grid: Grid, noise: KeyedNoise, like: State,
        cond: Any = None, callback: Callable[[int, int, State, State], None] | None = None, x: State | None = None,
    ) -> State:  # fmt: skip
        """Return samples, see `suffuse.sampler.sample`."""
        return super().run(_Cached(denoiser), process, grid, noise, like, cond, callback, x)


@dataclass(frozen=True)
class TauLeaping(Tokens):
    """Rates held over a step: a token moves with probability 1 - e^{-rate}; the step to a clean state is exact."""

    def tokens(
        self, process: Categorical, x: Tensor, logits: Tensor, alpha_t: Tensor, alpha_s: Tensor, u: Tensor
    ) -> Tensor:
        """Return the tokens at s."""
        moved, shares = process.moves(x, logits, alpha_t, alpha_s)
        leap = torch.where(alpha_s >= 1, moved, -torch.expm1(-moved))
        return torch.where(u[..., 0].double() < leap, choose(shares, u[..., 1]), x)


@dataclass(frozen=True)
class Confidence(Tokens):
    """The surest tokens first: after a step, the share 1 - alpha_s of a sample's tokens is masked, the least sure.

    Arguments:
        choice: ``confidence``: probability of the drawn token; ``entropy``: of the whole distribution.
        noise: Gumbel noise added to the logarithm of the confidence, times the share still masked; 0 is greedy.
        remask: Tokens that were already drawn may be masked again.

    Raises:
        ConfigError: For another choice or negative noise.
    """

    choice: str = "confidence"
    noise: float = 1.0
    remask: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choice not in ("confidence", "entropy"):
            raise ConfigError(f"sampler.choice={self.choice} is neither 'confidence' nor 'entropy'")
        if not 0 <= self.noise < math.inf:
            raise ConfigError(f"sampler.noise={self.noise} must be at least 0")

    def tokens(
        self, process: Categorical, x: Tensor, logits: Tensor, alpha_t: Tensor, alpha_s: Tensor, u: Tensor
    ) -> Tensor:
        """Return the tokens at s."""
        if not isinstance(process, Masked):
            raise ConfigError("sampler: confidence needs a masked process; choose mask_ancestral or tau_leaping")
        masked = x == process.classes
        shares = torch.softmax(logits.double(), -1)
        drawn = torch.where(masked, choose(shares, u[..., 1]), x)
        if self.choice == "entropy":
            sure = (shares * shares.clamp(min=1e-300).log()).sum(-1)
        else:
            sure = shares.gather(-1, drawn[..., None])[..., 0].clamp(min=1e-300).log()
        gumbel = -(-u[..., 0].double().log()).log()
        sure = sure + self.noise * (1 - alpha_s) * gumbel
        exists = process.space.project(torch.ones_like(x)) > 0
        sure = sure.masked_fill(~exists, math.inf)
        if not self.remask:
            sure = sure.masked_fill(~masked, math.inf)
        flat, count = sure.flatten(1), exists.flatten(1).sum(1, keepdim=True)
        share = ((1 - alpha_s) * exists).flatten(1).sum(1, keepdim=True) / count.clamp(min=1)
        left = (share * count + 1e-9).floor()
        rank = flat.argsort(1).argsort(1).reshape(x.shape)
        again = (rank < left.reshape(-1, *[1] * (x.ndim - 1))) & torch.isfinite(sure)
        return torch.where(again, torch.full_like(x, process.classes), drawn)


def is_gaussian(process: Process) -> bool:
    """Return whether the field takes the sampler's own rows."""
    return process.noised and not isinstance(process, Categorical)


def beside(sampler: Sampler, route: Route, process: Process, leader: list[list[Stage]] | None) -> list[list[Stage]]:
    """Return the rows of a categorical or frozen field: as many per leg as the Gaussian fields take, one without any.

    Arguments:
        sampler: The sampler of the whole state; if it is none of tokens, its ``discrete`` or ancestral ones are drawn.
        route: The way.
        process: The field's process.
        leader: Rows of a Gaussian field, or None.

    Raises:
        ConfigError: When the way goes up again, which tokens cannot follow beside a method that does not say how.
    """
    alpha = np.where(route.clean, 1.0, route.levels(process.schedule)[0])
    method = sampler if isinstance(sampler, Tokens) else getattr(sampler, "discrete", None) or AncestralTokens()
    if not isinstance(method, Tokens):
        raise ConfigError(f"sampler.discrete={method!r} draws no tokens; choose one of suffuse.sampler.discrete")
    rows: list[list[Stage]] = []
    for i, leg in enumerate(route.legs):
        if leg.up and process.noised:
            raise ConfigError(f"sampler: {type(sampler).__name__} goes up again, which tokens do not; choose another")
        ends: Any = tuple(alpha[leg.nodes[k]] for k in (0, -1))
        levels = [float(v) if v.ndim == 0 else torch.from_numpy(v)[None] for v in ends]
        last: Any = Jump(method, levels[0], levels[1]) if process.noised else Hold()
        draws = (0,) if process.noised else ()
        stages = [Stage(last, draws=draws)]
        if leader is not None:
            pattern = leader[i]
            stages = [stage._replace(step=Hold(), draws=(), fix=stage.fix and Take()) for stage in pattern[:-1]]
            # A predictor-corrector's rows keep their base, so what was moved to is taken over first.
            fix = pattern[-1].fix and Take()
            stages.append(pattern[-1]._replace(step=last, draws=draws, fix=fix))
        rows.append(stages)
    return rows
