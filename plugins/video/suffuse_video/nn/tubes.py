"""TubeDiT: a transformer over tubes of pixels, whose joints convolutions smooth over.

A tube is a patch of a few frames, so tokens are few and each says how a place changes; what lies across the border of
two tubes, and the last crispness of an edge, is drawn by convolutions within each frame, which see the tubes' joined
result and the noisy clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from suffuse.errors import ConfigError
from suffuse.nn import DiT
from suffuse.state import State
from torch import Tensor, nn

__all__ = ["TubeDiT"]


class TubeDiT(nn.Module):
    """A diffusion transformer over clips (B, C, T, H, W) and convolutions over its frames.

    Arguments:
        shape: Shape (C, T, H, W) of a clip.
        refine: Channels of the convolutions.
        about: Facts of the data, which it does not need.
        options: Arguments of `suffuse.nn.DiT`.

    Raises:
        ConfigError: When the states are no clips, or `refine` is below 1.
    """

    def __init__(
        self, shape: Sequence[int], refine: int = 32, about: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__()
        whole: Any = shape  # of named fields, those of x and its mask, see `suffuse_video.ragged`
        shape = whole["x"] if isinstance(whole, Mapping) and "x" in whole else shape
        if len(shape) != 4:
            raise ConfigError(f"model: a state of shape {tuple(shape)} is no clip (C, T, H, W)")
        if isinstance(refine, bool) or not isinstance(refine, int) or refine < 1:
            raise ConfigError(f"model.refine={refine} must be a whole number of at least 1")
        self.network = DiT(whole, **options)
        self.self_condition = self.network.self_condition
        self.refine = nn.Sequential(
            nn.Conv2d(2 * shape[0] + 1, refine, 3, padding=1), nn.SiLU(),
            nn.Conv2d(refine, refine, 3, padding=1), nn.SiLU(),
            nn.Conv2d(refine, shape[0], 3, padding=1),
        )  # fmt: skip
        for parameter in self.refine[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x: State, noise: Tensor, cond: Mapping[str, Tensor] | None = None, previous: State | None = None
    ) -> State:
        """Return F of the shape of x; `noise` is (B,), or (B, T) with a level per frame.

        With a mask, ``{"x": …, "mask": (B, T)}``, nothing is attended to that does not exist.
        """
        rough = self.network(x, noise, cond, previous)
        if isinstance(x, Mapping) and isinstance(rough, Mapping):
            return {"x": self._smoothed(rough["x"], x["x"], noise)}
        return self._smoothed(rough, x, noise)

    def _smoothed(self, rough: State, x: State, noise: Tensor) -> Tensor:
        """Return what the transformer says, corrected by the convolutions within each frame."""
        assert isinstance(rough, Tensor) and isinstance(x, Tensor)  # of one tensor, one tensor
        frames = x.shape[2]
        level = noise[:, None].expand(-1, frames) if noise.ndim == 1 else noise
        if level.shape[1] != frames:
            raise ConfigError(f"model: {level.shape[1]} noise levels for {frames} frames")
        told = level.to(x)[:, None, :, None, None].expand(-1, 1, -1, *x.shape[3:])
        seen = torch.cat([rough, x, told], 1).transpose(1, 2).flatten(0, 1)
        found: Tensor = self.refine(seen)
        return rough + found.reshape(len(x), frames, *found.shape[1:]).transpose(1, 2)
