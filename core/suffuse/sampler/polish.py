r"""Polished: a multistep sampler whose result is denoised again, from many noises, and averaged.

    x <- (1/K) \sum_k x0-hat(alpha x + sigma eps_k, t)

By Tweedie's formula this is a step of length (sigma/alpha)^2 along the gradient of the log density that data has after
noise of that level, averaged over the noise: what `x` shares with no sample of the data, and what the network only
believed because of one noise, goes ("Plug-and-Play image restoration with Stochastic deNOising REgularization", Renaud
et al. 2024, section 3.1, there against a likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from suffuse.errors import ConfigError, check_whole
from suffuse.grid import Grid
from suffuse.sampler.engine import Leg, Route, Stage
from suffuse.sampler.multistep import Multistep
from suffuse.schedule import Schedule
from suffuse.solver import Node, Step, transition

__all__ = ["Polished"]


@dataclass(frozen=True)
class Polished(Multistep):
    """A multistep method, then the mean of what is denoised from several noises, once per level.

    It costs `draws` evaluations per level. Of a Gaussian with variance v it leaves v c^2 + c^2 s^2 / K at s =
    sigma/alpha, c = v / (v + s^2): samples move towards the middle of what data does below the size of s, so levels
    belong where the data has no variety worth keeping. A level at or above a token's start, where only a part of the
    way is walked, is left out, and so are all of them on a grid that does not end clean.

    Arguments:
        levels: sigma/alpha of each polishing, in their order.
        draws: K.

    Raises:
        ConfigError: For levels that are not positive, and fewer than 1 draw.
    """

    levels: Sequence[float] = (1.0,)
    draws: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "levels", tuple(self.levels))
        for level in self.levels:
            if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < math.inf:
                raise ConfigError(f"sampler.levels={list(self.levels)} must be positive numbers")
        check_whole("sampler.draws", self.draws)

    def route(self, grid: Grid, schedule: Schedule) -> Route:
        """Return every interval, and a leg up per level from the clean end."""
        route = super().route(grid, schedule)
        if not route.clean[grid.steps].any():
            return route
        highest = np.exp(-grid.table(schedule)[2][0])
        moves = route.clean[grid.steps]
        rows = []
        for level in self.levels:
            t = float(schedule.time(torch.tensor(-math.log(level), dtype=torch.float64)))
            row = np.where(moves & (highest > level), t, route.t[grid.steps])
            if (row != route.t[grid.steps]).any():
                rows.append(row)
        if not rows:
            return route
        first = len(route.t)
        legs = tuple(Leg((grid.steps, first + i, grid.steps), up=True) for i in range(len(rows)))
        extra = np.stack(rows)
        rests = (extra == route.t[grid.steps]) & moves
        return Route(np.concatenate([route.t, extra]), np.concatenate([route.clean, rests]), route.legs + legs)

    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Return the rows of the method, and one per draw and one more of every polishing."""
        way = [leg for leg in legs if not leg[1].up]
        return super().column(way, whole) + [self._polishing(nodes) for nodes, leg in legs if leg.up]

    def _polishing(self, nodes: list[Node]) -> list[Stage]:
        end, level, _ = nodes
        up = mean = Step()  # a token that rests
        if end != level:
            up, share = transition(end, level), end.alpha / self.draws
            mean = Step(0.0, 0.0, share, (share,) * (self.draws - 1))
        # Every state to denoise is made from the same base; the predictions before the last are stored.
        kept = replace(up, depth=self.draws - 1)
        noises = [(k,) if up.c else () for k in range(self.draws)]
        rows = [Stage(up, None, False, draws=noises[0]), *(Stage(kept, 1, False, True, own) for own in noises[1:])]
        return [*rows, Stage(mean, 1)]
