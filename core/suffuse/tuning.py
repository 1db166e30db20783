r"""Tuning: the time grid on which a sampler comes closest to the exact solution for one model.

Every model bends its trajectories elsewhere, so the best nodes for N steps are its own. They are found in two stages
from a few dozen trajectories x(lam) of a fine reference solution with predictions d(lam):

1. Dynamic programming over F fine nodes. A second-order step i -> j with the prediction before it at h misses the
   reference by a vector that is linear in stored ones, e = x_j - a x_i - b_i d_i - b_h d_h, so its norm for all
   (h, i, j) follows from one Gram matrix per trajectory. The grid minimises sum_j g_j |e_hij|, where
   g_j = |dx_end| / |dx_j| is how much an error at j still matters at the end, read off two neighbouring trajectories.
2. A pattern search (Hooke and Jeeves 1961) moves the nodes with the sampler itself, whatever it is, and compares its
   results with the reference's.

Both use medians or geometric means over the trajectories, which one that goes astray does not move. The idea of nodes
fitted to a model by dynamic programming is that of "Learning to Efficiently Sample from Diffusion Probabilistic
Models", Watson et al. 2021; fitting by discretisation error that of "Align Your Steps", Sabour et al. 2024.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.noise import KeyedNoise
from suffuse.process import Process, reference, streams
from suffuse.sampler import Multistep, Sampler, sample
from suffuse.schedule import Schedule
from suffuse.solver import Node, interpolated
from suffuse.state import State, leaves, map_state

__all__ = ["Stored", "Tuned", "tune"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Stored:
    """A grid read from a file that `suffuse tune` wrote.

    Arguments:
        file: JSON with ``sigmas``, falling levels sigma/alpha of which the first may be null (no signal at all), and
            ``clean``, whether a noise-free node follows.

    Raises:
        ConfigError: When there is no such file, or nothing like that in it; on a call with another number of steps.
    """

    file: str | None = None

    def __post_init__(self) -> None:
        if self.file is None:
            raise ConfigError("grid.file is not set; draw from a checkpoint with a tuned grid, see `suffuse tune`")
        self._read()

    def _read(self) -> tuple[Array, bool]:
        try:
            record = json.loads(Path(str(self.file)).read_text())
            sigmas = [math.inf if value is None else float(value) for value in record["sigmas"]]
            clean = bool(record["clean"])
        except FileNotFoundError:
            raise ConfigError(f"grid.file={self.file}: no such file") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"grid.file={self.file}: not a tuned grid ({type(error).__name__}: {error})") from error
        if len(sigmas) < 2 or not (np.diff(sigmas) < 0).all() or not sigmas[-1] > 0:
            raise ConfigError(f"grid.file={self.file}: sigmas must be at least two, falling and positive")
        return np.array(sigmas), clean

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid."""
        sigmas, clean = self._read()
        stored = len(sigmas) - (0 if clean else 1)
        if steps != stored:
            raise ConfigError(f"grid.file={self.file} is for {stored} steps, not sampler.steps={steps}; tune for those")
        with np.errstate(divide="ignore"):
            t = np.clip(schedule.time(-torch.from_numpy(np.log(sigmas))).numpy(), None, 1.0)
        return Grid(np.minimum.accumulate(np.append(t, min(0.0, t[-1])) if clean else t), clean)


@dataclass(frozen=True)
class Tuned:
    """A tuned grid.

    Arguments:
        grid: The grid.
        sigmas: sigma/alpha of its nodes that have noise, infinite where there is no signal.
        before: Median error of the grid it replaces: root mean square distance to the reference per trajectory.
        after: Median error of this one.
        trajectories: Their number.
        tried: Grids that the search compared.
    """

    grid: Grid
    sigmas: tuple[float, ...]
    before: float
    after: float
    trajectories: int
    tried: int


