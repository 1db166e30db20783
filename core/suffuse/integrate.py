r"""Integrate: an ordinary differential equation for a state and a number per row.

    z' = f(tau, z),    c' = h(tau, z)

by the pair of orders 5 and 4 of "A Family of Embedded Runge-Kutta Formulae", Dormand and Prince 1980, table 2: with
equal steps, or with steps whose error estimate, the difference of the two orders, stays below a tolerance. Samplers do
not use it: they know the linear part of their equation. It is for what is integrated beside, as a density is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from suffuse.state import State, leaves, map_state

__all__ = ["Point", "adaptive", "fixed"]

NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)  # fmt: skip
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""The row of order 5, the last of the stages, minus the one of order 4."""


class Point(NamedTuple):
    """Where the solution is, or how fast it moves: z per field, shape (B, ...), and c, shape (B,)."""

    z: State
    change: Tensor


Slope = Callable[[float, State], Point]


def fixed(slope: Slope, point: Point, start: float, end: float, steps: int) -> Point:
    """Return the solution at `end` after equal steps, of order 5; six calls of `slope` each."""
    h = (end - start) / steps
    for k in range(steps):
        at = start + k * h
        point = _moved(point, _slopes(slope, point, at, h, slope(at, point.z)), STAGES[6], h)
    return point


def adaptive(
    slope: Slope, point: Point, start: float, end: float, rtol: float, atol: float, limit: int
) -> Point | None:
    """Return the solution at `end`, or None where `limit` steps were tried; the host looks at each step's error.

    Arguments:
        slope: Called as ``slope(tau, z)``.
        point: The solution at `start`.
        start: First value of tau.
        end: Last value of tau, on either side.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step; the row with the largest error counts, by its mean square per field.
        limit: Largest number of steps tried.
    """
    at, sign = start, math.copysign(1.0, end - start)
    h = min(0.1, abs(end - start))
    now = slope(at, point.z)
    for _ in range(limit):
        # A rest too short to matter is taken along, so that the last step is not a sliver.
        last = 1.01 * h >= abs(end - at)
        h = abs(end - at) if last else h
        slopes = _slopes(slope, point, at, sign * h, now)
        new = _moved(point, slopes, STAGES[6], sign * h)
        then = slope(at + sign * h, new.z)
        size = float(_size(point, new, _moved(_zero(point), [*slopes, then], ERROR, sign * h), rtol, atol))
        if size <= 1:
            if last:
                return new
            point, at, now = new, at + sign * h, then
        h *= min(5.0, max(0.2, 0.9 * max(size, 1e-10) ** -0.2)) if math.isfinite(size) else 0.2
    return None


def _slopes(slope: Slope, point: Point, at: float, h: float, now: Point) -> list[Point]:
    """Return the slopes at the six stages; the first is at hand."""
    slopes = [now]
    for node, row in zip(NODES[1:6], STAGES[1:6], strict=True):
        slopes.append(slope(at + node * h, _moved(point, slopes, row, h).z))
    return slopes


def _moved(point: Point, slopes: list[Point], row: tuple[float, ...], h: float) -> Point:
    def one(start: Tensor, *rates: Tensor) -> Tensor:
        for c, rate in zip(row, rates, strict=True):
            if c:
                start = torch.add(start, rate, alpha=c * h)
        return start

    used = slopes[: len(row)]
    z = map_state(one, point.z, *(slope.z for slope in used))
    return Point(z, one(point.change, *(slope.change for slope in used)))


def _zero(point: Point) -> Point:
    return Point(map_state(torch.zeros_like, point.z), torch.zeros_like(point.change))


def _size(old: Point, new: Point, error: Point, rtol: float, atol: float) -> Tensor:
    """Return the largest error of a row in units of the tolerance."""

    def one(a: Tensor, b: Tensor, e: Tensor) -> Tensor:
        unit = atol + rtol * torch.maximum(a.abs(), b.abs())
        return (e / unit).double().square().flatten(1).mean(1)

    fields = torch.stack(list(leaves(map_state(one, old.z, new.z, error.z)))).amax(0)
    change = one(old.change[:, None], new.change[:, None], error.change[:, None])
    return torch.maximum(fields, change).sqrt().amax()
