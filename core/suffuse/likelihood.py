r"""Likelihood: log p(x_0) of what a denoiser generates, through the probability-flow ODE.

In the frame y = x_t / alpha_t the noise level is s = sigma / alpha = e^{-lam}, and with D = E[x_0 | x_t] the flow and
the change of the density along it ("FFJORD", Grathwohl et al. 2019, eq. 4; "Score-Based Generative Modeling through
SDEs", Song et al. 2021, eq. 39) are

    dy/dlam = D - y,    d log p(y)/dlam = n - tr dD/dy,

whatever the schedule, with n the degrees of freedom of the space. We integrate z = y / r, r^2 = d^2 + s^2, for data of
standard deviation d,

    dz/dlam = D / r - g z,    d log p(z)/dlam = g n - tr dD/dy,    g = d^2 / r^2,

which hardly moves for data that is nearly normal and stays of order one at both ends. The end is the prior that the
sampler starts from, N(0, sigma^2): the mean alpha E[x_0] and the data's variance are left out, as in `Gaussian.prior`,
at a cost of the order of |E[x_0]| alpha / sigma nats; ``prior="data"`` puts them back. The start is the data with a
noise of s = e^{-high}: a density for data on a manifold too, and the data's own up to O(s^2) where that is smooth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError, check_whole
from suffuse.integrate import Point, adaptive, fixed
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian, Process, reference, streams
from suffuse.schedule import Schedule
from suffuse.state import State, leaves, map_state

__all__ = ["Likelihood", "LogLikelihood"]

PROBE_STREAM = 200
"""Noise stream of the first field's probes."""

LAM_MAX = 8.0
"""Half log-SNR at which an end without a finite one of its own is cut off, for either sign."""

EXACT_MAX = 4096
"""Most entries of a sample for which every column of the Jacobian is computed."""

_COLUMNS = 32  # columns of the Jacobian at a time


@dataclass(frozen=True)
class LogLikelihood:
    """Log densities of the rows of a batch.

    Arguments:
        nats: log p per sample, shape (B,), float64; of coordinates in the units of the state.
        dof: Degrees of freedom per sample, shape (B,).
        latent: The state at the last time over alpha, of standard deviation near e^{-low}.
        evaluations: Calls of the denoiser.
    """

    nats: Tensor
    dof: Tensor
    latent: State
    evaluations: int

    @property
    def bits_per_dim(self) -> Tensor:
        """-nats / (dof log 2); for integers that were scaled by a factor c to make the state, add log2(1/c)."""
        return -self.nats / (self.dof * math.log(2))


