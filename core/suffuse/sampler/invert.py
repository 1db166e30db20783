"""Inversion: the noise from which the probability-flow ODE makes a given sample.

The ODE runs both ways, so the rows of a deterministic sampler are walked from the data up: x -> noise -> x comes back
with the sampler's own error. "Denoising Diffusion Implicit Models", Song et al. 2021, section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.noise import KeyedNoise
from suffuse.process import Process, reference
from suffuse.sampler.engine import Leg, Route, Sampler
from suffuse.state import State, leaves

__all__ = ["invert"]


def invert(
    denoiser: Denoiser,
    process: Process | Mapping[str, Process],
    sampler: Sampler,
    grid: Grid,
    x: State,
    cond: Any = None,
) -> State:
    """Return the state at the grid's first node that the ODE takes to `x`.

    Arguments:
        denoiser: Prediction of x0.
        process: Forward process, or one per field.
        sampler: A deterministic solver.
        grid: Times; a noise-free last node is left out, so that `x` stands at the lowest level that has noise.
        x: Clean state, shape (B, ...).
        cond: Embedded condition.

    Raises:
        ConfigError: For a sampler that draws noise, or a grid without two nodes that have noise.
    """
    forward = sampler.route(grid, reference(process).schedule)
    legs = tuple(Leg(leg.nodes[::-1]) for leg in reversed(forward.legs) if not forward.clean[leg.nodes[-1]].any())
    if not legs or any(leg.up for leg in forward.legs):
        raise ConfigError(
            f"sampler: {type(sampler).__name__} on this grid has no way back; use euler or heun and more steps"
        )
    if any(row.noisy for row in sampler.along(forward, process).rows):
        raise ConfigError(f"sampler: {type(sampler).__name__} draws noise and cannot be inverted; set sampler.eta=0")
    plan = sampler.along(Route(forward.t, forward.clean, legs), process)
    leaf = next(leaves(x))
    noise = KeyedNoise(torch.zeros(leaf.shape[0], dtype=torch.int64, device=leaf.device))
    return sampler.follow(plan, denoiser, process, noise, x, cond, None, x)
