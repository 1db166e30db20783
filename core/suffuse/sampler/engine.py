r"""The engine: one loop for ODE and SDE solvers of the reverse process.

Between two nodes t > s with half log-SNR lam_t < lam_s, h = lam_s - lam_t, the reverse SDE whose diffusion is scaled by
eta (0: probability-flow ODE, 1: reverse SDE) has the exact solution

    x_s = (sigma_s/sigma_t) e^{-eta^2 h} x_t
          + alpha_s (1 + eta^2) \int_{lam_t}^{lam_s} e^{-(1+eta^2)(lam_s - l)} x0(l) dl
          + sigma_s sqrt(1 - e^{-2 eta^2 h}) eps.

A method replaces x0(l), or eps or the flow velocity, by a polynomial (see `suffuse.solver`), so each of its updates is

    x' = a base + e x + b d + sum_j past_j h_j + sum_k c_k eps_k,

with d the new prediction at x and h_j stored ones. A `Plan` is a list of such rows with coefficients computed on the
host in float64. Single-step methods have rows that do not commit, predictor-corrector methods rows that also mend the
base, restarts and churn rows that move up to more noise without a prediction. Because only ratios of alpha and sigma
enter, one engine serves variance preserving, exploding and flow schedules, and a row of a per-token grid is a tensor
instead of a number.

Relations of `eta`: k-diffusion's SDE samplers take eta^2, DDIM's eta scales the posterior deviation (equal at 0 and 1),
azula's its variance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError, suggest
from suffuse.grid import Grid
from suffuse.noise import KeyedNoise
from suffuse.process import Process, bound, reference, rows, streams
from suffuse.sampler.plan import Leg, Plan, Route, Row, Stage, Table, lean, placed, stacked
from suffuse.schedule import Schedule
from suffuse.solver import Node
from suffuse.state import State, leaves, map_state

__all__ = ["Leg", "Plan", "Route", "Row", "Sampler", "Stage", "sample"]

FURTHER = 2**20
"""Draw number k of leg i is i + 1 + k FURTHER, so that a method's first draws are those of a simpler method."""


class _Carry(NamedTuple):
    x: State
    base: State
    history: Any
    x0: State | None = None


