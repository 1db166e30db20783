r"""Solver: the coefficients of one step, exact for the polynomial they assume.

The probability-flow ODE is linear in x but for one quantity q, and there are three ways to write it:

    basis    what moves along        q      d(what moves) = q dm
    x0       x / sigma               x0     m = e^lam
    eps      x / alpha               eps    m = e^-lam = sigma / alpha
    flow     x / (alpha + sigma)     u      m = sigma / (alpha + sigma)        u = eps - x0

A step replaces q by the polynomial through some predictions and integrates that exactly. The polynomial may run in lam
(``x0``: DPM-Solver++; ``eps``: DEIS, DPM-Solver) or in m itself (``sigma``, which is eps in sigma/alpha: Heun's and
Adams-Bashforth's methods of EDM and k-diffusion; ``flow``: the same for the straight line). With tau = lam_s - l, ell_j
the Lagrange basis on the nodes used and eta the scale of the reverse SDE's diffusion,

    x0:    b_j = alpha_s (1 + eta^2) \int_0^h e^{-(1+eta^2) tau} ell_j(lam_s - tau) dtau
    eps:   b_j = -sigma_s \int_0^h e^{tau} ell_j(lam_s - tau) dtau
    sigma: b_j = alpha_s \int_{m_t}^{m_s} ell_j(m) dm,      flow: b_j = (alpha_s + sigma_s) \int_{m_t}^{m_s} ell_j(m) dm

by Gauss-Legendre quadrature in float64, which has no small differences to lose digits in. "Fast Sampling of Diffusion
Models with Exponential Integrator", Zhang and Chen 2023, eq. 15; "DPM-Solver++", Lu et al. 2022, eq. 3.7; "UniPC", Zhao
et al. 2023, eq. 3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suffuse.process import Process

__all__ = ["BASES", "FORMS", "Node", "Step", "Used", "first_order", "integrals", "interpolated", "transition", "usable"]

BASES = ("x0", "eps", "sigma", "flow")
FORMS = ("exact", "midpoint", "uniform")

_BASHFORTH = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12)}
"""Weights of Adams and Bashforth on evenly spaced nodes, the newest first."""

History = tuple[Tensor, ...]
"""Stored predictions of one field, the newest first."""


class Node(NamedTuple):
    """One node of a grid."""

    alpha: float
    sigma: float
    lam: float


Used = tuple[Node, int | None]
"""A node whose prediction a step uses, and its place in the history; None is the new prediction."""


@dataclass(frozen=True)
class Step:
    """Coefficients of x' = a base + e x + b d + sum_j past_j h_j + sum_k c_k eps_k, and of what is stored: p x + q d.

    Each is a float, or a tensor (1, T) on a per-token grid. `depth` is how many predictions are kept.
    """

    a: Any = 1.0
    e: Any = 0.0
    b: Any = 0.0
    past: tuple[Any, ...] = ()
    c: tuple[Any, ...] = ()
    p: Any = 0.0
    q: Any = 1.0
    depth: int = 0

    def advance(
        self, base: Tensor, x: Tensor, d: Tensor, history: History, eps: Sequence[Tensor], process: Process
    ) -> Tensor:
        """Return x'."""
        # Numbers are dealt with here, without a further call: a loop of small steps is made of such overheads.
        a, total = self.a, None
        if a.__class__ is not float:
            total = _scaled(base, a, process)
        elif a != 1.0:
            total = base * a
        sources = (x, d), history, eps
        for kind, place, value in self.terms:
            of = sources[kind]
            if place >= len(of):
                continue
            if value.__class__ is not float:
                scaled = _scaled(of[place], value, process)
                total = base + scaled if total is None else total.add_(scaled)
            elif total is None:
                total = torch.add(base, of[place], alpha=value)
            else:
                total.add_(of[place], alpha=value)
        return base * 1.0 if total is None else total

    @functools.cached_property
    def terms(self) -> tuple[tuple[int, int, Any], ...]:
        """Where each term that is not 0 comes from (0: x and d, 1: history, 2: noise), its place there, its factor."""
        every = ((self.e, self.b), self.past, self.c)
        found = [(kind, place, value) for kind, values in enumerate(every) for place, value in enumerate(values)]
        return tuple(term for term in found if term[2].__class__ is not float or term[2])

    def remember(self, x: Tensor, d: Tensor, process: Process, history: History) -> History:
        """Return the history with h in front."""
        if self.depth == 0:
            return history
        p, q = self.p, self.q
        if p.__class__ is float:
            new = d if p == 0.0 else torch.add(x, d, alpha=q) if p == 1.0 else (x * p).add_(d, alpha=q)
        else:
            new = _scaled(x, p, process).add_(_scaled(d, q, process))
        return (new, *history)[: self.depth]

    def place(self, leaf: Tensor) -> Step:
        """Return the step with its tensors on the device and in the dtype of `leaf`."""

        def put(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(put, value))
            return value.to(leaf.device, leaf.dtype) if isinstance(value, Tensor) else value

        return replace(self, **{name: put(getattr(self, name)) for name in ("a", "e", "b", "past", "c", "p", "q")})

    @classmethod
    def stack(cls, columns: Sequence[Step]) -> Step:
        """Return the step of a row whose tokens have the steps `columns`."""

        def column(values: Sequence[float]) -> Any:
            return torch.tensor([values], dtype=torch.float64) if any(values) else 0.0

        def several(name: str) -> tuple[Any, ...]:
            tuples = [getattr(step, name) for step in columns]
            return tuple(column([t[j] if j < len(t) else 0.0 for t in tuples]) for j in range(max(map(len, tuples))))

        plain = {name: column([getattr(s, name) for s in columns]) for name in ("a", "e", "b", "p", "q")}
        return cls(**plain, past=several("past"), c=several("c"), depth=columns[0].depth)


