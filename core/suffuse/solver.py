r"""Solver: the coefficients of one step, exact for the polynomial they assume.

With tau = lam_s - l and ell_j the Lagrange basis on the nodes used,

    x0 basis:   b_j = alpha_s (1 + eta^2) \int_0^h e^{-(1+eta^2) tau} ell_j(lam_s - tau) dtau
    eps basis:  b_j = -sigma_s \int_0^h e^{tau} ell_j(lam_s - tau) dtau

by Gauss-Legendre quadrature in float64, which has no small differences to lose digits in. "Fast Sampling of Diffusion
Models with Exponential Integrator", Zhang and Chen 2023, eq. 15; "DPM-Solver++", Lu et al. 2022, eq. 3.7.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Node", "Step", "first_order", "heun", "integrals", "interpolated"]


class Node(NamedTuple):
    """One node of a grid."""

    alpha: float
    sigma: float
    lam: float


@dataclass(frozen=True)
class Step:
    """Coefficients of x' = a base + e x + b d + sum_j past_j h_j + c eps, and of what is stored, h = p x + q d.

    Each is a float, or a tensor (1, T) on a per-token grid. `depth` is how many predictions are kept.
    """

    a: Any = 1.0
    e: Any = 0.0
    b: Any = 0.0
    past: tuple[Any, ...] = ()
    c: Any = 0.0
    p: Any = 0.0
    q: Any = 1.0
    depth: int = 0
    push: bool = True

    @classmethod
    def stack(cls, columns: Sequence[Step]) -> Step:
        """Return the step of a row whose tokens have the steps `columns`."""

        def column(values: Sequence[float]) -> Any:
            return torch.tensor([values], dtype=torch.float64) if any(values) else 0.0

        length = max(len(step.past) for step in columns)
        past = [column([s.past[j] if j < len(s.past) else 0.0 for s in columns]) for j in range(length)]
        plain = {name: column([getattr(s, name) for s in columns]) for name in ("a", "e", "b", "c", "p", "q")}
        return cls(**plain, past=tuple(past), depth=columns[0].depth, push=columns[0].push)


@functools.cache
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points, weights = np.polynomial.legendre.leggauss(64)
    return 0.5 * (points + 1), 0.5 * weights


def integrals(h: float, rate: float, offsets: Sequence[float]) -> list[float]:
    r"""Return \int_0^h e^{-rate tau} ell_j(tau) dtau for the Lagrange basis on `offsets` (values of tau).

    Arguments:
        h: Length of the interval, finite and positive.
        rate: Rate of the exponential; negative for the eps basis.
        offsets: Distinct positions of the nodes on the tau axis: h is the step's start, 0 its end.
    """
    if len(offsets) == 1:
        return [-math.expm1(-rate * h) / rate]
    points, weights = _legendre()
    tau = h * points
    kernel = h * weights * np.exp(-rate * tau)
    found = []
    for j, own in enumerate(offsets):
        basis = np.ones_like(tau)
        for k, other in enumerate(offsets):
            if k != j:
                basis *= (tau - other) / (own - other)
        found.append(float(np.sum(kernel * basis)))
    return found


def first_order(t: Node, s: Node, eta: float = 0.0) -> Step:
    """Return the step that holds x0 constant; finite also where alpha_t = 0 or sigma_s = 0."""
    if t == s:
        return Step()
    if s.sigma == 0:
        return Step(a=0.0, b=s.alpha)
    h = s.lam - t.lam
    if eta == 0:
        ratio = s.sigma / t.sigma
        return Step(a=ratio, b=s.alpha - t.alpha * ratio)
    decay = math.exp(-(eta**2) * h)
    return Step(
        a=s.sigma / t.sigma * decay,
        b=-s.alpha * math.expm1(-(1 + eta**2) * h),
        c=s.sigma * math.sqrt(-math.expm1(-2 * eta**2 * h)),
    )


def interpolated(
    t: Node, s: Node, past: Sequence[Node], eta: float = 0.0, basis: str = "x0", ahead: bool = False
) -> Step:
    """Return the exponential multistep step from t to s.

    Arguments:
        t: Node of the step's start.
        s: Node of its end.
        past: Earlier nodes, the newest first. Those without signal, and repeated ones, are left out: the order drops
            instead of dividing by zero.
        eta: Scale of the reverse SDE's diffusion (x0 basis).
        basis: ``x0`` or ``eps``.
        ahead: The new prediction was made at s, from a stage, and the one at t is the newest stored: a corrector.
    """
    finite = math.isfinite(t.lam) and math.isfinite(s.lam)
    store = (1 / t.sigma, -t.alpha / t.sigma) if basis == "eps" and finite else (0.0, 1.0)
    if t == s or not finite:
        step = first_order(t, s, eta)
        return Step(a=step.a, b=step.b, c=step.c, p=store[0], q=store[1])
    h = s.lam - t.lam
    offsets = [0.0, h] if ahead else [h]
    slots: list[int | None] = [None, 0] if ahead else [None]
    for j, node in enumerate(past):
        offset = s.lam - node.lam
        if math.isfinite(offset) and all(abs(offset - other) > 1e-12 * max(1.0, h) for other in offsets):
            offsets.append(offset)
            slots.append(j)
    if basis == "x0":
        rate, factor = 1 + eta**2, s.alpha * (1 + eta**2)
        a = s.sigma / t.sigma * math.exp(-(eta**2) * h)
    else:
        rate, factor = -1.0, -s.sigma
        a = s.alpha / t.alpha
    new, *rest = (factor * value for value in integrals(h, rate, offsets))
    stored = [0.0] * (max((slot for slot in slots[1:] if slot is not None), default=-1) + 1)
    for slot, value in zip(slots[1:], rest, strict=True):
        if slot is not None:
            stored[slot] = value
    e, b = 0.0, new
    if basis == "eps":  # the new eps is (x - alpha d) / sigma at the node where it was made
        at = s if ahead else t
        weight, b = new / at.sigma, -new * at.alpha / at.sigma
        a, e = (a, weight) if ahead else (a + weight, 0.0)
    c = s.sigma * math.sqrt(-math.expm1(-2 * eta**2 * h)) if eta else 0.0
    return Step(a=a, e=e, b=b, past=tuple(stored), c=c, p=store[0], q=store[1])


def heun(t: Node, s: Node) -> Step | None:
    """Return the second stage of Heun's method in sigma/alpha, or None where only the first order is defined.

    With r = sigma/alpha: y' = y + (r_s - r_t)/2 [(y - d_t)/r_t + (y~ - d_s)/r_s], y~ the Euler step, multiplied out.
    """
    if t == s or t.alpha == 0 or s.sigma == 0:
        return None
    now, then = t.sigma / t.alpha, s.sigma / s.alpha
    half, ratio = 0.5 * (then - now), then / now
    return Step(
        a=s.sigma / t.sigma,
        b=-s.alpha * half / then,
        past=(s.alpha * half * ((1 - ratio) / then - 1 / now),),
    )
