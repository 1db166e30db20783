r"""Posterior: denoisers of the posterior, given a measurement y = A x0 + n, n ~ N(0, Sigma_y).

By Bayes' rule and Tweedie's formula the posterior mean of x0 given x_t and y is

    x0' = x0 + (sigma^2/alpha) grad_x log p(y | x_t),

and with the Gaussian p(y | x_t) ~ N(A x0, C) and J = d x0 / d x_t the gradient is J^T A^T C^{-1} (y - A x0). What the
methods put for C:

    DPS     Sigma_y                    "Diffusion Posterior Sampling for General Noisy Inverse Problems", Chung et al.
                                       2023, eq. 15
    PiGDM   Sigma_y + r^2 A A^T        "Pseudoinverse-Guided Diffusion Models for Inverse Problems", Song et al. 2023,
                                       eq. 7; r^2 = sigma^2 d^2 / (sigma^2 + alpha^2 d^2) for data of deviation d
    MMPS    Sigma_y + A V A^T          "Learning Diffusion Priors from Observations by Expectation Maximization", Rozet
                                       et al. 2024, section 4.2; V = (sigma^2/alpha) J, the covariance of x0 given x_t

MMPS is exact for Gaussian data, PiGDM for Gaussian data of covariance d^2 I, DPS only as the noise vanishes. Since each
is a denoiser, any sampler draws from the posterior.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.denoiser import Condition, Denoiser, Prediction
from suffuse.errors import ConfigError, check_whole
from suffuse.guidance.energy import prior_covariance, shifted
from suffuse.guidance.gradient import differentiating, gain, ordinary, pullback
from suffuse.guidance.interval import Ends, Interval, check_scale
from suffuse.process import bound
from suffuse.state import State, leaves, map_state

__all__ = ["DPS", "MMPS", "Observation", "PiGDM", "conjugate_gradient"]

Operator = Callable[[Any], Tensor]
"""A: a state of B rows -> a measurement of B rows."""


class Observation(Denoiser):
    """Base: a linear measurement with Gaussian noise.

    Arguments:
        denoiser: The denoiser.
        y: The measurement, of B rows or one.
        operator: A, called with a state of B rows; returns what is shaped like y. Without `adjoint` it is
            differentiated, so tensors it holds must not come from inference mode.
        noise: Standard deviation of the noise, at least 0, a number or broadcasting against y.
        adjoint: A^T, called with what is shaped like y; returns a state. By default the derivative of `operator`.
        interval: (lowest, highest) half log-SNR at which the measurement is used; None leaves an end open.

    Raises:
        ConfigError: For a y or noise that is not finite, or an empty interval; in a call, for an operator whose result
            is not shaped like y.
    """

    def __init__(
        self, denoiser: Denoiser, y: Tensor, operator: Operator, noise: float | Tensor = 0.0,
        adjoint: Callable[[Tensor], Any] | None = None, interval: Ends | Interval = (None, None),
    ) -> None:  # fmt: skip
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process
        if not torch.isfinite(y).all():
            raise ConfigError("observation: y has NaN or infinite values; mask them out in the operator")
        spread = torch.as_tensor(noise, dtype=y.dtype, device=y.device)
        if not bool(torch.isfinite(spread).all() & (spread >= 0).all()):
            raise ConfigError("observation: noise must be a standard deviation of at least 0")
        self.y, self.operator, self.adjoint, self.variance = y, operator, adjoint, spread**2
        self.interval = Interval.of(interval, "observation.interval")

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the posterior's prediction."""
        inside = self.interval(self.process, t)
        if inside is False:
            prediction: Prediction = self.denoiser(x, t, cond)
            return prediction
        x0, back = pullback(self.denoiser, x, t, cond)
        factor = gain(self, x, t)
        transposed = self._transposed(x0)

        def covary(u: State) -> State:
            """Return V u = (sigma^2/alpha) J^T u."""
            moved: State = map_state(torch.mul, back(u), factor)
            return moved

        rest = ordinary(self.y).to(next(leaves(x0))) - self._measure(x0)
        inverted = self.solve(rest, x, t, covary, transposed)
        return Prediction(shifted(x0, covary(transposed(inverted)), inside, bound(self.process, x)))

    @abstractmethod
    def solve(
        self, rest: Tensor, x: State, t: float | Tensor, covary: Callable[[State], State],
        transposed: Callable[[Tensor], State],
    ) -> Tensor:  # fmt: skip
        """Return C^{-1} rest.

        Arguments:
            rest: y - A x0, shape of y.
            x: x_t.
            t: Its time.
            covary: u -> V u.
            transposed: v -> A^T v.
        """

    def _measure(self, x0: State) -> Tensor:
        found = self.operator(x0)
        shape = tuple(found.shape) if isinstance(found, Tensor) else None
        if shape is None or shape[1:] != self.y.shape[1:] or self.y.shape[0] not in (1, shape[0]):
            raise ConfigError(
                f"observation: the operator gives {shape or type(found).__name__} but y is {tuple(self.y.shape)}; both "
                "must be (B, ...), or y (1, ...)"
            )
        return found

    def _transposed(self, x0: State) -> Callable[[Tensor], State]:
        """Return v -> A^T v: the adjoint that was given, or the derivative at x0."""
        if self.adjoint is not None:
            return self.adjoint
        with differentiating():
            leaf = map_state(lambda part: part.clone().requires_grad_(part.is_floating_point()), ordinary(x0))
            y = self.operator(leaf)
        inputs = [part for part in leaves(leaf) if part.requires_grad]

        def transposed(v: Tensor) -> State:
            with differentiating():
                found = iter(
                    torch.autograd.grad(
                        y, inputs, ordinary(v), retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                )
            result: State = map_state(lambda p: next(found) if p.requires_grad else torch.zeros_like(p), leaf)
            return result

        return transposed


class DPS(Observation):
    r"""Diffusion posterior sampling: C = Sigma_y, whatever x_t leaves open of x0.

    Too sure of itself at high noise: with C so small the pull is far too strong there, which the paper meets with
    `normalize`: C^{-1} (y - A x0) becomes (y - A x0) / |y - A x0|, the step size of its algorithm 1 in units of V. The
    operator may be any differentiable function.

    Arguments:
        denoiser: The denoiser.
        y: The measurement, of B rows or one.
        operator: A, linear or not.
        noise: Standard deviation of the noise, above 0 unless `normalize`.
        scale: Factor zeta of the pull, at least 0; 0 is the denoiser itself.
        normalize: Divide by the norm of what is left instead of the noise's variance.
        interval: (lowest, highest) half log-SNR at which the measurement is used; None leaves an end open.

    Raises:
        ConfigError: As `Observation`, for a negative scale, and for no noise without `normalize`.
    """

    def __init__(
        self, denoiser: Denoiser, y: Tensor, operator: Operator, noise: float | Tensor = 0.0, scale: float = 1.0,
        normalize: bool = False, interval: Ends | Interval = (None, None),
    ) -> None:  # fmt: skip
        super().__init__(denoiser, y, operator, noise, None, interval)
        self.scale, self.normalize = check_scale(scale, "observation.scale"), normalize
        if not normalize and not bool((self.variance > 0).all()):
            raise ConfigError("observation: DPS needs noise > 0, or normalize=True")

    def solve(
        self, rest: Tensor, x: State, t: float | Tensor, covary: Callable[[State], State],
        transposed: Callable[[Tensor], State],
    ) -> Tensor:  # fmt: skip
        """Return scale times rest over the noise's variance, or over the norm of rest."""
        if not self.normalize:
            return self.scale * rest / self.variance.to(rest)
        norm = _dot(rest, rest).sqrt()
        return self.scale * rest / norm.clamp(min=torch.finfo(rest.dtype).tiny)


class PiGDM(Observation):
    """Pseudoinverse guidance: C = Sigma_y + r^2 A A^T.

    This is the score of its eq. 7 and 8; the paper's algorithm multiplies it by r^2 once more, for its DDIM steps.

    Arguments:
        denoiser: The denoiser.
        y: The measurement, of B rows or one.
        operator: A, linear.
        noise: Standard deviation of the noise.
        sigma_data: d, the standard deviation of the data; a mapping of them for named fields.
        iterations: Steps of the conjugate gradient method; they call A and its adjoint, not the denoiser.
        adjoint: A^T; by default the derivative of `operator`.
        interval: (lowest, highest) half log-SNR at which the measurement is used; None leaves an end open.

    Raises:
        ConfigError: As `Observation`; for sigma_data <= 0 or iterations < 1.
    """

    def __init__(
        self, denoiser: Denoiser, y: Tensor, operator: Operator, noise: float | Tensor = 0.0, sigma_data: Any = 1.0,
        iterations: int = 20, adjoint: Callable[[Tensor], Any] | None = None, interval: Ends | Interval = (None, None),
    ) -> None:  # fmt: skip
        super().__init__(denoiser, y, operator, noise, adjoint, interval)
        for d in leaves(sigma_data):
            if isinstance(d, bool) or not isinstance(d, int | float) or not 0 < d < math.inf:
                raise ConfigError(f"observation: sigma_data={d} must be a positive number")
        self.sigma_data, self.iterations = sigma_data, _count(iterations)

    def solve(
        self, rest: Tensor, x: State, t: float | Tensor, covary: Callable[[State], State],
        transposed: Callable[[Tensor], State],
    ) -> Tensor:  # fmt: skip
        """Return (Sigma_y + r^2 A A^T)^{-1} rest."""
        spread = prior_covariance(self, x, t, self.sigma_data)
        variance = self.variance.to(rest)

        def product(v: Tensor) -> Tensor:
            return variance * v + self.operator(map_state(torch.mul, transposed(v), spread))

        return conjugate_gradient(product, rest, self.iterations)


class MMPS(Observation):
    """Moment matching posterior sampling: C = Sigma_y + A V A^T with the denoiser's own covariance V.

    Arguments:
        denoiser: The denoiser.
        y: The measurement, of B rows or one.
        operator: A, linear.
        noise: Standard deviation of the noise.
        iterations: Steps of the conjugate gradient method, each a backward pass through the denoiser. As many as y has
            entries are exact; few are enough, and safe: they leave out the least certain directions.
        adjoint: A^T; by default the derivative of `operator`.
        interval: (lowest, highest) half log-SNR at which the measurement is used; None leaves an end open.

    Raises:
        ConfigError: As `Observation`; for iterations < 1.
    """

    def __init__(
        self, denoiser: Denoiser, y: Tensor, operator: Operator, noise: float | Tensor = 0.0, iterations: int = 3,
        adjoint: Callable[[Tensor], Any] | None = None, interval: Ends | Interval = (None, None),
    ) -> None:  # fmt: skip
        super().__init__(denoiser, y, operator, noise, adjoint, interval)
        self.iterations = _count(iterations)

    def solve(
        self, rest: Tensor, x: State, t: float | Tensor, covary: Callable[[State], State],
        transposed: Callable[[Tensor], State],
    ) -> Tensor:  # fmt: skip
        """Return (Sigma_y + A V A^T)^{-1} rest."""
        variance = self.variance.to(rest)

        def product(v: Tensor) -> Tensor:
            return variance * v + self.operator(covary(transposed(v)))

        return conjugate_gradient(product, rest, self.iterations)


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Return an approximate solution of C v = b for a positive definite C, row by row.

    "Methods of Conjugate Gradients for Solving Linear Systems", Hestenes and Stiefel 1952, eq. 3:1. A fixed number of
    iterations, and no question asked of the device: a row that has arrived, or whose C is seen not to be positive
    (a network's Jacobian need not be), stays where it is.

    Arguments:
        product: v -> C v.
        b: Shape (B, ...).
        iterations: How many products are formed.
    """
    v, rest, along = torch.zeros_like(b), b, b
    size = start = _dot(rest, rest)
    least = torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        image = product(along)
        curvature = _dot(along, image)
        going = (curvature > 0) & (size > least * start)
        step = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        v, rest = v + step * along, rest - step * image
        new = _dot(rest, rest)
        along = torch.where(going, rest + new / torch.where(going, size, 1.0) * along, along)
        size = torch.where(going, new, size)
    return v


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row, of shape (B, 1, ...)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def _count(iterations: int) -> int:
    return check_whole("observation: iterations", iterations)
