r"""Verify: numbers that tell whether a sampler is what it says.

On targets whose denoiser is known (`suffuse.targets`) nothing has to be trained and nothing is left to chance:

- *Order.* The probability-flow ODE of a Gaussian mixture from sigma 20 to 0.02 on evenly spaced log-SNR, against a
  classical Runge-Kutta integration of the same ODE in log sigma that shares no code with the samplers. The slope of
  log error over log steps is the order. The grid ends with noise: a last step to zero is of first order.
- *Weak order without Monte Carlo.* On a Gaussian target a sampler is affine in its start and its draws, so a batch
  whose rows are zero, a unit start and a unit of every draw gives mean and variance of its output exactly.
- *No reading back.* A dispatch mode fails on every operation that makes the host wait for the device.

`SamplerContract` in `suffuse.testing` runs all of it on a sampler.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from suffuse.denoiser import Exact
from suffuse.grid import Exponential, Grid
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian as Process
from suffuse.sampler import Sampler, sample
from suffuse.schedule import VE, Schedule
from suffuse.targets import Gaussian, GaussianMixture

__all__ = ["NoSync", "draw", "errors", "exact_flow", "levels", "mixture", "moments", "slope"]

HIGH, LOW = 20.0, 0.02


def mixture(dim: int = 2, components: int = 6, dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """Return a mixture of narrow Gaussians around standard normal means."""
    means = torch.randn(components, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = torch.full((components,), 1 / components, dtype=dtype)
    return GaussianMixture(means.to(dtype), torch.full((components,), 0.05, dtype=dtype), share)


def levels(schedule: Schedule, steps: int) -> Grid:
    """Return `steps` even intervals of log-SNR from sigma/alpha = 20 to 0.02."""
    return Exponential(sigma_min=LOW, sigma_max=HIGH, end="min")(schedule, steps)


def draw(sampler: Sampler, schedule: Schedule, grid: Grid, x: Tensor, target: Any = None, **more: Any) -> Tensor:
    """Return where `sampler` takes x; row i draws from the noise stream i."""
    process, noise = Process(schedule), KeyedNoise(torch.arange(len(x)))
    mean = (target or mixture(x.shape[1], dtype=x.dtype)).posterior_mean
    end = sample(Exact(process, mean), process, sampler, grid, noise, x, x=x, **more)
    assert isinstance(end, Tensor)  # as x is
    return end


def exact_flow(target: GaussianMixture, x: Tensor, steps: int = 1500) -> Tensor:
    """Return where dx/d log sigma = x - E[x_0 | x] takes x from sigma = 20 to 0.02, by Runge and Kutta's rule."""
    one = torch.ones((), dtype=x.dtype)

    def rate(x: Tensor, log_sigma: float) -> Tensor:
        return x - target.posterior_mean(x, one, torch.tensor(math.exp(log_sigma), dtype=x.dtype))

    h = math.log(LOW / HIGH) / steps
    for i in range(steps):
        at = math.log(HIGH) + i * h
        k1 = rate(x, at)
        k2 = rate(x + 0.5 * h * k1, at + 0.5 * h)
        k3 = rate(x + 0.5 * h * k2, at + 0.5 * h)
        k4 = rate(x + h * k3, at + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def errors(make: Callable[[int], Sampler], counts: Sequence[int], rows: int = 16) -> list[float]:
    """Return the mean distance to the exact flow of the mixture per number of steps."""
    (start, end), schedule = _exact(rows), VE(LOW, HIGH)
    ends = [draw(make(n), schedule, levels(schedule, n), start) for n in counts]
    return [float(((found - end) ** 2).mean(1).sqrt().mean()) for found in ends]


@functools.cache
def _exact(rows: int) -> tuple[Tensor, Tensor]:
    start = HIGH * KeyedNoise(torch.arange(rows)).normal(torch.empty(rows, 2, dtype=torch.float64), 0)
    return start, exact_flow(mixture(), start)


def slope(counts: Sequence[int], values: Sequence[float]) -> float:
    """Return the order of `values` in the number of steps: minus the slope in logarithms."""
    return float(-np.polyfit(np.log(counts), np.log(values), 1)[0])


class _Units:
    """Noise whose draws are one in a row of their own."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}

    def normal(self, like: Tensor, step: int, stream: int = 0) -> Tensor:
        """Return zeros and a one in the row of draw `step`."""
        found = torch.zeros_like(like)
        found[2 + self.rows.setdefault(step, len(self.rows))] = 1
        return found


def moments(
    sampler: Sampler, steps: int, schedule: Schedule | None = None, mean: float = 0.7, variance: float = 0.3,
    draws: int = 6000,
) -> tuple[float, float]:  # fmt: skip
    """Return mean and variance of a sampler's output on N(mean, variance) at sigma/alpha = 0.02, exactly.

    Arguments:
        sampler: The solver.
        steps: Intervals of the grid.
        schedule: By default variance exploding.
        mean: Of the target.
        variance: Of the target.
        draws: At least the number of draws that the sampler takes.
    """
    schedule = schedule or VE(LOW, HIGH)
    target = Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([variance], dtype=torch.float64))
    grid, process, noise = levels(schedule, steps), Process(schedule), _Units()
    alpha, sigma = (float(v) for v in schedule(float(grid.t[0])))
    x = torch.full((draws, 1), alpha * mean, dtype=torch.float64)
    x[1] += math.sqrt(alpha**2 * variance + sigma**2)
    denoiser = Exact(process, target.posterior_mean)
    out = sample(denoiser, process, sampler, grid, noise, x, x=x)  # type: ignore[arg-type]
    assert isinstance(out, Tensor)  # as x is
    flat = out.flatten()
    used = flat[1 : 2 + len(noise.rows)] - flat[0]
    return float(flat[0]), float((used**2).sum())


class NoSync(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails on what would make the host wait for a device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "linalg_solve", "masked_select")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation unless it reads back."""
        name = str(func)
        if any(word in name for word in self.FORBIDDEN):
            raise AssertionError(f"{name} makes the host wait for the device")
        return func(*args, **(kwargs or {}))
