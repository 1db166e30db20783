"""Hints: pictures that go with a picture as a condition, for ``conditioner=image``.

A hint is made from the picture itself, smaller (`LowRes`, for super-resolution as a second stage) or as its outlines
(`Edges`), or from a picture of its own that a folder's metadata names (`Given`: depth, pose, a drawing). It is a
function of pictures (…, C, H, W) in [0, 1] and returns (…, E, h, w) in [0, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from suffuse.errors import ConfigError, check_whole
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Edges", "Given", "Hint", "LowRes"]


class Hint:
    """Base: the picture as it is.

    Its ``column`` is the column of metadata that names a picture of its own, or None.
    """

    column: str | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return hints (…, E, h, w) of pictures (…, C, H, W)."""
        return x

    def facts(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """Return what a model must know of the hints of pictures of a shape (C, H, W)."""
        found = self(torch.zeros(shape))
        return {"kind": type(self).__name__, "channels": found.shape[-3], "size": list(found.shape[-2:])}


class LowRes(Hint):
    """The mean of every square of `factor` x `factor` pixels.

    Arguments:
        factor: Whole number of at least 2.

    Raises:
        ConfigError: For another factor; when called, for a size that it does not divide.
    """

    def __init__(self, factor: int = 4) -> None:
        check_whole("data.hint.factor", factor, 2)
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        """Return hints (…, C, H / factor, W / factor)."""
        if any(side % self.factor for side in x.shape[-2:]):
            shown = " x ".join(map(str, x.shape[-2:]))
            raise ConfigError(f"data.hint.factor={self.factor} does not divide the pictures' size {shown}")
        return F.avg_pool2d(x, self.factor)


class Edges(Hint):
    """Where brightness changes: the length of Sobel's gradient, 1 where a full step from black to white lies.

    Arguments:
        threshold: Lengths from here on are drawn white and others black; None for grey levels.

    Raises:
        ConfigError: Unless 0 < threshold < 1.
    """

    def __init__(self, threshold: float | None = 0.25) -> None:
        if threshold is not None and not 0 < threshold < 1:
            raise ConfigError(f"data.hint.threshold={threshold} must be between 0 and 1, or null")
        self.threshold = threshold

    def facts(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """Return what a model must know; outlines of a file that is given when sampling are yet to be drawn."""
        return super().facts(shape) | {"edges": {"threshold": self.threshold}}

    def __call__(self, x: Tensor) -> Tensor:
        """Return hints (…, 1, H, W)."""
        batch = x if x.ndim == 4 else x[None]
        kernel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]], device=x.device) / 4
        both = torch.stack([kernel, kernel.T])[:, None]
        padded = F.pad(batch, (1, 1, 1, 1), mode="replicate")
        channels = x.shape[-3]
        # The channel with the steepest change says: two colours of one brightness have an edge too.
        found = F.conv2d(padded.flatten(0, 1)[:, None], both).square().sum(1).sqrt()
        size = found.view(-1, channels, *found.shape[1:]).amax(1, keepdim=True).clamp(max=1.0)
        if self.threshold is not None:
            size = (size >= self.threshold).to(x)
        return size if x.ndim == 4 else size[0]


class Given(Hint):
    """A picture of its own.

    Arguments:
        column: Column of metadata with its file name.
        grey: Keep one channel, the mean.
    """

    def __init__(self, column: str = "conditioning_image", grey: bool = False) -> None:
        self.column, self.grey = column, grey

    def __call__(self, x: Tensor) -> Tensor:
        """Return hints (…, C or 1, H, W)."""
        return x.mean(-3, keepdim=True) if self.grey else x
