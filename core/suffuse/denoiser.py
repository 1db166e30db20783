r"""Denoiser: the posterior mean E[x_0 | x_t], and how a network's output becomes it.

Samplers, guidance and metrics see x_0-hat only; eps, score and velocity follow from it:

    eps = (x_t - alpha x0) / sigma,   score = -eps / sigma,   u = eps - x0.

A network F gives it through a parameterisation x0 = skip x_t + out F(inp x_t, noise). For alpha = a, sigma = s and data
of standard deviation d:

    x0     skip 0                    out 1
    eps    skip 1/a                  out -s/a
    v      skip a/(a^2+s^2)          out -s/(a^2+s^2)        v = a eps - s x0
    flow   skip 1/(a+s)              out -s/(a+s)            u = eps - x0
    score  skip 1/a                  out s^2/a
    EDM    skip a d^2/(s^2+a^2 d^2)  out s d/sqrt(s^2+a^2 d^2)

with inp = 1/sqrt(a^2 d^2 + s^2) for all of them: the network always sees inputs of variance one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from suffuse.categorical import Categorical
from suffuse.errors import ConfigError
from suffuse.process import Process, bound, rows
from suffuse.schedule import AlphaSigma, Schedule
from suffuse.state import State, by_field, leaves, map_state

__all__ = [
    "X0", "Affine", "Carried", "Denoiser", "EDMPrecond", "Eps", "Exact", "Flow", "Parameterization", "Preconditioned",
    "Prediction", "Score", "V", "carried", "eps_of", "flow_of", "score_of", "v_of",
]  # fmt: skip

Condition = Mapping[str, Tensor] | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a denoiser returns: x0, the estimate of the clean state, shaped like its input."""

    x0: State


def eps_of(x: Tensor, x0: Tensor, at: AlphaSigma) -> Tensor:
    """Return the noise in x given the estimate x0."""
    return (x - at.alpha * x0) / at.sigma


def score_of(x: Tensor, x0: Tensor, at: AlphaSigma) -> Tensor:
    """Return the score of p_t at x (Tweedie's formula)."""
    return (at.alpha * x0 - x) / at.sigma**2


def flow_of(x: Tensor, x0: Tensor, at: AlphaSigma) -> Tensor:
    """Return the rectified-flow velocity eps - x0."""
    return eps_of(x, x0, at) - x0


def v_of(x: Tensor, x0: Tensor, at: AlphaSigma) -> Tensor:
    """Return v = alpha eps - sigma x0."""
    return at.alpha * eps_of(x, x0, at) - at.sigma * x0


class Affine(NamedTuple):
    """x0 = skip x + out F(inp x, noise); float64, of the shape of t, or floats where t is one."""

    skip: Any
    out: Any
    inp: Any
    noise: Any


@dataclass(frozen=True)
class Parameterization(ABC):
    """What the network predicts.

    Arguments:
        sigma_data: Standard deviation d of the data; a mapping of them for named fields, see `suffuse.state.by_field`.

    Raises:
        ConfigError: Unless sigma_data > 0.
    """

    sigma_data: Any = 1.0

    def __post_init__(self) -> None:
        for d in leaves(self.sigma_data):
            if isinstance(d, bool) or not isinstance(d, int | float) or not 0 < d < math.inf:
                raise ConfigError(f"parameterization: sigma_data={d} must be a positive number")

    def affine(self, alpha: Tensor, sigma: Tensor) -> Affine:
        """Return the four coefficients for float64 alpha and sigma of any shape."""
        skip, out = self.skip_out(alpha, sigma)
        inp = (alpha**2 * self.sigma_data**2 + sigma**2).rsqrt()
        # A function of the noise level alone, of order one, finite at both ends: any schedule may take over later.
        noise = (alpha.log() - sigma.log()).clamp(-15, 15) / 4
        return Affine(skip, out, inp, noise)

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return skip and out: F = p x0 + q eps and x = a x0 + s eps solved for x0."""
        p, q = self.target_weights(alpha, sigma)
        return -q / (p * sigma - q * alpha), sigma / (p * sigma - q * alpha)

    @abstractmethod
    def target_weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, q) with F = p x0 + q eps when the prediction is perfect."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return what F should be; alpha and sigma broadcast against x0."""
        p, q = self.target_weights(alpha, sigma)
        return p.to(x0) * x0 + q.to(x0) * eps


class X0(Parameterization):
    """F = x0."""

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return 0 and 1."""
        return torch.zeros_like(alpha), torch.ones_like(alpha)

    def target_weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and 0."""
        return torch.ones_like(alpha), torch.zeros_like(alpha)


class Eps(Parameterization):
    """F = eps. Undefined without signal: no time with alpha = 0."""

    def target_weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return 0 and 1."""
        return torch.zeros_like(alpha), torch.ones_like(alpha)


class V(Parameterization):
    """F = alpha eps - sigma x0. "Progressive Distillation", Salimans and Ho 2022, appendix D."""

    def target_weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return -s and a."""
        return -sigma, alpha


