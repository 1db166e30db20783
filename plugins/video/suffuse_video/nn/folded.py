"""FoldedUNet: the frames of a clip as channels of a picture, so that a two-dimensional network sees all at once.

It is the cheapest way to a short clip: what a place shows over time is one vector. The length is that of training;
longer clips are drawn window by window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from suffuse.errors import ConfigError
from suffuse.nn import UNet
from torch import Tensor, nn

__all__ = ["FoldedUNet"]


class FoldedUNet(nn.Module):
    """A U-Net over height and width of clips (B, C, T, H, W).

    Arguments:
        shape: Shape (C, T, H, W) of a clip.
        about: Facts of the data, which it does not need.
        options: Arguments of `suffuse.nn.UNet`.

    Raises:
        ConfigError: When the states are no clips; in `forward`, for another number of frames.
    """

    def __init__(self, shape: Sequence[int], about: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        if isinstance(shape, Mapping):
            raise ConfigError("model: frames as channels have one number; masks need attention: model=video/tubes")
        if len(shape) != 4:
            raise ConfigError(f"model: a state of shape {tuple(shape)} is no clip (C, T, H, W)")
        channels, self.frames, *size = shape
        self.network = UNet((channels * self.frames, *size), levels=self.frames, **options)
        self.self_condition = self.network.self_condition

    def forward(
        self, x: Tensor, noise: Tensor, cond: Mapping[str, Tensor] | None = None, previous: Tensor | None = None
    ) -> Tensor:
        """Return F of the shape of x; `noise` is (B,), or (B, T) with a level per frame."""
        if x.shape[2] != self.frames:
            raise ConfigError(f"model: this network takes {self.frames} frames at a time, not {x.shape[2]}")
        if noise.ndim == 1 and self.frames > 1:
            noise = noise[:, None].expand(-1, self.frames)
        earlier = None if previous is None else previous.flatten(1, 2)
        out: Tensor = self.network(x.flatten(1, 2), noise, cond, earlier)
        return out.reshape(x.shape)
