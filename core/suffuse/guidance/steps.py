r"""Guidance that knows the steps: CFG++ and the still first steps of CFG-Zero*.

CFG++ takes x0 from the guided prediction and the noise from the unconditional one: with D = x0(cond) - x0(null),

    x_s = alpha_s (x0_null + lambda D) + sigma_s eps_null.

"CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", Chung et al. 2024, algorithm 2. A
first-order step to s from one prediction x0' is x_s = (sigma_s/sigma_t) x_t + (alpha_s - alpha_t sigma_s/sigma_t) x0',
so the two agree for x0' = x0_null + w D with

    w = lambda / (1 - e^{-h}),   h = lam_s - lam_t:

plain guidance with a scale that belongs to the step. That is what is done here, exactly CFG++ with a first-order
sampler and its counterpart with others; the scale is lambda at the last step and grows as lambda / h on fine grids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.denoiser import Condition, Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.guidance.guided import ClassifierFree
from suffuse.guidance.interval import Ends, Interval
from suffuse.process import Gaussian, Process, bound
from suffuse.state import State, leaves, map_state

__all__ = ["PlusPlus", "Still"]


class PlusPlus(ClassifierFree):
    """CFG++ on a grid; between two nodes the scale is that of their step.

    Arguments:
        denoiser: The denoiser, trained with dropped conditions.
        scale: lambda, at least 0; the paper's are below 1. At 1 it is DDIM with the condition's x0 and the
            unconditional noise, not the denoiser itself.
        null: The embedded absent condition, of one row or as many as the batch.
        grid: The grid that is sampled on.
        interval: (lowest, highest) half log-SNR at which guidance acts; None leaves an end open.

    Raises:
        ConfigError: For a negative scale, an empty interval or a grid with times per token.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, null: Mapping[str, Tensor], grid: Grid,
        interval: Ends | Interval = (None, None),
    ) -> None:  # fmt: skip
        super().__init__(denoiser, scale, null, interval)
        if grid.t.ndim != 1:
            raise ConfigError("guidance=cfgpp: a scale per step needs a grid with one time for all tokens; take cfg")
        self._nodes = torch.from_numpy(-grid.t)
        self._scales = map_state(lambda process: torch.from_numpy(self._table(grid, process)), self.process)

    def scale_at(self, t: float | Tensor) -> Any:
        """Return w per field."""
        if not isinstance(t, Tensor):
            i = self._step(torch.tensor([t], dtype=torch.float64), self._nodes)
            return map_state(lambda table: float(table[i]), self._scales)
        i = self._step(t.double(), self._nodes.to(t.device))
        return map_state(lambda table: table.to(t.device)[i], self._scales)

    def _step(self, t: Tensor, nodes: Tensor) -> Tensor:
        return (torch.searchsorted(nodes, -t, right=True) - 1).clamp(0, len(nodes) - 2)

    def _table(self, grid: Grid, process: Process) -> Any:
        lam = grid.table(process.schedule)[2]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = -np.expm1(lam[:-1] - lam[1:])
        return np.where(share > 0, self.scale / np.where(share > 0, share, 1.0), self.scale)


class Still(Denoiser):
    """No motion at first: where there is less signal than `below`, the flow velocity eps - x0 is zero.

    "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", Fan et al. 2025, zero-init: a guided
    velocity that is worse than none is left out. As a prediction of x0 it is x_t / (alpha + sigma), and x_t over
    (alpha + sigma) stays where it is. Fields that are not Gaussian are not held.

    Arguments:
        denoiser: The denoiser.
        below: Half log-SNR up to which nothing moves.

    Raises:
        ConfigError: When it is NaN.
    """

    def __init__(self, denoiser: Denoiser, below: float) -> None:
        super().__init__()
        if math.isnan(below):
            raise ConfigError("guidance: the log-SNR up to which nothing moves is NaN")
        self.denoiser, self.process = denoiser, denoiser.process
        self._when = Interval(-math.inf, below)
        self._known: dict[float, Any] = {}

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the prediction, or the one that moves nothing."""
        if isinstance(t, Tensor):
            inside, inverse = self._at(t)
        else:
            inside, inverse = self._known[t] if t in self._known else self._known.setdefault(t, self._at(t))
        held = all(isinstance(process, Gaussian) for process in leaves(self.process))
        if inside is True and held:
            return Prediction(map_state(_held, x, inverse, bound(self.process, x)))
        prediction: Prediction = self.denoiser(x, t, cond)
        if inside is False:
            return prediction

        def hold(leaf: Tensor, x0: Tensor, value: Any, process: Process) -> Tensor:
            if not isinstance(process, Gaussian):
                return x0
            still = _held(leaf, value, process)
            return still if inside is True else torch.where(process.space.expand(inside, leaf), still, x0)

        return Prediction(map_state(hold, x, prediction.x0, inverse, bound(self.process, x)))

    def _at(self, t: float | Tensor) -> tuple[bool | Tensor, Any]:
        def inverse(process: Process) -> Any:
            value = 1 / sum(process.schedule(t))
            return value if isinstance(t, Tensor) else float(value)

        return self._when(self.process, t), map_state(inverse, self.process)


def _held(x: Tensor, value: Any, process: Process) -> Tensor:
    return x * (process.space.expand(value.to(x.device, x.dtype), x) if isinstance(value, Tensor) else value)
