"""Plan: what a sampler will do on a grid, as rows of coefficients; `suffuse.sampler.engine` says what a row means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suffuse.schedule import Schedule
from suffuse.solver import Step
from suffuse.state import State, leaves, map_state

__all__ = ["Leg", "Plan", "Route", "Row", "Stage", "Table", "lean", "placed", "stacked"]

Table = NDArray[np.float64]


class Leg(NamedTuple):
    """A part of the way: from the first to the last of its nodes.

    Arguments:
        nodes: Numbers of the nodes: start, those in between, end.
        up: Towards more noise, by the forward process.
        spread: Factor of the noise of a leg up.
    """

    nodes: tuple[int, ...]
    up: bool = False
    spread: float = 1.0


@dataclass(frozen=True)
class Route:
    """The way a sampler takes.

    Arguments:
        t: Times of the nodes, shape (M,) or (M, T), float64.
        clean: Nodes without any noise, shape of t.
        legs: Parts of the way in their order.
    """

    t: Table
    clean: NDArray[np.bool_]
    legs: tuple[Leg, ...]

    def levels(self, schedule: Schedule) -> tuple[Table, Table, Table]:
        """Return alpha, sigma and lam at the nodes, each of the shape of t."""
        t = torch.from_numpy(self.t)
        alpha, sigma = (value.numpy() for value in schedule(t))
        lam = schedule.lam(t).numpy()
        return alpha, np.where(self.clean, 0.0, sigma), np.where(self.clean, np.inf, lam)


class Stage(NamedTuple):
    """One row of a leg for one field and token.

    Arguments:
        step: The update.
        at: Which of the leg's nodes the denoiser is evaluated at; None for no evaluation.
        commit: The result is the next base; otherwise it is a state to evaluate at, made from the same base.
        push: Store the prediction for later rows.
        draws: Noise the row uses: number k of this leg, or -1 for the first of the leg before.
        fix: An update of the base that comes first.
    """

    step: Any
    at: int | None = 0
    commit: bool = True
    push: bool = False
    draws: tuple[int, ...] = ()
    fix: Any = None


@dataclass(frozen=True)
class Row:
    """One evaluation of the denoiser and the update that follows it.

    Arguments:
        t: Time of the evaluation: a float, or shape (1, T) per token; None for no evaluation.
        step: Per field, the update.
        fix: Per field, an update of the base that comes first, or None.
        commit: The result is the next base.
        push: Store the prediction.
        draws: Per field, the numbers of the noise draws.
        noisy: Any field draws.
        done: A leg ends here.
    """

    t: float | Tensor | None
    step: Any
    fix: Any
    commit: bool
    push: bool
    draws: Any
    noisy: bool
    done: bool


@dataclass(frozen=True)
class Plan:
    """The rows of a sampler on a grid, and where sampling starts."""

    rows: tuple[Row, ...]
    start: float | Tensor

    @property
    def evaluations(self) -> int:
        """Number of denoiser calls."""
        return sum(row.t is not None for row in self.rows)


def lean(rows: list[list[Stage]]) -> list[list[Stage]]:
    """Return rows that store x + (q / p) d in place of p x + q d, and take p into what is made of it: one product less.

    What is stored is a combination of the state and the prediction, and only its multiples are ever used.
    """
    stored: list[float] = []

    def taken(step: Any) -> Any:
        if not isinstance(step, Step) or not any(scale != 1.0 for scale in stored[: len(step.past)]):
            return step
        scales = [*stored, *[1.0] * len(step.past)]
        return replace(step, past=tuple(h * scale for h, scale in zip(step.past, scales, strict=False)))

    lean: list[list[Stage]] = []
    for leg in rows:
        lean.append([])
        for stage in leg:
            step, fix = taken(stage.step), None if stage.fix is None else taken(stage.fix)
            if stage.push and isinstance(step, Step) and step.depth:
                scale = step.p if step.p.__class__ is float and step.p not in (0.0, 1.0) else 1.0
                if scale != 1.0 and math.isfinite(scale) and math.isfinite(step.q):
                    step = replace(step, p=1.0, q=step.q / scale)
                else:
                    scale = 1.0
                stored = [scale, *stored][: step.depth]
            lean[-1].append(stage._replace(step=step, fix=fix))
    return lean


def stacked(stages: Sequence[Stage]) -> Stage:
    """Return the row of all tokens from the row of each."""
    fix = None if stages[0].fix is None else Step.stack([stage.fix for stage in stages])
    draws = max((stage.draws for stage in stages), key=len)
    return stages[0]._replace(step=Step.stack([stage.step for stage in stages]), fix=fix, draws=draws)


def placed(row: Row, like: State) -> Row:
    """Return the row with per-token coefficients where `like` is: copied before the loop, so that no step waits."""
    if not isinstance(row.t, Tensor):
        return row
    put = {
        name: None if getattr(row, name) is None else map_state(lambda leaf, s: s.place(leaf), like, getattr(row, name))
        for name in ("step", "fix")
    }
    return Row(**{**row.__dict__, **put, "t": row.t.to(next(leaves(like)).device)})
