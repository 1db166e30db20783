"""Single step: Runge-Kutta methods of the exponential kind, whose stages lie inside the step.

A tableau names, per stage, where it goes (a share of the step in log-SNR) and which evaluations its polynomial passes
through. In sigma to the end and back it is EDM's Heun method (Karras et al. 2022, algorithm 1), in eps DPM-Solver-2 and
-3 (Lu et al. 2022, algorithms 1 and 2), in x0 DPM-Solver++(2S) (Lu et al. 2022, algorithm 1) and, with eta = 1,
k-diffusion's DPM++ SDE. Stages of an SDE step take increments of one Brownian path: independent ones would lower its
weak order to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.sampler.engine import Leg, Route, Sampler, Stage
from suffuse.sampler.multistep import _check, _up
from suffuse.schedule import Schedule
from suffuse.solver import Node, Step, Used, first_order, interpolated, usable

__all__ = ["Churn", "Heun", "Langevin", "Resample", "Restart", "SingleStep"]

Tableau = tuple[tuple[float, tuple[int, ...]], ...]


@dataclass(frozen=True)
class SingleStep(Sampler):
    """Single-step method of order 1, 2 or 3, as many evaluations per step.

    A step that starts without signal or ends without noise, where the basis has no place for it, is of first order.

    Arguments:
        steps: Intervals of the grid.
        order: Order and number of stages; order 3 has its stages at 1/3 and 2/3.
        basis: What is interpolated, see `suffuse.solver`.
        share: Where the stage of order 2 lies, in (0, 1].
        midpoint: Order 2 at share 1/2 uses the prediction there alone, instead of the line through both.
        eta: Scale of the reverse SDE's diffusion; needs basis x0 and order 1 or 2.

    Raises:
        ConfigError: For values outside these.
    """

    order: int = 2
    basis: str = "eps"
    share: float = 0.5
    midpoint: bool = False
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.order, self.eta, self.basis)
        if not 0 < self.share <= 1:
            raise ConfigError(f"sampler.share={self.share} must be in (0, 1]")
        if self.midpoint and (self.order != 2 or self.share != 0.5):
            raise ConfigError("sampler.midpoint=true needs sampler.order=2 and sampler.share=0.5")
        if self.eta and self.order > 2:
            raise ConfigError(f"sampler.eta={self.eta} needs sampler.order=1 or 2, not {self.order}")

    @property
    def tableau(self) -> Tableau:
        """Per stage, the share of the step where it goes and the evaluations it uses."""
        if self.order == 1:
            return ((1.0, (0,)),)
        if self.order == 2:
            return ((self.share, (0,)), (1.0, (1,) if self.midpoint else (0, 1)))
        return ((1 / 3, (0,)), (2 / 3, (0, 1)), (1.0, (0, 2)))

    @property
    def inner(self) -> tuple[float, ...]:
        """Shares of the stages before the end."""
        return tuple(share for share, _ in self.tableau if share < 1)

    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Return a row per stage."""
        return [[_up(nodes[0], nodes[-1], leg)] if leg.up else self._leg(nodes, whole) for nodes, leg in legs]

    def _leg(self, nodes: list[Node], whole: bool) -> list[Stage]:
        t, s, stages = nodes[0], nodes[-1], len(self.tableau)
        # Where each stage goes, and so where the next one is evaluated.
        goals = [nodes[-1] if share == 1 else nodes[1 + self.inner.index(share)] for share, _ in self.tableau]
        if t == s or not usable(self.basis, t, s, *goals[:-1]):
            return self._lower(t, s, nodes, goals, whole)
        rows: list[Stage] = []
        for j, (goal, (_, evaluated)) in enumerate(zip(goals, self.tableau, strict=True)):
            made = [t, *goals]
            if evaluated == (1,) and abs(2 * goals[0].lam - t.lam - s.lam) > 1e-9 * (s.lam - t.lam):
                evaluated = (0, 1)  # another field's stage need not be this one's midpoint
            used: list[Used] = [(made[k], None if k == j else j - 1 - k) for k in evaluated]
            step = interpolated(t, goal, used, self.basis, self.eta, at=made[j], moved=j > 0)
            draws = tuple(range(len(step.c)))
            if self.eta and j:
                # The path up to the stage is the stage's own noise, carried on; the rest of the step is new.
                first, rest = interpolated(t, goals[0], [(t, None)], self.basis, self.eta), 0.0
                if goals[0] != goal:
                    onward = first_order(goals[0], goal, self.eta)
                    carried, rest = first.c[0] * onward.a, onward.c[0]
                else:
                    carried = first.c[0]
                step, draws = replace(step, c=(carried, rest)), (0, 1)
            last = j == stages - 1
            rows.append(Stage(replace(step, depth=stages - 1), self._at(nodes, j), last, not last, draws))
        return rows

    def _lower(self, t: Node, s: Node, nodes: list[Node], goals: list[Node], whole: bool) -> list[Stage]:
        """Return the rows of a step of first order."""
        euler = first_order(t, s, self.eta)
        draws = (0,) if euler.c else ()
        if whole or len(goals) == 1:
            return [Stage(replace(euler, depth=len(goals) - 1), draws=draws)]
        # Beside other tokens that need more rows, the step is made from the stored prediction.
        rows = [
            Stage(replace(first_order(t, goal), depth=len(goals) - 1), self._at(nodes, j), False, True)
            for j, goal in enumerate(goals[:-1])
        ]
        past = (*[0.0] * (len(goals) - 2), euler.b)
        again = Step(a=euler.a, past=past, c=euler.c, depth=len(goals) - 1)
        return [*rows, Stage(again, self._at(nodes, len(goals) - 1), True, False, draws)]

    def _at(self, nodes: list[Node], stage: int) -> int:
        if stage == 0:
            return 0
        share = self.tableau[stage - 1][0]
        return len(nodes) - 1 if share == 1 else 1 + self.inner.index(share)


