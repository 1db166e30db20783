r"""Sampler: one engine for ODE and SDE solvers of the reverse process.

Between two nodes t > s with half log-SNR lam_t < lam_s, h = lam_s - lam_t, the reverse SDE whose diffusion is scaled by
eta (0: probability-flow ODE, 1: reverse SDE) has the exact solution

    x_s = (sigma_s/sigma_t) e^{-eta^2 h} x_t
          + alpha_s (1 + eta^2) \int_{lam_t}^{lam_s} e^{-(1+eta^2)(lam_s - l)} x0(l) dl
          + sigma_s sqrt(1 - e^{-2 eta^2 h}) eps.

A solver replaces x0(l) by the polynomial through the last k predictions and integrates exactly; interpolating eps
instead gives x_s = (alpha_s/alpha_t) x_t - sigma_s \int_0^h e^{tau} eps(lam_s - tau) dtau. Either way a step is

    x' = a base + e x + b d + sum_j b_j h_j + c eps,

with d the new prediction at x and h_j stored ones. A `Plan` is a list of such rows with coefficients computed on the
host in float64; single-step methods are rows that do not commit. Because only ratios of alpha and sigma enter, one
engine serves variance preserving, exploding and flow schedules, and a row of a per-token grid is a tensor instead of a
number.

Order 1 is DDIM (Song et al. 2021) and, with eta = 1, ancestral sampling; order 2 in x0 is DPM-Solver++(2M) in its exact
form (Lu et al. 2022, eq. 4.2; its SDE form with eta = 1); in eps it is DEIS (Zhang and Chen 2023, eq. 15). Relations of
`eta`: k-diffusion's SDE samplers take eta^2, DDIM's eta scales the posterior deviation (equal at 0 and 1), azula's its
variance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.noise import KeyedNoise
from suffuse.process import Process, streams
from suffuse.schedule import Schedule
from suffuse.solver import Node, Step, first_order, heun, interpolated
from suffuse.state import State, leaves, map_state

__all__ = ["Ancestral", "Euler", "Heun", "Multistep", "Plan", "Row", "Sampler", "sample"]


@dataclass(frozen=True)
class Row:
    """One evaluation of the denoiser and the update that follows it.

    Arguments:
        t: Time of the evaluation: a float, or shape (1, T) per token.
        step: Per field, the coefficients.
        commit: The result is the next base; otherwise it is a stage, evaluated from the same base.
        push: Store the prediction (or the eps in it) for later rows.
        draw: Number of the noise draw, or None when no field needs one.
    """

    t: float | Tensor
    step: Any
    commit: bool
    push: bool
    draw: int | None


@dataclass(frozen=True)
class Plan:
    """The rows of a sampler on a grid, and where sampling starts."""

    rows: tuple[Row, ...]
    start: float | Tensor
    depth: int

    @property
    def evaluations(self) -> int:
        """Number of denoiser calls."""
        return len(self.rows)


@dataclass(frozen=True)
class Sampler(ABC):
    """A solver.

    Arguments:
        steps: Intervals of the time grid.

    Raises:
        ConfigError: When steps < 1.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigError(f"sampler.steps={self.steps} must be a whole number of at least 1")

    @abstractmethod
    def column(self, nodes: list[Node], whole: bool) -> list[list[Step]]:
        """Return, per interval, the rows of one token's column of the grid.

        Arguments:
            nodes: The N + 1 nodes.
            whole: All tokens share these times, and all fields their ends; only then may the number of rows depend on
                them.
        """

    def plan(self, grid: Grid, process: Process | Mapping[str, Process]) -> Plan:
        """Return the rows for a grid, with a table per field of a composite state."""
        schedules = map_state(lambda p: p.schedule, process)
        key = (self, _frozen(schedules), grid.t.shape, grid.t.tobytes(), grid.clean)
        if key not in _PLANS:
            if len(_PLANS) >= 64:
                _PLANS.clear()
            _PLANS[key] = self._plan(grid, schedules)
        return _PLANS[key]

    def _plan(self, grid: Grid, schedules: Any) -> Plan:
        fields = map_state(lambda schedule: self._table(grid, schedule, True), schedules)
        if len({tuple(map(len, table)) for table in leaves(fields)}) > 1:
            # Fields that would take different numbers of rows take those that fit any node.
            fields = map_state(lambda schedule: self._table(grid, schedule, False), schedules)
        first = next(leaves(fields))
        rows: list[Row] = []
        for i, stages in enumerate(first):
            for j, stage in enumerate(stages):
                steps = map_state(lambda table, i=i, j=j: table[i][j], fields)
                noisy = any(not isinstance(s.c, float) or s.c != 0 for s in leaves(steps))
                last = j == len(stages) - 1
                # A stage is evaluated where the interval ends, the first one where it starts.
                at = self._time(grid, i + (j > 0))
                rows.append(Row(at, steps, last, stage.push, i + 1 if noisy and last else None))
        depth = max((step.depth for row in rows for step in leaves(row.step)), default=0)
        return Plan(tuple(rows), self._time(grid, 0), depth)

    def _table(self, grid: Grid, schedule: Schedule, whole: bool) -> list[list[Step]]:
        tables = grid.table(schedule)
        if grid.t.ndim == 1:
            return self.column(_nodes(tables), whole)
        whole = whole and bool((grid.t == grid.t[:, :1]).all())
        columns = [self.column(_nodes([table[:, k] for table in tables]), whole) for k in range(grid.t.shape[1])]
        return [[Step.stack(stage) for stage in zip(*step, strict=True)] for step in zip(*columns, strict=True)]

    @staticmethod
    def _time(grid: Grid, i: int) -> float | Tensor:
        return float(grid.t[i]) if grid.t.ndim == 1 else torch.from_numpy(grid.t[i])[None]

    def step(self, row: Row, carry: _Carry, denoiser: Denoiser, cond: Any, eps: State | None) -> _Carry:
        """Return the carry after one row; pure, with no reading back from the device."""
        t = row.t
        if isinstance(t, Tensor):
            leaf = next(leaves(carry.x))
            t = t.to(leaf.device).expand(leaf.shape[0], -1)
        d = denoiser(carry.x, t, cond).x0
        process = denoiser.process
        x = map_state(_update, carry.base, carry.x, d, row.step, process, carry.history, eps)
        history = map_state(_push, carry.x, d, row.step, process, carry.history) if row.push else carry.history
        return _Carry(x, x if row.commit else carry.base, history, d)


