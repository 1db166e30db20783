"""State: what is diffused, one tensor or named fields, and the space each field lives in.

A `State` is a tensor of shape (B, ...) or a mapping of names to states. Solvers and losses are written for one tensor
and mapped over the fields. A `Space` is the geometry of one field: the only place that knows which axes carry their
own noise level, which entries are padding, or which subspace (zero centre of mass, symmetric pairs) the field keeps to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise

__all__ = ["Dense", "Space", "State", "by_field", "leaves", "local", "map_state"]

State = Tensor | Mapping[str, "State"]


def local(x: Tensor) -> Tensor:
    """Return what this process holds of a tensor that is spread over several, without a copy; of any other, all."""
    if hasattr(x, "to_local"):
        with torch.no_grad():
            held: Tensor = x.to_local()
        return held
    return x


def map_state(function: Callable[..., Any], first: Any, *rest: Any) -> Any:
    """Apply `function` to every field of `first` and the same field of `rest`.

    What is no mapping in `rest` (one process for all fields, a number) goes to every field.
    """
    if isinstance(first, Tensor) or not isinstance(first, Mapping):  # the cheap question first
        return function(first, *rest)
    return {
        name: map_state(function, field, *(tree[name] if isinstance(tree, Mapping) else tree for tree in rest))
        for name, field in first.items()
    }


def leaves(state: Any) -> Iterator[Any]:
    """Yield the fields of a state in their order."""
    if isinstance(state, Tensor) or not isinstance(state, Mapping):
        yield state
    else:
        for field in state.values():
            yield from leaves(field)


def by_field(what: Any) -> Any:
    """Return one `what` per field where its ``sigma_data`` is a mapping, else `what` itself."""
    spread = getattr(what, "sigma_data", None)
    if not isinstance(spread, Mapping):
        return what
    return {name: by_field(replace(what, sigma_data=d)) for name, d in spread.items()}


class Space(ABC):
    """Geometry of one field."""

    tokens: tuple[int, ...]
    """Axes of the field that the axes of a per-token noise level name, counted from the batch as 0."""

    @abstractmethod
    def expand(self, v: Tensor, like: Tensor) -> Tensor:
        """Return `v` of shape (), (B,) or (B, T) with axes of length 1 added so that it broadcasts against `like`."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Return the nearest point of the space; noise and predictions are projected."""

    def bind(self, state: State) -> Space:
        """Return the space of this batch, with the masks that it names in `state`; by default itself."""
        return self

    def rows(self, like: Tensor) -> int:
        """Return the number of samples in a field."""
        return like.shape[0]

    def white(self, z: Tensor) -> Tensor:
        """Return white noise on the space from independent standard normal (or uniform) numbers `z`."""
        return self.project(z)

    def keyed(self, noise: KeyedNoise, like: Tensor) -> tuple[KeyedNoise, tuple[int, ...]]:
        """Return the streams that draw for `like`, and the shape they draw: by default one stream per sample.

        A space whose samples differ in size has one per token, so that neither padding nor neighbours change a draw.
        """
        return noise, tuple(like.shape)

    def placed(self, z: Tensor, like: Tensor) -> Tensor:
        """Return what the streams of `keyed` drew, in the shape of `like`: by default in the order it was drawn."""
        return z.reshape(like.shape)

    def there(self, like: Tensor) -> Tensor | None:
        """Return which tokens exist, boolean (B, T) with one axis for each of `tokens`; None for all, the default."""
        return None

    @abstractmethod
    def mean(self, r: Tensor) -> Tensor:
        """Return the mean of `r` over everything but the batch, shape (B,)."""

    @abstractmethod
    def dof(self, like: Tensor) -> Tensor:
        """Return the degrees of freedom of each sample, shape (B,)."""


@dataclass(frozen=True)
class Dense(Space):
    """All of R^n, no padding.

    Arguments:
        tokens: Axes of the field, counted from the batch as 0, that the second axis of a per-token noise level names,
            for example ``(2,)`` for the frames of a video (B, C, T, H, W). Without any, a time has shape () or (B,).

    Raises:
        ConfigError: Unless every axis is a whole number of at least 1.
    """

    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if any(isinstance(axis, bool) or not isinstance(axis, int) or axis < 1 for axis in self.tokens):
            raise ConfigError(f"space: tokens={self.tokens} must name axes after the batch, for example [2]")

    def expand(self, v: Tensor, like: Tensor) -> Tensor:
        """Return `v` with its axes where `like` has the batch and the tokens."""
        if v.ndim <= 1:
            return v.reshape(*v.shape, *[1] * (like.ndim - 1)) if v.ndim else v
        if v.ndim - 1 != len(self.tokens):
            raise ConfigError(
                f"space: tokens={self.tokens} does not fit noise levels of shape {tuple(v.shape)}; name one axis of "
                "the state for each axis of the levels after the batch"
            )
        shape = [1] * like.ndim
        shape[0] = v.shape[0]
        for axis, size in zip(self.tokens, v.shape[1:], strict=True):
            shape[axis] = size
        return v.reshape(shape)

    def project(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def mean(self, r: Tensor) -> Tensor:
        """Return the mean over all axes but the first."""
        return r.flatten(1).mean(1)

    def dof(self, like: Tensor) -> Tensor:
        """Return the number of entries of a sample."""
        return torch.full((like.shape[0],), float(like[0].numel()), device=like.device)
