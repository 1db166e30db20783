r"""EMA: the average of a model's weights along training.

    avg <- avg + (1 - beta_k) (weights - avg)     after update k = 1, 2, …

with a constant beta, with one of a given half-life, or with beta_k = (1 - 1/k)^(gamma + 1), whose averaged window is a
fixed share of the run ("Analyzing and Improving the Training Dynamics of Diffusion Models", Karras et al. 2024, eq.
127; gamma solves std = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), eq. 123).

The last one is a power profile exactly: update j of k counts as the integral over (j - 1, j] of

    p(tau; gamma, k) = (gamma + 1) tau^gamma / k^(gamma + 1),    0 <= tau <= k,

so stored averages of two widths can be combined after training into one of any width: see `suffuse.posthoc`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.state import local

__all__ = ["EMA", "ConstantDecay", "HalfLife", "PostHoc", "PowerDecay", "exponent"]

WIDEST = 12**-0.5
"""Width of a plain mean, as a share of the run."""


@dataclass(frozen=True)
class ConstantDecay:
    """beta, or with warm-up min(beta, (1 + k) / (10 + k)), so that early weights do not linger.

    Raises:
        ConfigError: Unless 0 <= decay < 1.
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"ema.decay={self.decay} must be in [0, 1)")

    def __call__(self, update: int) -> float:
        """Return beta of update number `update`, the first is 1."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay


@dataclass(frozen=True)
class HalfLife:
    """2^(-1/h): a weight counts half as much after h updates, h = min(half-life, rampup (k - 1)).

    "Elucidating the Design Space of Diffusion-Based Generative Models", Karras et al. 2022, appendix F.2 (half a
    million images, rampup 0.05).

    Arguments:
        steps: Half-life in updates.
        samples: Half-life in training samples instead; needs the number of samples per update.
        rampup: Half-life as a share of the run so far, where that is shorter; None for the full one from the start.
        batch_size: Samples per micro-batch.
        accumulate: Micro-batches per update.

    Raises:
        ConfigError: Unless exactly one of steps and samples is given, positive, and rampup > 0.
    """

    steps: float | None = None
    samples: float | None = None
    rampup: float | None = 0.05
    batch_size: int | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.samples is None):
            raise ConfigError(f"ema: give one of steps and samples, not steps={self.steps} and samples={self.samples}")
        for name in ("steps", "samples", "rampup"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"ema.{name}={value} must be positive")
        if self.samples is not None and not (self.batch_size and self.accumulate):
            raise ConfigError(f"ema.samples={self.samples} needs ema.batch_size; or give the half-life as ema.steps")

    def __call__(self, update: int) -> float:
        """Return beta of update number `update`; the first copies the weights when there is a ramp."""
        if self.steps is not None:
            length = float(self.steps)
        else:
            assert self.samples is not None and self.batch_size is not None  # one of the two was given
            length = self.samples / (self.batch_size * self.accumulate)
        if self.rampup is not None:
            length = min(length, self.rampup * (update - 1))
        return float(0.5 ** (1 / length)) if length > 0 else 0.0


def exponent(std: float) -> float:
    """Return the gamma whose power profile has the width `std`, a share of the run; found by bisection."""
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = 0.5 * (low + high)
        wide = math.sqrt(middle + 1) / ((middle + 2) * math.sqrt(middle + 3)) > std
        low, high = (middle, high) if wide else (low, middle)
    return low


@dataclass(frozen=True)
class PowerDecay:
    """(1 - 1/k)^(gamma + 1).

    Arguments:
        std: Width of the averaged window as a share of the run.

    Raises:
        ConfigError: Unless 0 < std < 0.289, the width of a plain mean.
    """

    std: float = 0.05

    def __post_init__(self) -> None:
        if isinstance(self.std, bool) or not isinstance(self.std, int | float) or not 0 < self.std < WIDEST:
            raise ConfigError(f"ema.std={self.std} must be in (0, {WIDEST:.3f})")
        object.__setattr__(self, "_gamma", exponent(self.std))

    @property
    def gamma(self) -> float:
        """The exponent whose window has the width `std`; falls with it."""
        found: float = self.__dict__["_gamma"]
        return found

    def __call__(self, update: int) -> float:
        """Return beta of update number `update`."""
        return float((1 - 1 / update) ** (self.gamma + 1))


@dataclass(frozen=True)
class PostHoc:
    """Power averages of several widths, stored along the run, so that the width can be chosen after it.

    "Analyzing and Improving the Training Dynamics of Diffusion Models", Karras et al. 2024, section 3.2.

    Arguments:
        stds: Widths that are tracked, as shares of the run; checkpoints and previews use the first.
        every: Optimizer steps between snapshots; about fifty in a run make the combination nearly exact.
        dtype: Of the snapshots' files, float32 or float16; each holds all weights once per width.

    Raises:
        ConfigError: For fewer than two or equal widths, one out of range, every < 1, or another dtype.
    """

    stds: tuple[float, ...] = (0.05, 0.1)
    every: int = 100
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stds", tuple(self.stds))
        if len(set(self.stds)) != len(self.stds) or len(self.stds) < 2:
            raise ConfigError(f"ema.stds={list(self.stds)} must be at least two different widths, as [0.05, 0.1]")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ConfigError(f"ema.every={self.every} must be a whole number of at least 1")
        if self.dtype not in ("float32", "float16"):
            raise ConfigError(f"ema.dtype={self.dtype} must be float32 or float16")
        object.__setattr__(self, "_decays", tuple(PowerDecay(std) for std in self.stds))

    @property
    def decays(self) -> tuple[PowerDecay, ...]:
        """One decay per width."""
        found: tuple[PowerDecay, ...] = self.__dict__["_decays"]
        return found

    def __call__(self, update: int) -> float:
        """Return beta of the first width."""
        return self.decays[0](update)


class EMA:
    """Averages of parameters, beside them.

    Arguments:
        parameters: What is averaged; the average starts as a copy.
        decay: beta as a function of the update's number; one with ``decays`` makes an average for each of them.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: Callable[[int], float]) -> None:
        self.parameters = [parameter for parameter in parameters]
        self.decays: tuple[Callable[[int], float], ...] = tuple(getattr(decay, "decays", (decay,)))
        self.updates = 0
        self.tracks = [[parameter.detach().clone() for parameter in self.parameters] for _ in self.decays]

    @property
    def averages(self) -> list[Tensor]:
        """The average that is used, the first."""
        return self.tracks[0]

    @torch.no_grad()
    def update(self, skip: Tensor | None = None) -> None:
        """Move the averages towards the parameters.

        Arguments:
            skip: A scalar on the parameters' device, 1 where this update is to change nothing; whoever reads it later
                takes the update back from `updates`.
        """
        self.updates += 1
        now = [local(parameter.detach()) for parameter in self.parameters]
        for track, decay in zip(self.tracks, self.decays, strict=True):
            held, share = [local(average) for average in track], 1 - decay(self.updates)
            if skip is None:
                torch._foreach_lerp_(held, now, share)
                continue
            for first in range(0, len(held), 64):  # in parts, for the memory of the differences
                part = slice(first, first + 64)
                away = torch._foreach_sub(now[part], held[part])
                torch._foreach_mul_(away, share * (1 - skip))
                torch._foreach_add_(held[part], away)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Put the averages into the parameters for a while; the parameters come back bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            now, other = local(parameter.detach()), local(average)
            held = now.clone()
            now.copy_(other)
            other.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of updates."""
        first, *others = [[average.clone() for average in track] for track in self.tracks]
        return {"updates": self.updates, "averages": first, "others": others}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], assign: Callable[[Tensor, Any], object] = Tensor.copy_) -> None:
        """Take back what `state_dict` returned.

        Arguments:
            state: The state.
            assign: Copies a saved average to where it belongs; one that knows of spread tensors for these.

        Raises:
            ConfigError: When it holds another number of averages.
        """
        tracks = [state["averages"], *state.get("others", [])]
        if len(tracks) != len(self.tracks):
            raise ConfigError(
                f"ema: the checkpoint holds {len(tracks)} averages and this run tracks {len(self.tracks)}; continue "
                "with the ema it was trained with"
            )
        self.updates = state["updates"]
        for track, saved in zip(self.tracks, tracks, strict=True):
            for average, value in zip(track, saved, strict=True):
                assign(average, value)
