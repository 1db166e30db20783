"""Codec: the pair of maps between what a data set yields and the state that is diffused.

encode: x -> x0, decode: x0 -> x, with decode(encode(x)) = x up to the codec's stated tolerance. Pixels to [-1, 1],
waveforms to spectrograms, pictures to latents of a frozen autoencoder are all codecs; the core never knows which.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch

from suffuse.state import State

__all__ = ["Codec", "Identity"]


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
