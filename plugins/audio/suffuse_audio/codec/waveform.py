"""Waveform: samples themselves as the state, x0 = x / deviation, (B, C, N)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suffuse.errors import ConfigError
from torch import Tensor

from suffuse_audio.codec.base import AudioCodec

__all__ = ["Waveform"]


class Waveform(AudioCodec):
    """Samples, in rows of `patch` samples that become channels.

    Arguments:
        patch: Samples per column: the state is (B, C · patch, N / patch).
        options: Arguments of `AudioCodec`.

    Raises:
        ConfigError: When the patch is below 1 or does not divide the length.
    """

    def __init__(self, patch: int = 1, **options: Any) -> None:
        super().__init__(**options)
        if patch < 1 or self.samples % patch:
            raise ConfigError(f"codec.patch={patch} must divide the {self.samples} samples of a sound")
        self.patch = self.frame = patch
        self._scale = float(self.stats.get("scale", 1.0))

    def statistics(self, x: Tensor) -> Mapping[str, Any]:
        """Return the standard deviation of the samples."""
        return {"scale": round(max(x.double().std().item(), 1e-6), 7)}

    def analyse(self, x: Tensor) -> Tensor:
        """Return scaled samples (B, C · patch, N / patch)."""
        return (x.float() / self._scale).unflatten(-1, (-1, self.patch)).transpose(-1, -2).flatten(1, 2)

    def synthesise(self, state: Tensor) -> Tensor:
        """Return samples (B, C, N)."""
        x = state.float().unflatten(1, (self.channels, self.patch)).transpose(-1, -2).flatten(-2)
        return x * self._scale

    def whole(self, samples: int) -> int:
        """Return a length that the usual factors of a network divide."""
        step = 64 * self.patch if samples != self.samples else self.patch
        return -(-samples // step) * step
