"""Base of the audio codecs: what is common to all maps between samples (B, C, N) and states.

A codec knows rate, channels and length from the facts of the data (``about``). Asked for ``seconds`` it draws samples
of another length than those of training, where the network can: its states then have more or fewer frames. `open`
reads a file for editing; a mask in seconds becomes a mask on frames, of which those are kept that lie wholly outside
what is made anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from suffuse.errors import ConfigError
from torch import Tensor

from suffuse_audio.files import read
from suffuse_audio.spans import kept, spans

__all__ = ["AudioCodec", "counts"]


class AudioCodec(ABC):
    """Rate, channels, length, and what follows from them.

    Arguments:
        about: Facts of the data: ``rate`` in Hz, ``channels``, ``samples``.
        seconds: Length of the samples that are drawn; by default that of the training data.

    Raises:
        ConfigError: When `seconds` is no positive number.
    """

    tolerance = 1e-5
    """Largest difference of samples there and back; infinite where phases are found anew."""
    decibels = 1e-3
    """Largest log-spectral distance of the embedded set there and back, see `suffuse_audio.metrics.Reconstruction`."""
    frame = 1
    """Samples per column of the state."""
    overlap = 0
    """Samples by which a column reaches over its own place on either side."""

    def __init__(self, about: Mapping[str, Any] | None = None, seconds: float | None = None) -> None:
        about = about or {}
        self.rate, self.channels = int(about.get("rate", 8000)), int(about.get("channels", 1))
        self.samples = int(about.get("samples", 8192))
        self.stats: Mapping[str, Any] = about.get("codec") or {}
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0):
            raise ConfigError(f"seconds={seconds} must be a number above 0")
        self.seconds = seconds
        self.ratio = 1.0
        if seconds is not None:
            self.ratio = seconds * self.rate / self.samples
            self.implied = {"seconds_start": 0.0, "seconds_total": float(seconds)}

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the state of samples (B, C, N)."""

    @abstractmethod
    def decode(self, state: Any) -> Tensor:
        """Return the samples (B, C, N) of a state."""

    def like(self, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> Tensor:
        """Return an empty state of the wanted length, one row per seed."""
        length = self.whole(self.samples if self.seconds is None else round(self.seconds * self.rate))
        shape = self.encode(torch.zeros(1, self.channels, length)).shape
        return torch.empty(len(seeds), *shape[1:], device=device)

    def whole(self, samples: int) -> int:
        """Return the least length of at least `samples` that fills whole frames, a multiple of 16 of them."""
        step = 16 * self.frame if samples != self.samples else self.frame
        return -(-samples // step) * step

    def cut(self, x: Tensor) -> Tensor:
        """Return decoded samples at the length that was asked for."""
        return x if self.seconds is None else x[..., : round(self.seconds * self.rate)]

    def open(self, init: str, mask: str | None) -> tuple[Tensor, Tensor | None]:
        """Return the state of a file, one row, and where it is kept.

        Arguments:
            init: A sound file; it is resampled, mixed to the model's channels, and cut or filled with silence.
            mask: What is made anew, in seconds: ``2.0-3.5``, ``-0.5`` (the first half second), ``3-`` (from 3 s on, a
                continuation), or several with commas.
        """
        length = self.samples if self.seconds is None else round(self.seconds * self.rate)
        x = read(init, self.rate, self.channels, key="init")[:, : self.whole(length)]
        x = torch.nn.functional.pad(x, (0, self.whole(length) - x.shape[1]))
        state = self.encode(x[None])
        return state, None if mask is None else self.kept(mask, state)

    def kept(self, mask: str, state: Tensor) -> Tensor:
        """Return which entries of a state reach into no stretch of a mask, boolean of its shape.

        Raises:
            ConfigError: When the mask is none, or makes everything or nothing anew.
        """
        length = self.samples if self.seconds is None else round(self.seconds * self.rate)
        columns = kept(spans(mask, length / self.rate), state.shape[-1], self.frame, self.overlap, self.rate)
        if not columns.any() or columns.all():
            raise ConfigError(f"mask={mask}: {'nothing' if columns.all() else 'everything'} would be made anew")
        return columns.expand(state.shape)


def counts(**values: int) -> None:
    """Raise `ConfigError` for the first argument of a codec that is not a whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"codec.{name}={value} must be a whole number of at least 1")