@dataclass(frozen=True)
class Likelihood:
    """How to integrate.

    Arguments:
        probes: Probes of Hutchinson's estimate of the trace; 0 for the exact trace, with as many passes as entries.
        probe: ``rademacher`` or ``normal``.
        steps: Equal steps in log-SNR, six calls of the denoiser each; 0 for steps as the tolerances allow.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step, in units of z and of nats.
        low: Lowest half log-SNR; None for that of the last time, at least -8.
        high: Highest half log-SNR; None for that of time 0, at most 8.
        sigma_data: Standard deviation d of the data, per field for named fields; None for the denoiser's, else 1. Any
            value is right, a good one is fast.
        prior: ``noise``: N(0, sigma^2), what the sampler starts from, so the density is that of its samples; or
            ``data``: N(alpha m, sigma^2 + alpha^2 d^2) with m the prediction for the state 0, nearer to the data's own.
        limit: Largest number of steps tried; reaching it is an error.

    Raises:
        ConfigError: For arguments out of range; when called, for fields that are not Gaussian, for an exact trace of
            too many entries, for missing noise, and when `limit` is reached.
    """

    probes: int = 0
    probe: str = "rademacher"
    steps: int = 0
    rtol: float = 1e-5
    atol: float = 1e-5
    low: float | None = None
    high: float | None = None
    sigma_data: Any = None
    prior: str = "noise"
    limit: int = 1000

    def __post_init__(self) -> None:
        for name in ("probes", "steps"):
            value = getattr(self, name)
            check_whole(f"likelihood.{name}", value, 0)
        for name in ("rtol", "atol", "limit"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"likelihood.{name}={getattr(self, name)} must be positive")
        if self.probe not in ("rademacher", "normal"):
            raise ConfigError(f"likelihood.probe={self.probe} must be rademacher or normal")
        if self.prior not in ("noise", "data"):
            raise ConfigError(f"likelihood.prior={self.prior} must be noise or data")
        for d in leaves({} if self.sigma_data is None else self.sigma_data):
            if isinstance(d, bool) or not isinstance(d, int | float) or not 0 < d < math.inf:
                raise ConfigError(f"likelihood.sigma_data={d} must be a positive number")
        if any(end is not None and not math.isfinite(end) for end in (self.low, self.high)):
            raise ConfigError(f"likelihood: low={self.low} and high={self.high} must be finite")

    def __call__(
        self, denoiser: Denoiser, x0: State, cond: Any = None, noise: KeyedNoise | None = None
    ) -> LogLikelihood:
        """Return the log densities of clean states.

        Arguments:
            denoiser: Prediction of x0, in evaluation mode; guidance makes it the density of nothing in particular.
            x0: Clean states, shape (B, ...), float32 or float64.
            cond: Embedded condition: the density is that given the condition.
            noise: One stream per row, for the probes.
        """
        process = denoiser.process
        for p in leaves(process):
            if not isinstance(p, Gaussian):
                raise ConfigError(f"likelihood: a field of {type(p).__name__} has no flow; only Gaussian fields do")
        if self.probes and noise is None:
            raise ConfigError("likelihood.probes needs noise, one stream per row; or take probes=0, the exact trace")
        entries = sum(leaf[0].numel() for leaf in leaves(x0))
        if not self.probes and entries > EXACT_MAX:
            raise ConfigError(
                f"likelihood.probes=0 takes a backward pass for each of the {entries} entries of a sample; "
                "estimate the trace with probes=1"
            )
        # Callers in inference mode: what autograd keeps must be no inference tensor.
        with torch.inference_mode(False), torch.no_grad():
            cond = None if cond is None else {name: value.clone() for name, value in cond.items()}
            x0 = map_state(lambda leaf, p: p.space.project(leaf.clone()), x0, process)
            return self._integrate(denoiser, x0, cond, noise)

    def _integrate(self, denoiser: Denoiser, x0: State, cond: Any, noise: KeyedNoise | None) -> LogLikelihood:
        process, spread = denoiser.process, self._spread(denoiser)
        schedule = reference(process).schedule
        high, low = self._ends(schedule, process)
        flow = _Flow(denoiser, schedule, spread, cond, self._probes(x0, process, noise))
        start = map_state(lambda x, p, d: x / flow.level(p, high, d).r, x0, process, spread)
        rows = next(leaves(x0)).shape[0]
        point = Point(start, torch.zeros(rows, dtype=torch.float64, device=next(leaves(x0)).device))
        point = fixed(flow, point, high, low, self.steps) if self.steps else self._adaptive(flow, point, high, low)
        dof = map_state(lambda x, p: p.space.dof(x).double(), x0, process)
        mean = flow.predict(low, map_state(torch.zeros_like, start)) if self.prior == "data" else None

        def ends(z: Tensor, m: Tensor | None, n: Tensor, p: Process, d: float) -> Tensor:
            """Return log N(y) of the end and the volumes of y against z at both ends."""
            first, last = flow.level(p, high, d), flow.level(p, low, d)
            variance = last.s**2 if m is None else last.r**2
            away = last.r * z.double() if m is None else last.r * z.double() - m
            square = away.flatten(1).square().sum(1) / variance
            return -0.5 * (square + n * math.log(2 * math.pi * variance)) + n * math.log(last.r / first.r)

        prior = torch.stack(list(leaves(map_state(ends, point.z, mean, dof, process, spread)))).sum(0)
        latent = map_state(lambda z, p, d: z * flow.level(p, low, d).r, point.z, process, spread)
        total = torch.stack(list(leaves(dof))).sum(0)
        return LogLikelihood(prior - point.change, total, latent, flow.calls)

    def _adaptive(self, flow: _Flow, point: Point, high: float, low: float) -> Point:
        found = adaptive(flow, point, high, low, self.rtol, self.atol, self.limit)
        if found is None:
            raise ConfigError(
                f"likelihood.limit={self.limit} steps do not reach the end at rtol={self.rtol}, atol={self.atol}; "
                "raise one"
            )
        return found

    def _spread(self, denoiser: Denoiser) -> Any:
        if self.sigma_data is not None:
            return self.sigma_data
        what = getattr(denoiser, "parameterization", None)
        if what is None:
            return 1.0
        return map_state(lambda one: one.sigma_data, what)

    def _ends(self, schedule: Schedule, process: Any) -> tuple[float, float]:
        first, last = float(schedule.lam(0.0)), float(schedule.lam(1.0))
        high = min(first, LAM_MAX) if self.high is None else self.high
        low = max(last, -LAM_MAX) if self.low is None else self.low
        if not low < high:
            raise ConfigError(f"likelihood: need low < high, not {low:.3g} and {high:.3g}")
        if high > first + 1e-9 or low < last - 1e-9:
            raise ConfigError(
                f"likelihood: from {low:.3g} to {high:.3g} is outside the schedule, whose half log-SNR goes from "
                f"{last:.3g} to {first:.3g}"
            )
        for p in leaves(process):
            ends = [float(p.schedule.lam(schedule.time(lam))) for lam in (high, low)]
            if not all(map(math.isfinite, ends)):
                raise ConfigError("likelihood: a field has no noise or no signal at the ends; give low and high")
        return high, low

    def _probes(self, x0: State, process: Any, noise: KeyedNoise | None) -> list[State]:
        """Return vectors v whose mean of v v^T is the projection on the space: the same along the whole flow."""

        def draw(x: Tensor, p: Process, stream: int, number: int) -> Tensor:
            assert noise is not None  # asked for with the probes
            if self.probe == "normal":
                v = noise.normal(x, number, PROBE_STREAM + stream)
            else:
                v = torch.where(noise.uniform(x, number, PROBE_STREAM + stream) < 0.5, -1.0, 1.0).to(x)
            return p.space.project(v)

        return [map_state(draw, x0, process, streams(process), number) for number in range(self.probes)]