def tune(
    denoiser: Denoiser,
    process: Process | Mapping[str, Process],
    sampler: Sampler,
    base: Callable[[Schedule, int], Grid],
    seeds: Tensor,
    like: State,
    cond: Any = None,
    fine: int = 48,
    inside: int = 4,
    tries: int = 400,
    progress: Callable[[int, int, float], None] | None = None,
) -> Tuned:
    """Return the grid on which `sampler` comes closest to the reference.

    Arguments:
        denoiser: The model, guided as it will be.
        process: Forward process, or one per field.
        sampler: The solver to tune for; it must draw no noise.
        base: The grid that is replaced: its ends stay, a noise-free one too.
        seeds: Shape (B,), of the trajectories.
        like: Shapes, dtype and device, B rows.
        cond: Embedded condition of the B rows.
        fine: Nodes of the dynamic programming.
        inside: Reference steps between two of them.
        tries: Grids that the search may compare.
        progress: Called as ``progress(done, tries, error)``.

    Raises:
        ConfigError: For a sampler that draws noise, or fewer than two steps.
    """
    schedule = reference(process).schedule
    start = base(schedule, sampler.steps)
    if any(row.noisy for row in sampler.plan(start, process).rows):
        raise ConfigError(f"sampler: {type(sampler).__name__} draws noise and has no grid to tune; set sampler.eta=0")
    if start.t.ndim > 1:
        raise ConfigError("grid: a grid to tune has one time for all tokens")
    frame = _Frame(start, schedule, sampler.steps)
    if not frame.count:
        raise ConfigError(f"sampler.steps={sampler.steps} leaves no node of the grid to tune; use more steps")
    noise = KeyedNoise(seeds)
    solution = _reference(denoiser, process, frame, noise, like, cond, fine, inside)

    def error(levels: Array) -> Array:
        found = sample(denoiser, process, sampler, frame.grid(levels), noise, like, cond, x=solution.start)
        return _distance(found, solution.end)

    search = _Search(error, frame, tries, progress)
    before = search.median(frame.initial)
    starts = [frame.initial, frame.even(), *_programmed(frame, solution)]
    best = search.run(starts)
    grid = frame.grid(best)
    sigmas = np.exp(-schedule.lam(torch.from_numpy(grid.t)).numpy()[: -1 if grid.clean else None])
    return Tuned(grid, tuple(sigmas.tolist()), before, search.median(best), len(seeds), search.tried)


class _Frame:
    """What stays of a grid, and its inner nodes as a vector of log-SNR."""

    def __init__(self, base: Grid, schedule: Schedule, steps: int) -> None:
        self.base, self.schedule, self.steps = base, schedule, steps
        lam = base.table(schedule)[2]
        self.fixed = 1 if not math.isfinite(lam[0]) else 0  # a first node without signal has no place in log-SNR
        # Free are the nodes after the first with signal; before a clean end the last one too.
        self.first = float(lam[self.fixed])
        self.initial: Array = lam[self.fixed + 1 : -1].copy()
        self.last = None if base.clean else float(lam[-1])
        # The lowest level that the reference resolves.
        self.bottom = float(self.initial[-1]) if base.clean and len(self.initial) else float(lam[-1])

    @property
    def count(self) -> int:
        """Number of free nodes."""
        return len(self.initial)

    def even(self) -> Array:
        """Return nodes evenly spaced in log-SNR."""
        stop = self.bottom if self.last is None else self.last
        return np.linspace(self.first, stop, self.count + (1 if self.last is None else 2))[1 : self.count + 1]

    def grid(self, levels: Array) -> Grid:
        """Return the grid with these inner nodes."""
        t = self.schedule.time(torch.from_numpy(levels)).numpy()
        whole = np.concatenate([self.base.t[: self.fixed + 1], t, self.base.t[-1:]])
        return Grid(np.minimum.accumulate(whole), self.base.clean)

    def valid(self, levels: Array) -> bool:
        """Return whether the nodes rise, keep apart, and stay between the ends."""
        stop = self.bottom + 3.0 if self.last is None else self.last
        whole = np.concatenate([[self.first], levels, [stop]])
        lowest = float(self.schedule.time(torch.tensor(levels[-1], dtype=torch.float64)))
        return bool((np.diff(whole) > 1e-4).all()) and lowest >= self.base.t[-1] - 1e-12