@dataclass(frozen=True)
class Heun(SingleStep):
    """EDM's second-order method: the trapezoidal rule in sigma/alpha, two evaluations per step.

    "Elucidating the Design Space …", Karras et al. 2022, algorithm 1.
    """

    basis: str = "sigma"
    share: float = 1.0


@dataclass(frozen=True)
class Churn(Heun):
    """Heun's method that adds some noise before every step.

    "Elucidating the Design Space …", Karras et al. 2022, algorithm 2, in sigma/alpha.

    Arguments:
        churn: S_churn; a step's noise level is first raised by the factor 1 + min(churn / steps, sqrt(2) - 1).
        low: S_tmin, lowest sigma/alpha at which that is done.
        high: S_tmax, highest.
        spread: S_noise, factor of the added noise.

    Raises:
        ConfigError: For a negative churn, spread <= 0, or low >= high.
    """

    churn: float = 40.0
    low: float = 0.05
    high: float = 50.0
    spread: float = 1.003

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.churn < math.inf or not 0 < self.spread < math.inf:
            raise ConfigError(f"sampler: need churn >= 0 and spread > 0, not {self.churn} and {self.spread}")
        _check_window(self.low, self.high)

    def route(self, grid: Grid, schedule: Schedule) -> Route:
        """Return every interval, with a leg up before those in the window."""
        ratio = _ratios(grid, schedule, type(self).__name__)
        factor = 1 + min(self.churn / grid.steps, math.sqrt(2) - 1)
        inside = (ratio >= self.low) & (ratio <= self.high)
        raised = schedule.time(-torch.from_numpy(np.log(np.where(inside, ratio, 1.0) * factor))).numpy()
        raised = np.where(inside, np.minimum(raised, max(1.0, grid.t[0])), grid.t)
        pairs: list[tuple[int, int]] = []
        for i in range(grid.steps):
            up = raised[i] > grid.t[i]
            pairs += [(i, grid.steps + 1 + i), (grid.steps + 1 + i, i + 1)] if up else [(i, i + 1)]
        return self.through(grid, schedule, pairs, raised[:-1], self.spread)


