"""Process: the forward corruption of one field.

A process says how x_0 becomes x_t, where sampling starts, and how a state moves up to more noise. The random tensor is
an argument of each map, so the maps themselves are deterministic; `draw` makes that tensor from keyed noise. A state of
named fields has a mapping of processes, each with its own schedule on the shared time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.schedule import RectifiedFlow, Schedule
from suffuse.state import Dense, Space, leaves

__all__ = ["Frozen", "Gaussian", "Process", "bound", "reference", "rows", "streams"]


@dataclass(frozen=True)
class Process(ABC):
    """Forward corruption of one field on a schedule."""

    schedule: Schedule
    space: Space = field(default_factory=Dense)

    noised: ClassVar[bool] = True
    """Whether there is anything to undo."""

    @abstractmethod
    def draw(self, like: Tensor, noise: KeyedNoise, step: int, stream: int = 0) -> Tensor:
        """Return the random tensor the other maps take, of the shape of `like`."""

    @abstractmethod
    def prior(self, like: Tensor, eps: Tensor, t: float | Tensor = 1.0) -> Tensor:
        """Return a state from which sampling starts at time t."""

    @abstractmethod
    def corrupt(self, x0: Tensor, t: float | Tensor, eps: Tensor, source: Tensor | None = None) -> Tensor:
        """Return x_t given x_0; `source`, where given, takes the place of eps (couplings, bridges)."""

    @abstractmethod
    def transition(self, x_s: Tensor, s: float | Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """Return x_t given x_s for s <= t: add noise."""


@dataclass(frozen=True)
class Gaussian(Process):
    r"""x_t = alpha_t x_0 + sigma_t eps with eps standard normal on the space.

    transition: x_t | x_s ~ N(alpha_{t|s} x_s, sigma_t^2 - alpha_{t|s}^2 sigma_s^2), alpha_{t|s} = alpha_t / alpha_s.
    "Variational Diffusion Models", Kingma et al. 2021, eq. 1 and appendix A.1.
    """

    def draw(self, like: Tensor, noise: KeyedNoise, step: int, stream: int = 0) -> Tensor:
        """Return white noise on the space."""
        keyed, shape = self.space.keyed(noise, like)
        z = keyed.normal(like if shape == like.shape else like.new_empty(shape), step, stream)
        return self.space.white(self.space.placed(z, like))

    def prior(self, like: Tensor, eps: Tensor, t: float | Tensor = 1.0) -> Tensor:
        """Return sigma_t eps; the mean alpha_t E[x_0] that it leaves out is what the schedule's end makes small."""
        return self._scale(self.schedule(t).sigma, like) * eps

    def corrupt(self, x0: Tensor, t: float | Tensor, eps: Tensor, source: Tensor | None = None) -> Tensor:
        """Return alpha_t x_0 + sigma_t eps."""
        alpha, sigma = self.schedule(t)
        return self._scale(alpha, x0) * x0 + self._scale(sigma, x0) * (eps if source is None else source)

    def transition(self, x_s: Tensor, s: float | Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """Return a draw of x_t given x_s."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.schedule(s), self.schedule(t)
        ratio = alpha_t / alpha_s
        spread = (sigma_t**2 - (ratio * sigma_s) ** 2).clamp(min=0).sqrt()
        return self._scale(ratio, x_s) * x_s + self._scale(spread, x_s) * eps

    def _scale(self, value: Tensor, like: Tensor) -> Tensor:
        return self.space.expand(value.to(like.device, like.dtype), like)


@dataclass(frozen=True)
class Frozen(Process):
    """A field that conditions the others and is never noised: a mask, a scaffold, a size.

    Its content is the caller's: in `like` when sampling, in the batch when training. It has no loss; its schedule is
    not used.
    """

    schedule: Schedule = field(default_factory=RectifiedFlow)
    noised: ClassVar[bool] = False

    def draw(self, like: Tensor, noise: KeyedNoise, step: int, stream: int = 0) -> Tensor:
        """Return `like`: nothing is drawn."""
        return like

    def prior(self, like: Tensor, eps: Tensor, t: float | Tensor = 1.0) -> Tensor:
        """Return `like`."""
        return like

    def corrupt(self, x0: Tensor, t: float | Tensor, eps: Tensor, source: Tensor | None = None) -> Tensor:
        """Return x_0."""
        return x0

    def transition(self, x_s: Tensor, s: float | Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """Return x_s."""
        return x_s


def bound(process: Any, state: Any) -> Any:
    """Return the processes with the masks of this batch in their spaces; the same object where there are none.

    Arguments:
        process: A process, or one per field.
        state: The batch; its frozen fields hold what the spaces name.
    """
    if isinstance(process, Mapping):
        found = {name: _bound_one(p, state) for name, p in process.items()}
        return found if any(found[name] is not p for name, p in process.items()) else process
    return _bound_one(process, state)


def _bound_one(process: Any, state: Any) -> Any:
    if isinstance(process, Mapping):
        return bound(process, state)
    space = process.space.bind(state)
    return process if space is process.space else replace(process, space=space)


def reference(process: Process | Mapping[str, Any]) -> Process:
    """Return the process whose schedule the time grid and the time density refer to: the first field's that is noised.

    Raises:
        ConfigError: When every field is frozen.
    """
    for found in leaves(process):
        if found.noised:
            noised: Process = found
            return noised
    raise ConfigError("process: every field is frozen, so there is nothing to diffuse")


def rows(process: Any, state: Any) -> int:
    """Return the number of samples in a batch."""
    of = (p.space.rows(leaf) for p, leaf in zip(leaves(process), leaves(state), strict=False) if p.noised)
    return int(next(of))


def streams(process: Process | Mapping[str, Any]) -> Any:
    """Return the noise stream of every field: 0, 1, … in their order."""
    numbers: Iterator[int] = iter(range(10**6))

    def number(tree: Any) -> Any:
        return {name: number(sub) for name, sub in tree.items()} if isinstance(tree, Mapping) else next(numbers)

    return number(process)