@dataclass(frozen=True)
class Sampler(ABC):
    """A solver.

    Arguments:
        steps: Intervals of the time grid.
        discrete: Sampler of the tokens beside Gaussian fields; by default ancestral ones.

    Raises:
        ConfigError: When steps < 1.
    """

    steps: int = 20
    discrete: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigError(f"sampler.steps={self.steps} must be a whole number of at least 1")

    @property
    def inner(self) -> tuple[float, ...]:
        """Where a leg has nodes between its ends, as shares of its log-SNR."""
        return ()

    def route(self, grid: Grid, schedule: Schedule) -> Route:
        """Return the way through a grid: by default every interval once."""
        return self.through(grid, schedule, [(i, i + 1) for i in range(grid.steps)])

    def through(
        self, grid: Grid, schedule: Schedule, pairs: Sequence[tuple[int, int]], extra: Table | None = None,
        spread: float = 1.0,
    ) -> Route:  # fmt: skip
        """Return the way along `pairs` of nodes; a pair towards more noise is a leg up.

        Arguments:
            grid: Nodes 0 to N.
            schedule: Defines the log-SNR in which nodes in between are placed.
            pairs: Start and end of every leg.
            extra: Times of further nodes, which follow the grid's.
            spread: Factor of the noise of the legs up.
        """
        t = grid.t if extra is None else np.concatenate([grid.t, extra])
        clean = np.zeros(t.shape, dtype=bool)
        if grid.clean:
            arrives = grid.t.ndim == 1 or (grid.t[-1] <= 0) & (grid.t[0] > grid.t[-1])
            clean[grid.steps] = arrives
        lam = np.where(clean, np.inf, schedule.lam(torch.from_numpy(t)).numpy())
        times, legs, count = [t], [], len(t)
        for start, end in pairs:
            if (t[end] > t[start]).any():
                legs.append(Leg((start, end), up=True, spread=spread))
                continue
            if not self.inner:
                legs.append(Leg((start, end)))
                continue
            legs.append(Leg((start, *range(count, count + len(self.inner)), end)))
            count += len(self.inner)
            times.append(np.stack([_between(t, lam, start, end, share, schedule) for share in self.inner]))
        every = np.concatenate(times)
        return Route(every, np.concatenate([clean, np.zeros((len(every) - len(t), *t.shape[1:]), bool)]), tuple(legs))

    @abstractmethod
    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Return, per leg, the rows of one token.

        Arguments:
            legs: Nodes of every leg, and the leg.
            whole: All tokens share these times, and all fields their ends; only then may the number of rows depend on
                them.
        """

    def plan(self, grid: Grid, process: Process | Mapping[str, Process]) -> Plan:
        """Return the rows for a grid, with a table per field of a composite state."""
        kinds = map_state(lambda p: (type(p), p.schedule, getattr(p, "classes", 0)), process)
        key = (self, _frozen(kinds), grid.t.shape, grid.t.tobytes(), grid.clean)
        if key not in _PLANS:
            if len(_PLANS) >= 64:
                _PLANS.clear()
            _PLANS[key] = self.along(self.route(grid, reference(process).schedule), process)
        return _PLANS[key]

    def along(self, route: Route, process: Any) -> Plan:
        """Return the rows for a route."""
        from suffuse.sampler.discrete import beside, is_gaussian

        fields = map_state(lambda p: self.table(route, p, True) if is_gaussian(p) else None, process)
        if len({tuple(map(len, table)) for table in leaves(fields) if table is not None}) > 1:
            # Fields that would take different numbers of rows take those that fit any node.
            fields = map_state(lambda p: self.table(route, p, False) if is_gaussian(p) else None, process)
        leader = next((table for table in leaves(fields) if table is not None), None)
        fields = map_state(lambda p, table: beside(self, route, p, leader) if table is None else table, process, fields)
        leader = leader or next(table for p, table in zip(leaves(process), leaves(fields), strict=True) if p.noised)
        rows: list[Row] = []
        for i, leg in enumerate(route.legs):
            for j in range(len(leader[i])):
                stages = map_state(lambda table, i=i, j=j: table[i][j], fields)
                stage: Stage = leader[i][j]
                draws = map_state(lambda s, i=i: tuple(_number(i, k) for k in s.draws), stages)
                rows.append(
                    Row(
                        t=None if stage.at is None else self._time(route.t[leg.nodes[stage.at]]),
                        step=map_state(lambda s: s.step, stages),
                        fix=None if stage.fix is None else map_state(lambda s: s.fix, stages),
                        commit=stage.commit,
                        push=stage.push,
                        draws=draws,
                        noisy=any(leaves(draws)),
                        done=j == len(leader[i]) - 1,
                    )
                )
        return Plan(tuple(rows), self._time(route.t[route.legs[0].nodes[0]]))

    def table(self, route: Route, process: Process, whole: bool) -> list[list[Stage]]:
        """Return, per leg, the rows of one field with Gaussian noise."""
        tables = route.levels(process.schedule)
        if route.t.ndim == 1:
            return lean(self.column(_legs(route, [list(map(float, table)) for table in tables]), whole))
        whole = whole and bool((route.t == route.t[:, :1]).all())
        columns = [
            self.column(_legs(route, [table[:, k].tolist() for table in tables]), whole)
            for k in range(route.t.shape[1])
        ]
        return [[stacked(stages) for stages in zip(*leg, strict=True)] for leg in zip(*columns, strict=True)]

    @staticmethod
    def _time(t: Any) -> float | Tensor:
        return float(t) if t.ndim == 0 else torch.from_numpy(t)[None]

    def step(self, row: Row, carry: _Carry, denoiser: Denoiser, process: Any, cond: Any, eps: Any) -> _Carry:
        """Return the carry after one row; pure, with no reading back from the device."""
        x, base, history, d = carry
        if row.t is not None:
            t = row.t
            if isinstance(t, Tensor):
                leaf = next(leaves(x))
                t = t.to(leaf.device).expand(leaf.shape[0], -1)
            d = denoiser(x, t, cond).x0
        elif d is None:
            d = x  # a leg up at the very start uses no prediction
        if x.__class__ is Tensor:  # the usual state, without walking a tree of one leaf
            if row.fix is not None:
                base = row.fix.advance(base, x, d, history, eps, process)
            new = row.step.advance(base, x, d, history, eps, process)
            history = row.step.remember(x, d, process, history) if row.push else history
        else:
            if row.fix is not None:
                base = map_state(_advance, base, x, d, row.fix, process, history, eps)
            new = map_state(_advance, base, x, d, row.step, process, history, eps)
            history = map_state(_remember, x, d, row.step, process, history) if row.push else history
        return _Carry(new, new if row.commit else base, history, d)

    def run(
        self, denoiser: Denoiser, process: Process | Mapping[str, Process], grid: Grid, noise: KeyedNoise, like: State,
        cond: Any = None, callback: Callable[[int, int, State, State], None] | None = None, x: State | None = None,
    ) -> State:  # fmt: skip
        """Return samples, see `sample`."""
        return self.follow(self.plan(grid, process), denoiser, process, noise, like, cond, callback, x)

    def follow(
        self, plan: Plan, denoiser: Denoiser, process: Process | Mapping[str, Process], noise: KeyedNoise, like: State,
        cond: Any = None, callback: Callable[[int, int, State, State], None] | None = None, x: State | None = None,
    ) -> State:  # fmt: skip
        """Return where a plan leads."""
        process = bound(process, like)
        every = [placed(row, like) for row in plan.rows]
        number = streams(process)

        def drawn(ids: Any) -> Any:
            return map_state(
                lambda leaf, p, stream, own: [p.draw(leaf, noise, k, stream) for k in own], like, process, number, ids
            )

        if x is None:
            start = map_state(lambda _: (0,), like)
            t = plan.start
            x = map_state(lambda leaf, eps, p: p.prior(leaf, eps[0], _rows(t, leaf)), like, drawn(start), process)
        carry = _Carry(x, x, map_state(lambda _: (), like))
        none = map_state(lambda _: (), like)
        for i, row in enumerate(every):
            carry = self.step(row, carry, denoiser, process, cond, drawn(row.draws) if row.noisy else none)
            if callback is not None and row.done:
                assert carry.x0 is not None  # set by every step
                callback(i + 1, len(every), carry.x, carry.x0)
        return carry.x


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
        noise: One stream per row; draw 0 is the start, draw i + 1 belongs to leg i.
        like: Shapes, dtype and device, rows first.
        cond: Embedded condition.
        callback: Called as ``callback(done, rows, x, x0)`` after the last row of every leg.
        x: Start here instead of at the prior.

    Raises:
        ConfigError: When the names of the fields are not those of the process, the noise has another number of streams
            than the batch has rows, or a start on the CPU has another shape or is not finite.
    """
    _check(process, like, noise, x)
    return sampler.run(denoiser, process, grid, noise, like, cond, callback, x)