def _scaled(x: Tensor, value: Any, process: Process) -> Tensor:
    return x * (value if isinstance(value, float) else process.space.expand(value.to(x.device, x.dtype), x))


@functools.cache
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points, weights = np.polynomial.legendre.leggauss(64)
    return 0.5 * (points + 1), 0.5 * weights


def integrals(h: float, rate: float, offsets: Sequence[float]) -> list[float]:
    r"""Return \int_0^h e^{-rate tau} ell_j(tau) dtau for the Lagrange basis on `offsets` (values of tau).

    Arguments:
        h: Length of the interval, finite; negative towards more noise.
        rate: Rate of the exponential; negative for the eps basis, 0 for a plain polynomial.
        offsets: Distinct positions of the nodes on the tau axis: h is the step's start, 0 its end.
    """
    if len(offsets) == 1:
        return [-math.expm1(-rate * h) / rate if rate else h]
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
    if eta == 0:
        ratio = s.sigma / t.sigma
        return Step(a=ratio, b=s.alpha - t.alpha * ratio)
    h = s.lam - t.lam
    return Step(
        a=s.sigma / t.sigma * math.exp(-(eta**2) * h),
        b=-s.alpha * math.expm1(-(1 + eta**2) * h),
        c=(_spread(t, s, eta),),
    )


def transition(s: Node, t: Node, scale: float = 1.0) -> Step:
    """Return the step up from s to the noisier t by the forward process, its noise multiplied by `scale`."""
    ratio = t.alpha / s.alpha
    return Step(a=ratio, c=(scale * math.sqrt(max(t.sigma**2 - (ratio * s.sigma) ** 2, 0.0)),))


def usable(basis: str, t: Node, s: Node, *evaluated: Node) -> bool:
    """Return whether a basis has a step from t to s with predictions made at `evaluated` besides t.

    In lam both ends must be finite; sigma/alpha ends at 0 and the straight line begins at pure noise as well. No basis
    but x0 has a quantity to predict where there is no noise.
    """
    ends = {
        "x0": math.isfinite(t.lam) and math.isfinite(s.lam),
        "eps": math.isfinite(t.lam) and math.isfinite(s.lam),
        "sigma": t.alpha > 0 and s.alpha > 0 and t.sigma > 0,
        "flow": t.sigma > 0,
    }
    return ends[basis] and all(_known(basis, node) for node in evaluated)


