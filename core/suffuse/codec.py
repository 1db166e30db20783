"""Codec: the pair of maps between what a data set yields and the state that is diffused.

encode: x -> x0, decode: x0 -> x, with decode(encode(x)) = x up to the codec's stated tolerance. Pixels to [-1, 1],
waveforms to spectrograms, pictures to latents of a frozen autoencoder are all codecs; the core never knows which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.state import State

if TYPE_CHECKING:
    from suffuse.model import Facts

__all__ = ["Codec", "Identity", "empty", "implied", "opened"]


@runtime_checkable
class Codec(Protocol):
    """What the core asks of a codec."""

    tolerance: float
    """Largest absolute error of decode(encode(x)) on real data, in the units of x."""

    def encode(self, x: Any) -> State:
        """Return the state x0 of a batch `x` as the data set yields it."""
        ...

    def decode(self, state: State) -> Any:
        """Return the batch in the units of the data set."""
        ...


def empty(codec: Any, facts: Facts, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> State:
    """Return the shapes that samples are drawn in, and the content of the fields that are given: one row per seed.

    A codec whose states differ in size, or have frozen fields, says it in ``like(seeds, raw, device)``; a row of it may
    depend on its own seed and condition alone. Without that method every state has the shape of the training data.
    """
    own = getattr(codec, "like", None)
    if own is None:
        return facts.like(len(seeds), device)
    state: State = own(seeds, raw, device)
    return state


def opened(codec: Any, init: str, mask: str | None) -> tuple[State, State | None]:
    """Return what is known of a sample from a file: a state of one row, and where it stays as it is.

    A codec that can says it in ``open(init, mask)``: both of its results are shaped like one row of a state, the second
    is true where the first is kept, or None for a `mask` of None.

    Raises:
        ConfigError: When the codec cannot.
    """
    own = getattr(codec, "open", None)
    if own is None:
        raise ConfigError(f"init={init}: this model's codec, {type(codec).__name__}, does not read files")
    known: tuple[State, State | None] = own(init, mask)
    return known


def implied(codec: Any, conditioner: Any) -> dict[str, Any]:
    """Return the conditions that a codec's demand on the whole sample means, of those that the model knows.

    A codec says them in ``implied``: the length of a sound that was asked for, or that a story begins at its beginning.
    """
    known = conditioner.known()
    return {name: value for name, value in getattr(codec, "implied", {}).items() if name in known}


class Identity:
    """The data already is the state.

    Arguments:
        scale: The state is ``(x - shift) * scale``.
        shift: See `scale`.
    """

    tolerance = 1e-5

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        self.scale, self.shift = scale, shift

    def encode(self, x: torch.Tensor) -> State:
        """Return ``(x - shift) * scale`` in float32, same shape."""
        return (x.float() - self.shift) * self.scale

    def decode(self, state: State) -> torch.Tensor:
        """Return ``state / scale + shift``, same shape."""
        if not isinstance(state, torch.Tensor):
            raise TypeError(f"Identity decodes one tensor, not {type(state).__name__}")
        return state / self.scale + self.shift