@dataclass(frozen=True)
class Restart(Heun):
    """Heun's method that goes back up a part of the way, by the forward process, and down again.

    "Restart Sampling for Improving Generative Processes", Xu et al. 2023, algorithm 1.

    Arguments:
        low: sigma/alpha from which it goes up: that of the nearest node. Nothing happens on a grid that starts lower.
        high: sigma/alpha to which it goes up.
        repeats: How often.
        inside: Steps of the way down again, evenly spaced in log-SNR.

    Raises:
        ConfigError: For low >= high, or fewer than 1 repeat or step.
    """

    low: float = 0.1
    high: float = 1.0
    repeats: int = 2
    inside: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_window(self.low, self.high)
        for name in ("repeats", "inside"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"sampler.{name}={getattr(self, name)} must be a whole number of at least 1")

    def route(self, grid: Grid, schedule: Schedule) -> Route:
        """Return every interval, and the repeats where the low level is reached."""
        ratio = _ratios(grid, schedule, type(self).__name__)
        with np.errstate(divide="ignore"):
            away = np.abs(np.log(ratio[1:]) - math.log(self.low))
        back = 1 + int(np.argmin(np.where(ratio[1:] > 0, away, np.inf)))
        pairs = [(i, i + 1) for i in range(grid.steps)]
        if not 0 < ratio[back] < self.high or self.low >= ratio[0]:
            return self.through(grid, schedule, pairs)
        levels = np.exp(np.linspace(math.log(self.high), math.log(ratio[back]), self.inside + 1))[:-1]
        extra = np.minimum(schedule.time(-torch.from_numpy(np.log(levels))).numpy(), max(1.0, grid.t[0]))
        first = grid.steps + 1
        down = [(first + i, first + i + 1) for i in range(self.inside - 1)] + [(first + self.inside - 1, back)]
        pairs[back:back] = [(back, first), *down] * self.repeats
        return self.through(grid, schedule, pairs, extra)


@dataclass(frozen=True)
class Resample(SingleStep):
    """Ancestral sampling that goes back up after every few steps and comes down again.

    It lets the free part of an inpainted sample agree with the known one. "RePaint", Lugmayr et al. 2022, algorithm 1
    and figure 3.

    Arguments:
        jump: Steps that it goes back.
        repeats: How often each part is walked.
    """

    order: int = 1
    basis: str = "x0"
    eta: float = 1.0
    jump: int = 5
    repeats: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("jump", "repeats"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"sampler.{name}={getattr(self, name)} must be a whole number of at least 1")

    def route(self, grid: Grid, schedule: Schedule) -> Route:
        """Return every part `repeats` times; what ends without noise only once."""
        ratio = _ratios(grid, schedule, type(self).__name__)
        pairs: list[tuple[int, int]] = []
        for first in range(0, grid.steps, self.jump):
            last = min(first + self.jump, grid.steps)
            end = last if ratio[last] > 0 else last - 1  # there is no way up from a clean state
            down = [(i, i + 1) for i in range(first, end)]
            if end > first and np.isfinite(ratio[first]):
                pairs += [*down, (end, first)] * (self.repeats - 1)
            pairs += [(i, i + 1) for i in range(first, last)]
        return self.through(grid, schedule, pairs)


@dataclass(frozen=True)
class Langevin(SingleStep):
    """A predictor, then steps of Langevin dynamics at the level it has reached.

        x' = x + delta (alpha x0 - x) + sqrt(2 delta) sigma eps,    delta = 2 snr^2

    "Score-Based Generative Modeling through SDEs", Song et al. 2021, algorithm 4, with sqrt(D)/sigma and sqrt(D), the
    norms that score and noise have in D dimensions, in place of measured ones.

    Arguments:
        steps: Intervals of the grid.
        corrections: Langevin steps per interval.
        snr: The paper's r, in (0, 0.7].
        order: Order of the predictor.
        eta: Scale of the predictor's diffusion.

    Raises:
        ConfigError: For values outside these.
    """

    order: int = 1
    basis: str = "x0"
    eta: float = 1.0
    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.corrections, int) or self.corrections < 0:
            raise ConfigError(f"sampler.corrections={self.corrections} must be a whole number of at least 0")
        if not 0 < self.snr <= 0.7:
            raise ConfigError(f"sampler.snr={self.snr} must be in (0, 0.7]")

    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Return the predictor's rows and the corrections."""
        delta = 2 * self.snr**2
        rows = super().column(legs, whole)
        for row, (nodes, leg) in zip(rows, legs, strict=True):
            t, s = nodes[0], nodes[-1]
            if leg.up or (whole and s.sigma == 0):
                continue
            moves = t != s and s.sigma > 0
            step = Step(1 - delta, 0.0, delta * s.alpha, (), (math.sqrt(2 * delta) * s.sigma,)) if moves else Step()
            row += [Stage(step, len(nodes) - 1, draws=(2 + k,) if step.c else ()) for k in range(self.corrections)]
        return rows


def _check_window(low: float, high: float) -> None:
    if not 0 <= low < high:
        raise ConfigError(f"sampler: need 0 <= low < high, not {low} and {high}")


def _ratios(grid: Grid, schedule: Schedule, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return sigma/alpha at the nodes, 0 where there is no noise."""
    if grid.t.ndim > 1:
        raise ConfigError(f"sampler: {name} needs one time for all tokens; choose a method that has no way up")
    return np.exp(-grid.table(schedule)[2])