def interpolated(
    t: Node,
    s: Node,
    used: Sequence[Used],
    basis: str = "x0",
    eta: float = 0.0,
    form: str = "exact",
    at: Node | None = None,
    moved: bool = False,
) -> Step:
    """Return the step from t to s that integrates the polynomial through the predictions `used`.

    Arguments:
        t: Node of the base.
        s: Node of the step's end.
        used: Nodes of the predictions. A repeated one, and one without a place in the basis, is left out: the order
            drops instead of dividing by zero.
        basis: See the module.
        eta: Scale of the reverse SDE's diffusion (basis x0).
        form: ``exact``; ``midpoint`` corrects half a step of slope (k-diffusion's and diffusers' DPM-Solver++(2M));
            ``uniform`` takes Adams and Bashforth's weights of evenly spaced nodes (PNDM).
        at: Node of the new prediction; by default t.
        moved: The state the new prediction was made from is not the base.
    """
    at = t if at is None else at
    p, q = _quantity(basis, at)
    if t == s or not usable(basis, t, s):
        return replace(first_order(t, s, eta), p=p, q=q)
    kept: list[Used] = []
    for node, slot in used:
        place = _place(basis, node)
        if _known(basis, node) and all(abs(place - _place(basis, other)) > _apart(basis, t, s) for other, _ in kept):
            kept.append((node, slot))
    weights = _weights(basis, t, s, [node for node, _ in kept], eta, form)
    past = [0.0] * (max((slot for _, slot in kept if slot is not None), default=-1) + 1)
    new = 0.0
    for (_, slot), weight in zip(kept, weights, strict=True):
        if slot is None:
            new = weight
        else:
            past[slot] = weight
    a = _kept(basis, t, s, eta)
    e, b = new * p, new * q
    a, e = (a, e) if moved else (a + e, 0.0)
    c = (_spread(t, s, eta),) if eta else ()
    return Step(a=a, e=e, b=b, past=tuple(past), c=c, p=p, q=q)


def _spread(t: Node, s: Node, eta: float) -> float:
    """Standard deviation of the reverse SDE's noise over a step."""
    return s.sigma * math.sqrt(-math.expm1(-2 * eta**2 * (s.lam - t.lam)))


def _kept(basis: str, t: Node, s: Node, eta: float) -> float:
    """Factor of the base."""
    if basis == "x0":
        return s.sigma / t.sigma * math.exp(-(eta**2) * (s.lam - t.lam))
    if basis == "flow":
        return (s.alpha + s.sigma) / (t.alpha + t.sigma)
    return s.alpha / t.alpha


def _quantity(basis: str, node: Node) -> tuple[float, float]:
    """Return (p, q): the interpolated quantity is p x + q d at `node`."""
    if basis == "x0" or not _known(basis, node):
        return 0.0, 1.0
    if basis == "flow":
        return 1 / node.sigma, -(node.alpha + node.sigma) / node.sigma
    return 1 / node.sigma, -node.alpha / node.sigma


def _known(basis: str, node: Node) -> bool:
    if basis in ("x0", "eps"):
        return math.isfinite(node.lam)
    return node.sigma > 0 and (basis == "flow" or node.alpha > 0)


def _place(basis: str, node: Node) -> float:
    """Where a node lies on the axis of the polynomial."""
    if basis in ("x0", "eps"):
        return node.lam
    return node.sigma / (node.alpha + node.sigma) if basis == "flow" else node.sigma / max(node.alpha, 1e-300)


def _apart(basis: str, t: Node, s: Node) -> float:
    return 1e-12 * max(abs(_place(basis, s) - _place(basis, t)), abs(_place(basis, t)) if basis == "sigma" else 1.0)


def _weights(basis: str, t: Node, s: Node, nodes: Sequence[Node], eta: float, form: str) -> list[float]:
    start, end = _place(basis, t), _place(basis, s)
    offsets = [end - _place(basis, node) for node in nodes]
    rate, factor = {
        "x0": (1 + eta**2, s.alpha * (1 + eta**2)),
        "eps": (-1.0, -s.sigma),
        "sigma": (0.0, s.alpha),
        "flow": (0.0, s.alpha + s.sigma),
    }[basis]
    h = end - start
    if form == "exact" or len(nodes) == 1:
        return [factor * value for value in integrals(h, rate, offsets)]
    (whole,) = integrals(h, rate, [h])
    if form == "uniform":
        return [factor * whole * share for share in _BASHFORTH[len(nodes)]]
    half = 0.5 * h / (offsets[1] - offsets[0])
    return [factor * whole * (1 + half), -factor * whole * half]
