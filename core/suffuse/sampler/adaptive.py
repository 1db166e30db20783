r"""Adaptive: a sampler that chooses its own steps, per sample, by an embedded estimate of its error.

The step of order 3 is DPM-Solver++(3S) with stages at 1/3 and 2/3 of the step in log-SNR, the one of order 2 beside it
uses the first stage alone: their difference, in units of atol + rtol |x|, decides whether the step counts and how long
the next one is. Coefficients are the closed forms

    W = alpha_s (1 - e^{-h}),   b_stage = alpha_s (h - 1 + e^{-h}) / (r h),   b_start = W - b_stage.

"DPM-Solver", Lu et al. 2022, appendix C; step control after "Numerical Recipes", Press et al. 2007, section 17.2.1.
The host looks at the device once per step to see whether all samples have arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.noise import KeyedNoise
from suffuse.process import Process, reference
from suffuse.sampler.engine import Leg, Sampler, Stage
from suffuse.sampler.multistep import Euler
from suffuse.solver import Node
from suffuse.state import State, leaves, map_state

__all__ = ["Adaptive"]


@dataclass(frozen=True)
class Adaptive(Sampler):
    """Third-order steps as long as the tolerance allows.

    Arguments:
        steps: Only the first and the last node of the grid of so many steps count.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        first: Length of the first step in log-SNR.
        limit: Largest number of steps tried; reaching it is an error.

    Raises:
        ConfigError: For tolerances or lengths that are not positive; when `limit` is reached.
    """

    rtol: float = 0.05
    atol: float = 0.0078
    first: float = 0.05
    limit: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rtol", "atol", "first", "limit"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"sampler.{name}={getattr(self, name)} must be positive")

    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Return the rows of the way to the first level with signal and to the end: of first order."""
        return Euler(self.steps).column(legs, whole)

    def run(
        self, denoiser: Denoiser, process: Process | Mapping[str, Process], grid: Grid, noise: KeyedNoise, like: State,
        cond: Any = None, callback: Callable[[int, int, State, State], None] | None = None, x: State | None = None,
    ) -> State:  # fmt: skip
        """Return samples, see `suffuse.sampler.sample`; the callback's total is `limit`."""
        if grid.t.ndim > 1:
            raise ConfigError("sampler: adaptive steps need one time for all tokens; choose another sampler")
        schedule = reference(process).schedule
        route = self.route(grid, schedule)
        # Nodes with signal in every field at the start and noise in every field at the end bound the part with steps.
        lams = [p.schedule.lam(torch.from_numpy(grid.t)) for p in leaves(process)]
        first = 0 if all(math.isfinite(float(lam[0])) for lam in lams) else 1
        last = grid.steps if all(math.isfinite(float(lam[-1])) for lam in lams) and not grid.clean else grid.steps - 1
        plan = self.along(route, process)
        ends = [type(plan)(rows, plan.start) for rows in (plan.rows[:first], plan.rows[last:])]
        x = self.follow(ends[0], denoiser, process, noise, like, cond, None, x)
        if last > first:
            times = (float(grid.t[first]), float(grid.t[last]))
            x = self._between(denoiser, process, times, x, cond, callback)
        return self.follow(ends[1], denoiser, process, noise, like, cond, None, x)

    def _between(
        self, denoiser: Denoiser, process: Any, times: tuple[float, float], x: State, cond: Any, callback: Any
    ) -> State:
        schedule, leaf = reference(process).schedule, next(leaves(x))
        rows, device = leaf.shape[0], leaf.device
        lam, end = (schedule.lam(torch.tensor(t, dtype=torch.float64, device=device)) for t in times)
        lam = lam.expand(rows).clone()
        h, before = torch.full_like(lam, self.first), torch.ones_like(lam)
        for tried in range(1, self.limit + 1):
            # A rest too short to matter is taken along, so that the last step is not a sliver.
            h = torch.where(lam + 1.01 * h >= end, end - lam, h)
            low, high, d = self._step(denoiser, process, schedule, x, lam, h, cond)
            error = self._error(process, x, low, high)
            accept = error <= 1
            # Rows that have arrived repeat a step of length 0.
            x = map_state(_chosen, x, high, process, accept)
            lam = torch.where(accept, lam + h, lam)
            bounded = error.clamp(min=1e-6)
            factor = torch.where(accept, 0.9 * bounded ** (-0.7 / 3) * before ** (0.4 / 3), 0.9 * bounded ** (-1 / 3))
            before = torch.where(accept, bounded, before)
            h = h * factor.clamp(0.2, 5.0)
            if callback is not None:
                callback(tried, self.limit, x, d)
            if bool((lam >= end - 1e-9).all()):
                return x
        raise ConfigError(
            f"sampler.limit={self.limit} steps do not reach the end at rtol={self.rtol}, atol={self.atol}; raise one"
        )

    @staticmethod
    def _step(
        denoiser: Denoiser, process: Any, schedule: Any, x: State, lam: Tensor, h: Tensor, cond: Any
    ) -> tuple[State, State, State]:
        """Return the results of order 2 and 3, and the prediction at the start."""
        t, m1, m2, s = (schedule.time(lam + share * h) for share in (0.0, 1 / 3, 2 / 3, 1.0))

        def move(to: Tensor, d: State, stage: Tensor | None = None, there: State | None = None) -> State:
            def one(leaf: Tensor, start: Tensor, inside: Any, p: Process) -> Tensor:
                return _advance(p, leaf, t, to, start, stage, inside)

            moved: State = map_state(one, x, d, there, process)
            return moved

        d0 = denoiser(x, t, cond).x0
        d1 = denoiser(move(m1, d0), m1, cond).x0
        d2 = denoiser(move(m2, d0, m1, d1), m2, cond).x0
        return move(s, d0, m1, d1), move(s, d0, m2, d2), d0

    def _error(self, process: Any, x: State, low: State, high: State) -> Tensor:
        def one(old: Tensor, a: Tensor, b: Tensor, p: Process) -> Tensor:
            unit = self.atol + self.rtol * torch.maximum(old.abs(), b.abs())
            return p.space.mean(((a - b) / unit) ** 2).double()

        return torch.stack(list(leaves(map_state(one, x, low, high, process)))).mean(0).sqrt()


def _chosen(old: Tensor, new: Tensor, p: Process, accept: Tensor) -> Tensor:
    return torch.where(p.space.expand(accept, old), new, old)


def _advance(
    p: Process, x: Tensor, t: Tensor, s: Tensor, start: Tensor, stage: Tensor | None, inside: Tensor | None
) -> Tensor:
    """Return x at s from the prediction at t, and the one at `stage` in between where given."""
    sigma_t, (alpha_s, sigma_s) = p.schedule(t).sigma, p.schedule(s)
    h = p.schedule.lam(s) - p.schedule.lam(t)
    whole = -alpha_s * torch.expm1(-h)
    ratio = sigma_s / sigma_t
    if stage is None or inside is None:
        terms = [(x, ratio), (start, whole)]
    else:
        r = p.schedule.lam(stage) - p.schedule.lam(t)  # the stage's share times h
        # (h - 1 + e^{-h}) / r, by its series where h is small or zero.
        slope = torch.where(h.abs() < 1e-4, h / 2 - h**2 / 6, (h + torch.expm1(-h)) / torch.where(h == 0, 1.0, h))
        weight = alpha_s * slope * h / torch.where(r == 0, 1.0, r)
        terms = [(x, ratio), (start, whole - weight), (inside, weight)]
    total = torch.zeros_like(x)
    for leaf, value in terms:
        total = total + p.space.expand(value.to(x.device, x.dtype), x) * leaf
    return total