class Flow(Parameterization):
    """F = eps - x0, the velocity of the straight line. "Flow Matching", Lipman et al. 2023, eq. 23."""

    def target_weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return -1 and 1."""
        return -torch.ones_like(alpha), torch.ones_like(alpha)


class Score(Parameterization):
    """F = score of p_t. Undefined without signal or without noise."""

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1/a and s^2/a."""
        return 1 / alpha, sigma**2 / alpha

    def target_weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return 0 and -1/s."""
        return torch.zeros_like(alpha), -1 / sigma


class EDMPrecond(Parameterization):
    """Unit-variance inputs and targets, for any alpha.

    "Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al. 2022, table 1, appendix B.6.
    """

    def target_weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return s/(d sqrt(s^2+a^2 d^2)) and -a d/sqrt(s^2+a^2 d^2)."""
        d = self.sigma_data
        root = (sigma**2 + (alpha * d) ** 2).rsqrt()
        return sigma * root / d, -alpha * d * root


class Denoiser(nn.Module):
    """A map (x_t, t, condition) -> E[x_0 | x_t, condition]; guidance is a denoiser around a denoiser."""

    process: Process | Mapping[str, Process]

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the prediction.

        Arguments:
            x: State, shape (B, ...).
            t: One time for all, or shape (B,), or (B, T) with one per token.
            cond: Embedded condition, see `suffuse.conditioner`.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")


class Exact(Denoiser):
    """A denoiser known in closed form, see `suffuse.targets`.

    Arguments:
        process: Forward process.
        mean: Called as ``mean(x, alpha, sigma)`` with the scales broadcast against x; returns E[x_0 | x].
    """

    def __init__(self, process: Process, mean: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.process, self.mean = process, mean

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the exact posterior mean; the condition is ignored."""
        assert isinstance(x, Tensor) and isinstance(self.process, Process)  # what the constructor asks for
        return Prediction(self.mean(x, *(_to(value, x, self.process) for value in self.process.schedule(t))))


class Preconditioned(Denoiser):
    """A network, the process it denoises, and what it predicts.

    Arguments:
        network: Called as ``network(inp * x, noise, cond)``; noise, (B,) or (B, T), is the first field's. One whose
            ``self_condition`` is true gets a fourth argument, its previous estimate over sigma_data, or zeros.
        process: Forward process, or one per field.
        parameterization: What the network predicts, or one per field.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process | Mapping[str, Process],
        parameterization: Parameterization | Mapping[str, Parameterization],
    ) -> None:
        super().__init__()
        self.network, self.process, self.parameterization = network, process, by_field(parameterization)
        self.self_condition = bool(getattr(network, "self_condition", False))
        self._known: dict[float, Any] = {}
        self._replayed = False

    def compile_network(self, replay: bool = False) -> None:
        """Compile the network, not what is around it.

        Arguments:
            replay: For sampling: on a GPU replay the kernels of a step as one CUDA graph, so that small networks do not
                wait for the CPU between them. What such a graph returns is overwritten by its next run.
        """
        self.network.compile(mode="reduce-overhead" if replay else None)
        self._replayed = replay

    def forward(self, x: State, t: float | Tensor, cond: Condition = None, previous: State | None = None) -> Prediction:
        """Return the prediction; float32 whatever the network's dtype under autocast."""
        affine, process = self._affine(x, t), bound(self.process, x)
        output = self._network(x, affine, process, cond, previous)
        return Prediction(map_state(_combine, x, output, affine, process))

    def residual(
        self, x0: State, eps: State, t: Tensor, cond: Condition = None, previous: State | None = None
    ) -> tuple[State, State]:
        """Return how far the network's output is from its target, and the factor from there to the error of x0.

        Losses are formed from these two, since an error of x0 itself overflows where out is infinite.

        Arguments:
            x0: Clean state, shape (B, ...).
            eps: What the process drew.
            t: Shape (B,) or (B, T).
            cond: Embedded condition.
            previous: Earlier estimate of x0 for a self-conditioned network; None for zeros.

        Returns:
            F - F* per field, shaped like x0, and `out` per field, float64, shaped like t: x0_hat - x0 = out (F - F*).
            Of a categorical field the loss of every token, and of a frozen one zeros.
        """
        process = bound(self.process, x0)
        x = map_state(lambda leaf, e, p: p.corrupt(leaf, t, e), x0, eps, process)
        affine = self._affine(x, t)
        output = self._network(x, affine, process, cond, previous)

        def difference(
            f: Tensor, noisy: Tensor, clean: Tensor, e: Tensor, process: Process, what: Parameterization
        ) -> Tensor:
            if isinstance(process, Categorical):
                return process.errors(clean, noisy, process.space.project(f), t)
            if not process.noised:
                return torch.zeros_like(clean, dtype=torch.float32)
            at = (process.space.expand(value.to(clean.device), clean) for value in process.schedule(t))
            return process.space.project(f.to(clean)) - what.target(clean, e, *at)

        away = map_state(difference, output, x, x0, eps, process, self.parameterization)
        return away, map_state(lambda _, a: a.out, x0, affine)

    def _network(self, x: State, affine: Any, process: Any, cond: Condition, previous: State | None = None) -> State:
        scaled = map_state(lambda leaf, a, p: leaf if a.inp is None else leaf * _to(a.inp, leaf, p), x, affine, process)
        noise, leaf = _level(affine, process), next(leaves(x))
        count = rows(process, x)
        if isinstance(noise, float):
            noise = torch.full((count,), noise, device=leaf.device)
        elif noise.ndim == 0:
            noise = noise.expand(count)
        more = (self._looking_back(x, previous),) if self.self_condition else ()
        if self._replayed:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        result: State = self.network(scaled, noise.to(leaf.device, torch.float32), cond, *more)
        if self._replayed:  # samplers of several steps and guidance keep what they got
            result = map_state(torch.clone, result)
        # A network need not repeat the fields that only condition it.
        return {**scaled, **result} if isinstance(result, Mapping) else result

    def _looking_back(self, x: State, previous: State | None) -> State:
        if previous is None:
            zeros: State = map_state(torch.zeros_like, x)
            return zeros
        scaled: State = map_state(lambda leaf, what: leaf / what.sigma_data, previous, self.parameterization)
        return scaled

    def _affine(self, x: State, t: float | Tensor) -> Any:
        """Return an `Affine` per field; of floats, remembered, when t is one float."""
        if isinstance(t, Tensor):
            return map_state(lambda _, p, what: _coefficients(p, what, t), x, self.process, self.parameterization)
        if t not in self._known:
            if len(self._known) > 4096:
                self._known.clear()
            of = map_state(lambda _, p, what: _coefficients(p, what, t), x, self.process, self.parameterization)
            self._known[t] = map_state(lambda a: _finite(Affine(*map(_number, a)), t), of)
        return self._known[t]


