r"""Energy: guidance by the gradient of a function of the sample.

The density p(x_t) f(x_t) has the score of p plus the gradient of log f, which by Tweedie's formula shifts x0:

    x0' = x0 + w (sigma^2 / alpha) grad_x log f(x_t).

`Classifier` has log f as a function of x_t itself: "Diffusion Models Beat GANs on Image Synthesis", Dhariwal and Nichol
2021, section 4. It is exact for f(x_t) = p(y | x_t). `Energy` has log f = -E(x0_hat(x_t)), an energy of clean samples,
with the gradient taken through the denoiser ("Loss-Guided Diffusion Models", Song et al. 2023) or, without, by

    x0' = x0 - w r^2 grad E(x0),   r^2 = sigma^2 d^2 / (sigma^2 + alpha^2 d^2),

which puts r^2, the covariance of x0 given x_t for data of deviation d, in the place of (sigma^2/alpha) J. Both are
exact for an energy that is linear in x0 over Gaussian data (of deviation d in all directions, for the second).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.denoiser import Condition, Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse.guidance.gradient import differentiating, gain, levels, ordinary, pullback, variable
from suffuse.guidance.interval import Ends, Interval, check_scale
from suffuse.process import Gaussian, Process, bound
from suffuse.state import State, leaves, map_state

__all__ = ["Classifier", "Energy", "prior_covariance", "shifted"]


class Classifier(Denoiser):
    """Guidance by a log-probability of x_t.

    Arguments:
        denoiser: The denoiser.
        log_prob: Called as ``log_prob(x, t, cond)``; returns log f of each sample, shape (B,), differentiable in x.
        scale: w, at least 0; 0 is the denoiser itself, 1 is Bayes' rule.
        interval: (lowest, highest) half log-SNR at which guidance acts; None leaves an end open.

    Raises:
        ConfigError: For a negative scale or an empty interval; in a call, for values of another shape or that do not
            depend on x.
    """

    def __init__(
        self, denoiser: Denoiser, log_prob: Callable[[Any, Any, Any], Tensor], scale: float = 1.0,
        interval: Ends | Interval = (None, None),
    ) -> None:  # fmt: skip
        super().__init__()
        self.denoiser, self.log_prob, self.process = denoiser, log_prob, denoiser.process
        self.scale, self.interval = check_scale(scale), Interval.of(interval)

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the guided prediction."""
        prediction: Prediction = self.denoiser(x, t, cond)
        inside = self.interval(self.process, t)
        if inside is False or self.scale == 0:
            return prediction
        slope = _slope(lambda leaf: self.log_prob(leaf, ordinary(t), ordinary(cond)), x, "guidance: the log_prob")
        step = map_state(lambda g, factor: self.scale * factor * g, slope, gain(self, x, t))
        return Prediction(shifted(prediction.x0, step, inside, bound(self.process, x)))


class Energy(Denoiser):
    """Guidance by an energy of x0.

    Arguments:
        denoiser: The denoiser.
        energy: Called as ``energy(x0)``; returns E of each sample, shape (B,), differentiable in x0.
        scale: w, at least 0; 0 is the denoiser itself.
        through: Take the gradient through the denoiser.
        sigma_data: d, used without `through`.
        interval: (lowest, highest) half log-SNR at which guidance acts; None leaves an end open.

    Raises:
        ConfigError: For a negative scale, an empty interval or sigma_data <= 0; in a call, for values of another shape
            or that do not depend on x0.
    """

    def __init__(
        self, denoiser: Denoiser, energy: Callable[[Any], Tensor], scale: float = 1.0, through: bool = True,
        sigma_data: Any = 1.0, interval: Ends | Interval = (None, None),
    ) -> None:  # fmt: skip
        super().__init__()
        self.denoiser, self.energy, self.process = denoiser, energy, denoiser.process
        self.scale, self.interval, self.through = check_scale(scale), Interval.of(interval), through
        self.sigma_data = _positive(sigma_data)

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the guided prediction."""
        inside = self.interval(self.process, t)
        if inside is False or self.scale == 0:
            prediction: Prediction = self.denoiser(x, t, cond)
            return prediction
        if self.through:
            x0, back = pullback(self.denoiser, x, t, cond)
            slope, factor = back(self._slope(x0)), gain(self, x, t)
        else:
            x0 = self.denoiser(x, t, cond).x0
            slope, factor = self._slope(x0), prior_covariance(self, x, t, self.sigma_data)
        step = map_state(lambda g, f: -self.scale * f * g, slope, factor)
        return Prediction(shifted(x0, step, inside, bound(self.process, x)))

    def _slope(self, x0: State) -> State:
        return _slope(self.energy, x0, "guidance: the energy")


def prior_covariance(denoiser: Denoiser, x: State, t: float | Tensor, sigma_data: Any) -> Any:
    """Return r^2 = sigma^2 d^2 / (sigma^2 + alpha^2 d^2) per field, a float or broadcasting; 0 if not Gaussian."""

    def one(leaf: Tensor, process: Process, d: Any) -> Any:
        if not isinstance(process, Gaussian):
            return 0.0
        alpha, sigma = process.schedule(t) if isinstance(t, Tensor) else levels(process.schedule, t)
        value = sigma**2 * d**2 / (sigma**2 + alpha**2 * d**2)
        return process.space.expand(value.to(leaf.device, leaf.dtype), leaf) if isinstance(value, Tensor) else value

    return map_state(one, x, denoiser.process, sigma_data)


def shifted(x0: State, step: State, inside: bool | Tensor, process: Any) -> State:
    """Return x0 + step, kept to the space, where the level is inside."""

    def shift(leaf: Tensor, by: Tensor, own: Process) -> Tensor:
        if not isinstance(own, Gaussian):
            return leaf
        moved = leaf + own.space.project(by)
        return moved if isinstance(inside, bool) else torch.where(own.space.expand(inside, leaf), moved, leaf)

    result: State = map_state(shift, x0, step, process)
    return result


def _slope(function: Callable[[Any], Tensor], x: State, what: str) -> State:
    """Return the gradient of a function of each sample."""
    rows = next(leaves(x)).shape[0]
    with differentiating():
        leaf = variable(x)
        value = function(leaf)
        if not isinstance(value, Tensor) or value.shape != (rows,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"{what} must be of shape ({rows},), one value per sample, not {shape}")
        if not value.requires_grad:
            raise ConfigError(f"{what} does not depend on the sample in a way that can be differentiated")
        inputs = [part for part in leaves(leaf) if part.requires_grad]
        found = iter(torch.autograd.grad(value.sum(), inputs, allow_unused=True, materialize_grads=True))
    result: State = map_state(lambda part: next(found) if part.requires_grad else torch.zeros_like(part), leaf)
    return result


def _positive(sigma_data: Any) -> Any:
    for d in leaves(sigma_data):
        if isinstance(d, bool) or not isinstance(d, int | float) or not 0 < d < float("inf"):
            raise ConfigError(f"guidance: sigma_data={d} must be a positive number")
    return sigma_data