@dataclass(frozen=True)
class _Solution:
    """The reference: per fine node its level, state and prediction; and neighbouring states."""

    nodes: list[Node]
    x: Array
    d: Array
    gain: Array
    start: State
    end: State


def _reference(
    denoiser: Denoiser, process: Any, frame: _Frame, noise: KeyedNoise, like: State, cond: Any, fine: int, inside: int
) -> _Solution:
    schedule = frame.schedule
    stop = frame.bottom if frame.last is None else frame.last
    lam = np.linspace(frame.first, stop, (fine - 1) * inside + 1)
    t = schedule.time(torch.from_numpy(lam)).numpy()
    t[0] = frame.base.t[frame.fixed]
    t = np.concatenate([frame.base.t[: frame.fixed], t, frame.base.t[-1:] if frame.base.clean else []])
    grid = Grid(np.minimum.accumulate(t), frame.base.clean)
    solver = Multistep(grid.steps, order=3, start="plain")
    rows = next(leaves(like)).shape[0]
    start = _prior(process, like, noise, grid)

    def walk(x: State) -> tuple[list[Array], list[Array], State]:
        states, predictions = [_flat(x)], []

        def keep(done: int, total: int, now: State, x0: State) -> None:
            predictions.append(_flat(x0))
            states.append(_flat(now))

        end = sample(denoiser, process, solver, grid, noise, like, cond, keep, x)
        if not frame.base.clean:
            predictions.append(predictions[-1])
        return states, predictions, end

    states, predictions, end = walk(start)
    nearby = map_state(lambda a, b: a + 1e-3 * (b - a), start, map_state(lambda leaf: leaf.roll(1, 0), start))
    moved, _, moved_end = walk(nearby)
    pick = range(frame.fixed, frame.fixed + (fine - 1) * inside + 1, inside)
    apart = np.stack([np.linalg.norm(moved[i] - states[i], axis=1) for i in pick], 1)
    final = np.linalg.norm(_flat(moved_end) - _flat(end), axis=1)
    gain = final[:, None] / np.maximum(apart, 1e-30) if rows > 1 else np.ones((rows, fine))
    every = zip(*(table.tolist() for table in grid.table(schedule)), strict=True)
    nodes = [Node(*values) for values in every]
    return _Solution(
        [nodes[i] for i in pick],
        np.stack([states[i] for i in pick], 1),
        np.stack([predictions[i] for i in pick], 1),
        gain,
        start,
        end,
    )


def _prior(process: Any, like: State, noise: KeyedNoise, grid: Grid) -> State:
    def one(leaf: Tensor, p: Process, stream: int) -> Tensor:
        return p.prior(leaf, p.draw(leaf, noise, 0, stream), float(grid.t[0]))

    state: State = map_state(one, like, process, streams(process))
    return state


def _flat(state: State) -> Array:
    """Return all fields side by side, shape (B, D), float64 on the host."""
    return np.concatenate([leaf.detach().double().flatten(1).cpu().numpy() for leaf in leaves(state)], 1)


def _distance(found: State, wanted: State) -> Array:
    """Return the root mean square distance per trajectory."""
    apart: Array = np.sqrt(((_flat(found) - _flat(wanted)) ** 2).mean(1))
    return apart


def _programmed(frame: _Frame, solution: _Solution) -> list[Array]:
    """Return the grid of dynamic programming, or none where there are not enough fine nodes."""
    nodes, count = solution.nodes, len(solution.nodes)
    clean = frame.base.clean
    legs = frame.count + (0 if clean else 1)  # steps between fine nodes; a clean end adds one of its own
    if legs >= count - 1:
        return []
    gram = _Gram(solution)
    cost = np.full((count, count, count), np.inf)
    for i in range(count - 1):
        for j in range(i + 1, count):
            if i == 0:
                cost[0, 0, j] = gram.step(nodes, None, 0, j)
            for h in range(i):
                cost[h, i, j] = gram.step(nodes, h, i, j)
    # best[h, i]: least cost of a way whose last two nodes are h and i; the first node counts as its own predecessor.
    best = np.full((count, count), np.inf)
    best[0, 0] = 0.0
    back: list[NDArray[np.int64]] = []
    for _ in range(legs):
        total = best[:, :, None] + cost
        back.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    if clean:
        last = np.median(np.linalg.norm(solution.d - _flat(solution.end)[:, None], axis=2), axis=0)
        best = best + last[None, :]
        i, j = (int(v) for v in np.unravel_index(np.argmin(best), best.shape))
    else:
        i, j = int(np.argmin(best[:, -1])), count - 1
    way = [j]
    for step in reversed(back):
        way.append(i)
        i, j = int(step[i, j]), i
    levels = np.array([nodes[k].lam for k in reversed(way[:-1])])
    levels = levels if clean else levels[:-1]
    return [levels] if frame.valid(levels) else []


