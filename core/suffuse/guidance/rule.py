r"""Rule: how a prediction q and a weaker one are put together.

    linear     w q + (1 - w) q_weak
               "Classifier-Free Diffusion Guidance", Ho and Salimans 2022, eq. 6, with w = 1 + their w
    rescaled   g = linear;  phi g std(q)/std(g) + (1 - phi) g
               "Common Diffusion Noise Schedules and Sample Steps are Flawed", Lin et al. 2024, eq. 15 and 16
    projected  d = q - q_weak, cut to the norm r;  q + (w - 1) (d_orthogonal + eta d_parallel to q)
               "Eliminating Oversaturation and Artifacts of High Guidance Scales", Sadat et al. 2024, section 4
    optimal    s = <q, q_weak> / |q_weak|^2;  w q + (1 - w) s q_weak
               "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", Fan et al. 2025, s*

The linear rule is the same for every quantity that is affine in x0 at fixed x; the others are not: between x0 and eps
they differ by O(1). So each acts on the quantity its paper names: the network's output of Lin et al. is v, that of Fan
et al. the flow velocity, and Sadat et al. project x0. With q = p x + r x0 they are

    x0: (0, 1)    eps: (1, -alpha)/sigma    v: (alpha, -(alpha^2 + sigma^2))/sigma    flow: (1, -(alpha + sigma))/sigma.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import ConfigError, suggest
from suffuse.state import Space

__all__ = ["QUANTITIES", "Linear", "Optimal", "Projected", "Rescaled", "Rule", "coefficients"]

QUANTITIES = ("x0", "eps", "v", "flow")

_TINY = 1e-30


def coefficients(quantity: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """Return (p, r) with q = p x + r x0; floats or tensors."""
    if quantity == "x0":
        return 0.0 * sigma, 0.0 * sigma + 1.0
    if quantity == "eps":
        return 1 / sigma, -alpha / sigma
    if quantity == "v":
        return alpha / sigma, -(alpha**2 + sigma**2) / sigma
    return 1 / sigma, -(alpha + sigma) / sigma


@dataclass(frozen=True)
class Rule(ABC):
    """How a prediction and a weaker one are put together.

    Arguments:
        quantity: The quantity it acts on: ``x0``, ``eps``, ``v`` or ``flow``. eps has no x0 where there is no signal.

    Raises:
        ConfigError: For another quantity.
    """

    quantity: str = "x0"

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            hint = suggest(self.quantity, QUANTITIES, listing="known")
            raise ConfigError(f"guidance.quantity={self.quantity}: no such quantity{hint}")

    @abstractmethod
    def __call__(self, given: Tensor, weak: Tensor, scale: float | Tensor, space: Space) -> Tensor:
        """Return the guided quantity; `scale` is a float or broadcasts against `given`."""


@dataclass(frozen=True)
class Linear(Rule):
    """weak + w (given - weak)."""

    def __call__(self, given: Tensor, weak: Tensor, scale: float | Tensor, space: Space) -> Tensor:
        """Return it."""
        return weak + scale * (given - weak)


@dataclass(frozen=True)
class Rescaled(Rule):
    """Linear, then drawn back by a share phi to the spread of the prediction that was given.

    Raises:
        ConfigError: Unless 0 <= share <= 1.
    """

    quantity: str = "v"
    share: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ConfigError(f"guidance.rescale={self.share} must be in [0, 1]")

    def __call__(self, given: Tensor, weak: Tensor, scale: float | Tensor, space: Space) -> Tensor:
        """Return it."""
        guided = weak + scale * (given - weak)
        ratio = (_variance(given, space) / _variance(guided, space).clamp(min=_TINY)).sqrt()
        return guided * space.expand(self.share * ratio + (1 - self.share), guided)


@dataclass(frozen=True)
class Projected(Rule):
    """The difference, cut to a norm and mostly without its part along the prediction.

    Arguments:
        parallel: Share eta of that part; 1 keeps it, which is linear.
        threshold: Largest norm r of a sample's difference; None for any.
        momentum: beta of the running sum of differences, d_t + beta d_(t+1), kept by the denoiser that uses the rule.

    Raises:
        ConfigError: Unless parallel is finite, threshold > 0 and -1 < momentum < 1.
    """

    parallel: float = 0.0
    threshold: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.parallel):
            raise ConfigError(f"guidance.parallel={self.parallel} must be a number")
        if self.threshold is not None and not 0 < self.threshold < math.inf:
            raise ConfigError(f"guidance.threshold={self.threshold} must be positive, or null")
        if not -1 < self.momentum < 1:
            raise ConfigError(f"guidance.momentum={self.momentum} must be between -1 and 1")

    def __call__(self, given: Tensor, weak: Tensor, scale: float | Tensor, space: Space) -> Tensor:
        """Return it."""
        d = given - weak
        if self.threshold is not None:
            norm = (space.mean(d * d) * space.dof(d)).sqrt()
            d = d * space.expand((self.threshold / norm.clamp(min=_TINY)).clamp(max=1.0), d)
        along = space.mean(d * given) / space.mean(given * given).clamp(min=_TINY)
        return given + (scale - 1) * (d - (1 - self.parallel) * space.expand(along, d) * given)


@dataclass(frozen=True)
class Optimal(Rule):
    """Linear, with the weaker prediction scaled to lie as near as it can to the one that was given."""

    quantity: str = "flow"

    def __call__(self, given: Tensor, weak: Tensor, scale: float | Tensor, space: Space) -> Tensor:
        """Return it."""
        best = space.mean(given * weak) / space.mean(weak * weak).clamp(min=_TINY)
        weak = space.expand(best, weak) * weak
        return weak + scale * (given - weak)


def _variance(q: Tensor, space: Space) -> Tensor:
    """Return each sample's variance over its entries, shape (B,)."""
    centred = q - space.expand(space.mean(q), q)
    return space.mean(torch.square(centred))