def _check(process: Any, like: State, noise: KeyedNoise, x: State | None) -> None:
    """Refuse what does not fit, reading nothing back from a device."""
    for what, state in (("state", like), ("start", x)):
        if state is not None:
            _check_names(process, state, what)
    seeds = getattr(noise, "seeds", None)
    if seeds is not None and len(seeds) != (count := rows(bound(process, like), like)):
        raise ConfigError(f"sample: {len(seeds)} seeds for {count} rows; give one seed per row")
    for start, leaf in zip(leaves(x) if x is not None else (), leaves(like), strict=False):
        if start.shape != leaf.shape:
            raise ConfigError(f"sample: a start of shape {tuple(start.shape)} for a state {tuple(leaf.shape)}")
        if start.device.type == "cpu" and start.is_floating_point() and not np.isfinite(start.detach().numpy()).all():
            raise ConfigError("sample: the start holds NaN or infinite values; clean it")


def _check_names(process: Any, state: State, what: str) -> None:
    if isinstance(process, Mapping) != isinstance(state, Mapping):
        kind = "has no named fields, but the process has" if isinstance(process, Mapping) else "has named fields, but"
        rest = ", ".join(process) if isinstance(process, Mapping) else "the process has none"
        raise ConfigError(f"sample: the {what} {kind} {rest}")
    if isinstance(process, Mapping) and isinstance(state, Mapping):
        for name in [*process, *state]:
            if name not in process or name not in state:
                near = suggest(name, state if name in process else process, listing="fields")
                raise ConfigError(
                    f"sample: field {name!r} is in the {'process' if name in process else what} only{near}"
                )
        for name, field in state.items():
            _check_names(process[name], field, what)


_PLANS: dict[Any, Plan] = {}
"""Plans at hand: the batches of a job share one, and working it out costs more than running it."""


def _frozen(tree: Any) -> Any:
    return tuple((name, _frozen(sub)) for name, sub in tree.items()) if isinstance(tree, Mapping) else tree


def _number(leg: int, draw: int) -> int:
    return leg if draw < 0 else leg + 1 + draw * FURTHER


def _between(t: Table, lam: Table, start: int, end: int, share: float, schedule: Schedule) -> Table:
    """Return the times at a share of the way in log-SNR; in time where an end has none."""
    finite = np.isfinite(lam[start]) & np.isfinite(lam[end])
    low, high = np.where(finite, lam[start], 0.0), np.where(finite, lam[end], 0.0)
    inside = schedule.time(torch.from_numpy(np.asarray(low + share * (high - low)))).numpy()
    still = t[start] == t[end]
    return np.where(still, t[start], np.where(finite, inside, t[start] + share * (t[end] - t[start])))


def _legs(route: Route, tables: Sequence[list[float]]) -> list[tuple[list[Node], Leg]]:
    nodes = [Node(*values) for values in zip(*tables, strict=True)]
    return [([nodes[i] for i in leg.nodes], leg) for leg in route.legs]


def _advance(base: Tensor, x: Tensor, d: Tensor, step: Any, process: Process, history: Any, eps: Any) -> Tensor:
    advanced: Tensor = step.advance(base, x, d, history, eps, process)
    return advanced


def _remember(x: Tensor, d: Tensor, step: Any, process: Process, history: Any) -> Any:
    return step.remember(x, d, process, history)


def _rows(t: float | Tensor, leaf: Tensor) -> float | Tensor:
    return t.expand(leaf.shape[0], -1) if isinstance(t, Tensor) else t