class Carried(Denoiser):
    """A denoiser on another process than its own: a change of schedule after training.

    What is known of x0 depends on the noise level alone, so a state is taken to the trained schedule at the same
    log-SNR, see `carried`, and x0 is as good there as here. That holds for every parameterisation, also those (v, flow)
    whose network output means something else on another schedule.

    Arguments:
        denoiser: The trained denoiser.
        process: The process that is sampled, or one per field.
    """

    def __init__(self, denoiser: Denoiser, process: Process | Mapping[str, Process]) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, process

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the prediction; the trained time is that of the first field's level."""
        first, trained = (next(leaves(p)).schedule for p in (self.process, self.denoiser.process))
        own = trained.time(first.lam(t))

        def carry(leaf: Tensor, here: Process, there: Process) -> Tensor:
            def scales(schedule: Schedule, t: float | Tensor) -> AlphaSigma:
                return AlphaSigma(*(here.space.expand(value.to(leaf.device), leaf) for value in schedule(t)))

            return carried(leaf, scales(here.schedule, t), scales(there.schedule, own))

        moved = map_state(carry, x, self.process, self.denoiser.process)
        prediction: Prediction = self.denoiser(moved, own if isinstance(t, Tensor) else float(own), cond)
        return prediction


def carried(x: Tensor, at: AlphaSigma, to: AlphaSigma) -> Tensor:
    """Return a state at the scales `at` as it is at the scales `to` of the same log-SNR.

    x' = x (alpha'/alpha), from whichever of alpha and sigma is larger, so that either may be 0.
    """
    return x * torch.where(at.alpha > at.sigma, to.alpha / at.alpha, to.sigma / at.sigma).to(x)


def _coefficients(process: Process, what: Parameterization, t: float | Tensor) -> Affine:
    """Return the coefficients of a field; tokens and frozen fields go to the network as they are."""
    if process.noised and not isinstance(process, Categorical):
        return what.affine(*process.schedule(t))
    lam = process.schedule.lam(t)
    return Affine(torch.zeros_like(lam), torch.ones_like(lam), None, lam.clamp(-15, 15) / 4)


def _level(affine: Any, process: Any) -> Any:
    """Return what the network is told of the noise: the first field's that has any."""
    return next(a.noise for a, p in zip(leaves(affine), leaves(process), strict=True) if p.noised)


def _number(value: Any) -> Any:
    return None if value is None else float(value)


def _finite(affine: Affine, t: float) -> Affine:
    if not all(value is None or math.isfinite(value) for value in affine):
        raise ConfigError(
            f"parameterization: undefined at t={t:.6g}, where there is no signal or no noise; start from less noise "
            "(grid=karras) or predict v or x0"
        )
    return affine


def _to(value: Any, like: Tensor, process: Process) -> Any:
    return value if isinstance(value, float) else process.space.expand(value.to(like.device, like.dtype), like)


def _combine(x: Tensor, f: Tensor, affine: Affine, process: Process) -> Tensor:
    if affine.inp is None:
        return process.space.project(f.float()) if process.noised else x
    f = process.space.project(f.to(x.dtype))
    if isinstance(affine.out, float):
        return torch.add(x * affine.skip, f, alpha=affine.out)
    combined: Tensor = _to(affine.skip, x, process) * x + _to(affine.out, x, process) * f
    return combined