def _nodes(tables: Sequence[Any]) -> list[Node]:
    return [Node(*map(float, node)) for node in zip(*tables, strict=True)]


_PLANS: dict[Any, Plan] = {}
"""Plans at hand: the batches of a job share one, and working it out costs more than running it."""


def _frozen(tree: Any) -> Any:
    return tuple((name, _frozen(sub)) for name, sub in tree.items()) if isinstance(tree, Mapping) else tree


class _Carry(NamedTuple):
    x: State
    base: State
    history: Any
    x0: State | None = None


_History = tuple[Tensor, ...]
"""Stored predictions of one field, the newest first."""


def _scaled(x: Tensor, value: Any, process: Process) -> Tensor:
    return x * (value if isinstance(value, float) else process.space.expand(value.to(x.device, x.dtype), x))


def _add(total: Tensor, x: Tensor, value: Any, process: Process) -> Tensor:
    if isinstance(value, float):
        return total if value == 0 else total.add_(x, alpha=value)
    return total.add_(_scaled(x, value, process))


def _update(
    base: Tensor, x: Tensor, d: Tensor, step: Step, process: Process, history: _History, eps: Tensor | None
) -> Tensor:
    total = _scaled(base, step.a, process)
    _add(total, x, step.e, process)
    _add(total, d, step.b, process)
    for value, stored in zip(step.past, history, strict=False):
        _add(total, stored, value, process)
    return total if eps is None else _add(total, eps, step.c, process)


def _push(x: Tensor, d: Tensor, step: Step, process: Process, history: _History) -> _History:
    if step.depth == 0:
        return history
    new = d
    if not isinstance(step.p, float) or step.p != 0:
        new = _add(_scaled(x, step.p, process), d, step.q, process)
    return (new, *history)[: step.depth]


@dataclass(frozen=True)
class Multistep(Sampler):
    """Exact exponential multistep method of order 1, 2 or 3.

    Arguments:
        steps: Intervals of the grid.
        order: Number of interpolated predictions. Order 3 spends one more evaluation at the start, so that its global
            order really is 3; where tokens or fields start apart it cannot, and begins with order 1.
        eta: Scale of the reverse SDE's diffusion; needs basis x0.
        basis: What is interpolated, ``x0`` or ``eps``.

    Raises:
        ConfigError: For an order outside 1 to 3, a negative eta, or eta with basis eps.
    """

    order: int = 2
    eta: float = 0.0
    basis: str = "x0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ConfigError(f"sampler.order={self.order} must be 1, 2 or 3")
        if not 0 <= self.eta < math.inf:
            raise ConfigError(f"sampler.eta={self.eta} must be at least 0")
        if self.basis not in ("x0", "eps"):
            raise ConfigError(f"sampler.basis={self.basis} is neither 'x0' nor 'eps'")
        if self.basis == "eps" and self.eta:
            raise ConfigError(f"sampler.eta={self.eta} needs sampler.basis=x0; with eps there is only the ODE (eta=0)")

    def column(self, nodes: list[Node], whole: bool) -> list[list[Step]]:
        """Return one row per interval, two in the interval where order 3 starts."""
        rows: list[list[Step]] = []
        started = not (self.order == 3 and whole and self.eta == 0)
        for i, (t, s) in enumerate(pairwise(nodes)):
            past = [node for node in nodes[max(0, i - self.order + 1) : i]][::-1]
            step = interpolated(t, s, past, self.eta, self.basis)
            if not started and math.isfinite(t.lam) and math.isfinite(s.lam):
                started = True
                predictor = interpolated(t, s, [], self.eta, self.basis)
                corrector = interpolated(t, s, [], self.eta, self.basis, ahead=True)
                stages = [replace(predictor, push=True), replace(corrector, push=False)]
                rows.append([replace(stage, depth=self.order - 1) for stage in stages])
            else:
                rows.append([replace(step, depth=self.order - 1)])
        return rows