class _Gram:
    """Norms of errors that are linear in the stored vectors."""

    def __init__(self, solution: _Solution) -> None:
        stored = np.concatenate([solution.x, solution.d], 1)
        self.products = np.einsum("bid,bjd->bij", stored, stored)
        self.gain, self.count = solution.gain, len(solution.nodes)

    def step(self, nodes: Sequence[Node], h: int | None, i: int, j: int) -> float:
        """Return the median over trajectories of g_j |e_hij|."""
        used = [(nodes[i], None)] + ([] if h is None else [(nodes[h], 0)])
        made = interpolated(nodes[i], nodes[j], used)  # type: ignore[arg-type]
        index = [j, i, self.count + i] + ([] if h is None else [self.count + h])
        weights = np.array([1.0, -made.a, -made.b, *[-w for w in made.past]])
        square = np.einsum("i,bij,j->b", weights, self.products[:, index][:, :, index], weights)
        return float(np.median(self.gain[:, j] * np.sqrt(np.maximum(square, 0.0))))


class _Search:
    """Pattern search over the inner nodes."""

    def __init__(
        self, error: Callable[[Array], Array], frame: _Frame, tries: int,
        progress: Callable[[int, int, float], None] | None,
    ) -> None:  # fmt: skip
        self.error, self.frame, self.tries, self.progress = error, frame, tries, progress
        self.tried, self.lowest = 0, math.inf

    def median(self, levels: Array) -> float:
        """Return the median error."""
        return float(np.median(self.error(levels)))

    def _score(self, levels: Array) -> float:
        """Return the mean logarithm of the error, smooth where a median jumps; infinite outside the bounds."""
        if not self.frame.valid(levels):
            return math.inf
        self.tried += 1
        score = float(np.log(np.maximum(self.error(levels), 1e-12)).mean())
        self.lowest = min(self.lowest, score)
        if self.progress is not None:
            self.progress(min(self.tried, self.tries), self.tries, math.exp(self.lowest))
        return score if math.isfinite(score) else math.inf

    def run(self, starts: Sequence[Array]) -> Array:
        """Return the best nodes found from `starts`."""
        ranked = sorted(((self._score(levels), k, levels) for k, levels in enumerate(starts)), key=lambda row: row[:2])
        # The two most promising starts share a third of the tries, the better result takes the rest.
        found = [self._descend(score, levels, self.tries // 6) for score, _, levels in ranked[:2]]
        score, levels = min(found, key=lambda row: row[0])
        return self._descend(score, levels, self.tries)[1]

    def _descend(self, score: float, levels: Array, budget: int) -> tuple[float, Array]:
        stop = min(self.tried + budget, self.tries)
        whole = np.concatenate([[self.frame.first], levels])
        reach = 0.3 * np.diff(whole)
        while self.tried < stop and reach.max() > 1e-3:
            before, anchor = score, levels
            for k in range(len(levels)):
                for sign in (1.0, -1.0):
                    trial = levels.copy()
                    trial[k] += sign * reach[k]
                    if self.tried < stop and (value := self._score(trial)) < score:
                        score, levels = value, trial
                        reach[k] *= 1.3
                        break
                else:
                    reach[k] *= 0.5
            if score < before:  # on in the direction that the sweep has found
                while self.tried < stop and (value := self._score(2 * levels - anchor)) < score:
                    score, levels, anchor = value, 2 * levels - anchor, levels
        return score, levels
