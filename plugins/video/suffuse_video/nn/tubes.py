"""TubeDiT: a transformer over tubes of pixels, whose joints convolutions smooth over.

A tube is a patch of a few frames, so tokens are few and each says how a place changes; what lies across the border of
two tubes, and the last crispness of an edge, is drawn by convolutions within each frame, which see the tubes' joined
result and the noisy clip, and are told the frame's noise level and the condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from suffuse.errors import ConfigError, check_whole
from suffuse.nn import DiT
from suffuse.nn.embed import Embedding
from suffuse.state import State
from torch import Tensor, nn

__all__ = ["TubeDiT"]


class _Refine(nn.Module):
    """Residual convolutions within a frame, scaled and shifted by its noise level and the condition."""

    def __init__(self, channels: int, width: int, depth: int, cond_dim: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.embed = Embedding(128, cond_dim)
        self.modulate = nn.ModuleList(nn.Linear(128, 2 * width) for _ in range(depth))
        self.inside = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        for layer in (*self.modulate, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, noise: Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        """Return corrections (B T, C, H, W) of frames (B T, 2 C, H, W); `noise` is (B, T)."""
        embedded = self.embed(noise, cond).flatten(0, 1)
        # A third faster on a CPU than with the channels first.
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        for modulate, inside in zip(self.modulate, self.inside, strict=True):
            scale, shift = modulate(embedded)[:, :, None, None].chunk(2, 1)
            h = h + inside(nn.functional.silu(h * (1 + scale) + shift))
        out: Tensor = self.leave(nn.functional.silu(h))
        return out


class TubeDiT(nn.Module):
    """A diffusion transformer over clips (B, C, T, H, W) and convolutions over its frames.

    Arguments:
        shape: Shape (C, T, H, W) of a clip.
        refine: Channels of the convolutions.
        refine_depth: How many there are between the first and the last.
        about: Facts of the data, which it does not need.
        options: Arguments of `suffuse.nn.DiT`.

    Raises:
        ConfigError: When the states are no clips, or `refine` or `refine_depth` is below 1.
    """

    def __init__(
        self, shape: Sequence[int], refine: int = 16, refine_depth: int = 3, about: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        whole: Any = shape  # of named fields, those of x and its mask, see `suffuse_video.ragged`
        shape = whole["x"] if isinstance(whole, Mapping) and "x" in whole else shape
        if len(shape) != 4:
            raise ConfigError(f"model: a state of shape {tuple(shape)} is no clip (C, T, H, W)")
        for name, value in (("refine", refine), ("refine_depth", refine_depth)):
            check_whole(f"model.{name}", value)
        self.network = DiT(whole, **options)
        self.self_condition = self.network.self_condition
        self.refine = _Refine(shape[0], refine, refine_depth, options.get("cond_dim", 0))

    def forward(
        self, x: State, noise: Tensor, cond: Mapping[str, Tensor] | None = None, previous: State | None = None
    ) -> State:
        """Return F of the shape of x; `noise` is (B,), or (B, T) with a level per frame.

        With a mask, ``{"x": …, "mask": (B, T)}``, nothing is attended to that does not exist.
        """
        rough = self.network(x, noise, cond, previous)
        if isinstance(x, Mapping) and isinstance(rough, Mapping):
            return {"x": self._smoothed(rough["x"], x["x"], noise, cond)}
        return self._smoothed(rough, x, noise, cond)

    def _smoothed(self, rough: State, x: State, noise: Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        """Return what the transformer says, corrected by the convolutions within each frame."""
        assert isinstance(rough, Tensor) and isinstance(x, Tensor)  # of one tensor, one tensor
        frames = x.shape[2]
        level = noise[:, None].expand(-1, frames) if noise.ndim == 1 else noise
        if level.shape[1] != frames:
            raise ConfigError(f"model: {level.shape[1]} noise levels for {frames} frames")
        seen = torch.cat([rough, x], 1).transpose(1, 2).flatten(0, 1)
        found = self.refine(seen, level, cond)
        return rough + found.reshape(len(x), frames, *found.shape[1:]).transpose(1, 2)
