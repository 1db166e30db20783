"""Gradient: derivatives of a denoiser, also for callers who switched gradients off."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from suffuse.denoiser import Condition, Denoiser
from suffuse.process import Gaussian
from suffuse.schedule import Schedule
from suffuse.state import State, leaves, map_state

__all__ = ["Pullback", "differentiating", "gain", "levels", "ordinary", "pullback", "variable"]

LEAST = 1e-4
"""Smallest alpha/sigma at which sigma^2/alpha is formed: pure noise says nothing of x0, and infinity times that nothing
would be NaN."""


@contextlib.contextmanager
def differentiating() -> Iterator[None]:
    """Record gradients inside, whatever the caller switched off."""
    # Autocast keeps the weights it has cast; those it cast in inference mode cannot be differentiated through.
    torch.clear_autocast_cache()
    with torch.inference_mode(False), torch.enable_grad():
        yield
    torch.clear_autocast_cache()


def ordinary(tree: Any) -> Any:
    """Return a tree with its inference tensors copied, so that they may be saved for a backward pass."""
    if isinstance(tree, Tensor):
        return tree.clone() if tree.is_inference() else tree
    return {name: ordinary(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


def variable(x: State) -> State:
    """Return a copy of a state whose float fields are leaves of a graph."""
    with differentiating():
        found: State = map_state(
            lambda leaf: leaf.detach().clone().requires_grad_(leaf.is_floating_point()), ordinary(x)
        )
        return found


class Pullback(NamedTuple):
    """A prediction and its derivative.

    Arguments:
        x0: The prediction, outside the graph.
        back: u -> J^T u with J = d x0 / d x, shaped like x0; zero for the fields that are not Gaussian.
    """

    x0: State
    back: Callable[[State], State]


def pullback(denoiser: Denoiser, x: State, t: float | Tensor, cond: Condition) -> Pullback:
    """Return x0 and the transposed Jacobian of the denoiser at x."""
    with differentiating():
        leaf = variable(x)
        x0 = denoiser(leaf, ordinary(t), ordinary(cond)).x0
    inputs = [
        value for value, process in zip(leaves(leaf), _each(denoiser.process, leaf), strict=True)
        if isinstance(process, Gaussian)
    ]  # fmt: skip
    outputs = list(leaves(x0))
    moving = [i for i, value in enumerate(outputs) if value.requires_grad]

    def back(u: State) -> State:
        along = list(leaves(ordinary(u)))
        if not moving:
            still: State = map_state(torch.zeros_like, u)
            return still
        with differentiating():
            found = torch.autograd.grad(
                [outputs[i] for i in moving], inputs, [along[i].to(outputs[i]) for i in moving], retain_graph=True,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        rest = iter(found)
        result: State = map_state(
            lambda value, process, like: next(rest) if isinstance(process, Gaussian) else torch.zeros_like(like),
            leaf, denoiser.process, u,
        )  # fmt: skip
        return result

    return Pullback(map_state(Tensor.detach, x0), back)


def gain(denoiser: Denoiser, x: State, t: float | Tensor) -> Any:
    """Return sigma^2 / alpha per field, a float or broadcasting against the field; 0 for what is not Gaussian.

    It turns a gradient with respect to x_t into a shift of x0 (Tweedie's formula), and the denoiser's Jacobian J into
    the covariance of x0 given x_t.
    """

    def one(leaf: Tensor, process: Any) -> Any:
        if not isinstance(process, Gaussian):
            return 0.0
        if not isinstance(t, Tensor):
            alpha, sigma = levels(process.schedule, t)
            return sigma**2 / max(alpha, LEAST * sigma)
        at = process.schedule(t)
        value = at.sigma**2 / torch.maximum(at.alpha, LEAST * at.sigma)
        return process.space.expand(value.to(leaf.device, leaf.dtype), leaf)

    return map_state(one, x, denoiser.process)


@functools.lru_cache(4096)
def levels(schedule: Schedule, t: float) -> tuple[float, float]:
    """Return alpha and sigma at a time as floats."""
    alpha, sigma = schedule(t)
    return float(alpha), float(sigma)


def _each(process: Any, x: State) -> Iterator[Any]:
    return leaves(map_state(lambda _, p: p, x, process))