@dataclass(frozen=True)
class Euler(Multistep):
    """First order: DDIM, and Euler's method on every schedule."""

    order: int = 1


@dataclass(frozen=True)
class Ancestral(Multistep):
    """First order with the noise of the reverse SDE: ancestral (DDPM) sampling."""

    order: int = 1
    eta: float = 1.0


@dataclass(frozen=True)
class Heun(Sampler):
    """EDM's second-order method: the trapezoidal rule in sigma/alpha, two evaluations per step.

    "Elucidating the Design Space …", Karras et al. 2022, algorithm 1. A step that starts without signal or ends without
    noise is of first order, as there.
    """

    def column(self, nodes: list[Node], whole: bool) -> list[list[Step]]:
        """Return two rows per interval."""
        rows: list[list[Step]] = []
        for t, s in pairwise(nodes):
            euler = replace(first_order(t, s), depth=1)
            second = heun(t, s)
            if second is None and whole:
                rows.append([euler])
            else:
                # Beside other tokens that need two rows, a first-order step is repeated from the stored prediction.
                again = Step(a=euler.a, past=(euler.b,), depth=1, push=False)
                rows.append([euler, again if second is None else replace(second, depth=1, push=False)])
        return rows


def sample(
    denoiser: Denoiser,
    process: Process | Mapping[str, Process],
    sampler: Sampler,
    grid: Grid,
    noise: KeyedNoise,
    like: State,
    cond: Any = None,
    callback: Callable[[int, int, State, State], None] | None = None,
    x: State | None = None,
) -> State:
    """Return samples.

    Arguments:
        denoiser: Prediction of x0.
        process: Forward process, or one per field.
        sampler: Solver.
        grid: Times.
        noise: One stream per row; draw 0 is the start, draw i + 1 belongs to interval i.
        like: Shapes, dtype and device, rows first.
        cond: Embedded condition.
        callback: Called as ``callback(done, rows, x, x0)`` after every committed row.
        x: Start here instead of at the prior.
    """
    plan = sampler.plan(grid, process)
    rows = [_placed(row, like, process) for row in plan.rows]
    number = streams(process)

    def drawn(step: int) -> State:
        state: State = map_state(lambda leaf, p, stream: p.draw(leaf, noise, step, stream), like, process, number)
        return state

    if x is None:
        t = plan.start
        x = map_state(lambda leaf, eps, p: p.prior(leaf, eps, _rows(t, leaf)), like, drawn(0), process)
    carry = _Carry(x, x, map_state(lambda _: (), like))
    for i, row in enumerate(rows):
        carry = sampler.step(row, carry, denoiser, cond, None if row.draw is None else drawn(row.draw))
        if callback is not None and row.commit:
            assert carry.x0 is not None  # set by every step
            callback(i + 1, len(plan.rows), carry.x, carry.x0)
    return carry.x


def _placed(row: Row, like: State, process: Process | Mapping[str, Process]) -> Row:
    """Return the row with per-token coefficients where `like` is: copied before the loop, so that no step waits."""
    if not isinstance(row.t, Tensor):
        return row

    def place(leaf: Tensor, step: Step, p: Process) -> Step:
        def put(value: Any) -> Any:
            return value.to(leaf.device, leaf.dtype) if isinstance(value, Tensor) else value

        plain = {name: put(getattr(step, name)) for name in ("a", "e", "b", "c", "p", "q")}
        return replace(step, **plain, past=tuple(map(put, step.past)))

    return replace(row, t=row.t.to(next(leaves(like)).device), step=map_state(place, like, row.step, process))


def _rows(t: float | Tensor, leaf: Tensor) -> float | Tensor:
    return t.expand(leaf.shape[0], -1) if isinstance(t, Tensor) else t
