"""Refine: convolutions over what a transformer of patches says, at the resolution of the state itself.

A patch is drawn by one matrix from one token, so that edges across the border of two patches, and the last crispness
of any, cost many weights. A few convolutions that see the joined patches beside the noisy state add what is missing;
they are told the noise level and the condition, since how sharp an edge may be is decided by both. Their last layer
starts at zero: before training the transformer speaks alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.errors import ConfigError
from suffuse.nn.embed import Embedding

__all__ = ["Refine"]

_CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
_EMBED = 128


class Refine(nn.Module):
    """Residual convolutions, scaled and shifted by noise level and condition; of three axes within the first's slices.

    Arguments:
        channels: Channels of the state.
        axes: Its spatial axes.
        width: Channels of the convolutions.
        depth: How many there are between the first and the last.
        cond_dim: Size of the condition vector.

    Raises:
        ConfigError: When `width` or `depth` is below 1.
    """

    def __init__(self, channels: int, axes: int, width: int, depth: int, cond_dim: int = 0) -> None:
        super().__init__()
        for name, value in (("refine", width), ("refine_depth", depth)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"model.{name}={value} must be a whole number of at least 1")
        self.sliced = axes == 3
        conv: Any = _CONV[axes - self.sliced]
        self.enter = conv(2 * channels, width, 3, padding=1)
        self.embed = Embedding(_EMBED, cond_dim)
        self.modulate = nn.ModuleList(nn.Linear(_EMBED, 2 * width) for _ in range(depth))
        self.inside = nn.ModuleList(conv(width, width, 3, padding=1) for _ in range(depth))
        self.leave = conv(width, channels, 3, padding=1)
        for layer in (*self.modulate, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, rough: Tensor, x: Tensor, noise: Tensor, cond: Mapping[str, Tensor] | None = None,
        there: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return what is to be added to `rough`.

        Arguments:
            rough: What the transformer says, shape (B, C, *spatial).
            x: The noisy state, of the same shape.
            noise: Shape (B,), or (B, T) with a level per slice of the first axis.
            cond: See `suffuse.nn.DiT.forward`.
            there: Which slices of the first axis exist, boolean (B, T), or None for all; the others are as the outside.

        Raises:
            ConfigError: For levels finer than slices.
        """
        first = x.shape[2]
        if noise.ndim == 2 and noise.shape[1] != first:
            if first % noise.shape[1]:
                raise ConfigError(
                    f"model.refine: {noise.shape[1]} noise levels are not those of the state's {first} slices"
                )
            noise = noise.repeat_interleave(first // noise.shape[1], 1)
        if noise.ndim == 1 and self.sliced:
            noise = noise[:, None].expand(-1, first)
        embedded, seen = self.embed(noise, cond), torch.cat([rough, x], 1)
        if self.sliced:
            seen, embedded = seen.transpose(1, 2).flatten(0, 1), embedded.flatten(0, 1)
        if seen.ndim == 4:  # a third faster on a CPU than with the channels first
            seen = seen.contiguous(memory_format=torch.channels_last)
        # Convolutions within a slice see no other one, so only those along the first axis must not see what is missing.
        kept = None if there is None or self.sliced else there.reshape(len(x), 1, -1, *[1] * (x.ndim - 3))
        h = self.enter(_cut(seen, kept))
        for modulate, inside in zip(self.modulate, self.inside, strict=True):
            scale, shift = self._spread(modulate(embedded), h).chunk(2, 1)
            h = h + inside(_cut(nn.functional.silu(h * (1 + scale) + shift), kept))
        out: Tensor = self.leave(_cut(nn.functional.silu(h), kept))
        return out.reshape(len(x), first, *out.shape[1:]).transpose(1, 2) if self.sliced else out

    @staticmethod
    def _spread(values: Tensor, like: Tensor) -> Tensor:
        """Return (B, C), or (B, T, C) with one row per slice of the first axis, so that it fits `like`."""
        values = values.transpose(1, 2) if values.ndim == 3 else values
        return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def _cut(x: Tensor, kept: Tensor | None) -> Tensor:
    """Return x with zeros, as outside of it, where nothing is kept."""
    return x if kept is None else x * kept
