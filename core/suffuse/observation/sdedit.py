"""SDEdit: variations of a sample, by noising it part of the way and drawing from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from suffuse.denoiser import Condition, Denoiser
from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.noise import KeyedNoise
from suffuse.process import bound, streams
from suffuse.sampler import Sampler, sample
from suffuse.state import State, map_state

__all__ = ["from_time", "noised", "sdedit"]


def noised(process: Any, x0: State, t: float, noise: KeyedNoise) -> State:
    """Return x_t for a clean state, with draw 0 of each field's stream."""
    held = bound(process, x0)
    moved: State = map_state(
        lambda leaf, p, stream: p.corrupt(leaf, t, p.draw(leaf, noise, 0, stream)), x0, held, streams(process)
    )
    return moved


def from_time(grid: Grid, t: float) -> Grid:
    """Return the part of a grid below t, which becomes its first node.

    Raises:
        ConfigError: Unless t lies in the grid's times, above the last.
    """
    if grid.t.ndim != 1 or not grid.t[-1] < t <= grid.t[0]:
        raise ConfigError(
            f"start={t}: must be a time of the grid, above {grid.t.min():.6g} and at most {grid.t.max():.6g}"
        )
    return Grid(np.append(t, grid.t[grid.t < t]), grid.clean)


def sdedit(
    denoiser: Denoiser, process: Any, sampler: Sampler, grid: Grid, noise: KeyedNoise, x0: State, start: float,
    cond: Condition = None, callback: Callable[[int, int, State, State], None] | None = None,
) -> State:  # fmt: skip
    """Return variations of x0: noised to the time `start` and drawn from there.

    "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", Meng et al. 2022, algorithm 1.

    Arguments:
        denoiser: Prediction of x0.
        process: Forward process, or one per field.
        sampler: Solver; it takes the steps of `grid` below `start`.
        grid: Times of a whole draw.
        noise: One stream per row; draw 0 noises x0.
        x0: What is to be varied, of as many rows.
        start: Time from 0 to 1: near 0 little changes, near 1 little is kept.
        cond: Embedded condition.
        callback: As in `suffuse.sampler.sample`.

    Raises:
        ConfigError: When the grid does not hold `start`.
    """
    x = noised(process, x0, start, noise)
    return sample(denoiser, process, sampler, from_time(grid, start), noise, x0, cond, callback, x)