class _Level(NamedTuple):
    """One field's noise level: host numbers."""

    lam: float
    s: float
    r: float
    gain: float
    rate: float


class _Flow:
    """dz/dlam and d log p/dlam at a half log-SNR of the reference schedule."""

    def __init__(self, denoiser: Denoiser, schedule: Schedule, spread: Any, cond: Any, probes: list[State]) -> None:
        self.denoiser, self.schedule, self.spread, self.cond, self.probes = denoiser, schedule, spread, cond, probes
        self.calls = 0

    def level(self, p: Process, lam: float, d: float) -> _Level:
        """Return a field's level where the reference has `lam`; its rate is its own dlam per the reference's."""
        own, rate = lam, 1.0
        if p.schedule != self.schedule:
            t = self.schedule.time(lam)
            own = float(p.schedule.lam(t))
            rate = float(_slope(p.schedule, t) / _slope(self.schedule, t))
        s = math.exp(-own)
        r = math.hypot(d, s)
        return _Level(own, s, r, (d / r) ** 2, rate)

    def predict(self, lam: float, z: State) -> State:
        """Return E[x_0] given z."""
        self.calls += 1
        process, t = self.denoiser.process, float(self.schedule.time(lam))

        def scaled(leaf: Tensor, p: Process, d: float) -> Tensor:
            return p.space.project(leaf) * (float(p.schedule(t).alpha) * self.level(p, lam, d).r)

        x0: State = self.denoiser(map_state(scaled, z, process, self.spread), t, self.cond).x0
        projected: State = map_state(lambda leaf, p: p.space.project(leaf), x0, process)
        return projected

    def __call__(self, lam: float, z: State) -> Point:
        """Return both derivatives."""
        process = self.denoiser.process
        level = map_state(lambda _, p, d: self.level(p, lam, d), z, process, self.spread)
        with torch.enable_grad():
            inputs = map_state(lambda leaf: leaf.detach().requires_grad_(), z)
            x0 = self.predict(lam, inputs)
            slope = map_state(lambda d, leaf, at: d * (at.rate / at.r) - leaf * (at.rate * at.gain), x0, inputs, level)
        # The trace of the whole slope: it nearly vanishes for nearly normal data, and the variance of its estimate too.
        trace = _trace(slope, inputs, self.probes, process)
        return Point(map_state(lambda leaf: leaf.detach(), slope), -trace)


def _slope(schedule: Schedule, t: Tensor) -> Tensor:
    """Return dlam/dt."""
    (alpha, sigma), (d_alpha, d_sigma) = schedule(t), schedule.rates(t)
    return d_alpha / alpha - d_sigma / sigma


def _trace(outputs: State, inputs: State, probes: list[State], process: Any) -> Tensor:
    """Return the trace of d outputs / d inputs on the space, shape (B,), float64.

    Rows do not touch each other, so one backward pass gives v^T J of every row, and v of one field sees the block of
    that field alone.
    """
    out, into, spaces = list(leaves(outputs)), list(leaves(inputs)), [p.space for p in leaves(process)]
    spaces = spaces * (len(out) // len(spaces))
    rows, device = out[0].shape[0], out[0].device
    total = torch.zeros(rows, dtype=torch.float64, device=device)
    for probe in probes:
        v = list(leaves(probe))
        pulled = torch.autograd.grad(out, into, v, retain_graph=True, materialize_grads=True)
        for a, b in zip(pulled, v, strict=True):
            total += (a * b).double().flatten(1).sum(1) / len(probes)
    if probes:
        return total
    for leaf, source, space in zip(out, into, spaces, strict=True):
        size = leaf[0].numel()
        for first in range(0, size, _COLUMNS):
            unit = torch.eye(size, dtype=leaf.dtype, device=device)[first : first + _COLUMNS]
            v = [space.project(row.expand(rows, -1).reshape(leaf.shape)) for row in unit]
            columns = torch.stack(v)
            (pulled,) = torch.autograd.grad(
                leaf, source, columns, retain_graph=True, is_grads_batched=True, materialize_grads=True
            )
            total += (pulled * columns).double().flatten(2).sum((0, 2))
    return total
