"""Conv: what convolutional networks for one, two or three axes share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from suffuse.errors import ConfigError

__all__ = ["POOL", "Factor", "conv", "factors_of", "norm", "shuffle", "unshuffle"]

Factor = int | Sequence[int]
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def conv(axes: int, inputs: int, outputs: int, kernel: int = 3, zero: bool = False) -> nn.Module:
    """Return a convolution that keeps the size; `zero` starts it at zero."""
    layer: nn.Module = _CONV[axes](inputs, outputs, kernel, padding=kernel // 2)
    if zero:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return layer


def norm(channels: int) -> nn.GroupNorm:
    """Return a group norm with as many groups as fit, at most 32, and 8 for few channels."""
    return nn.GroupNorm(math.gcd(channels, 32) if channels >= 128 else math.gcd(channels, 8), channels)


def factors_of(factor: Factor, axes: int, name: str) -> tuple[int, ...]:
    """Return a factor per axis; raises `ConfigError` for ``model.<name>`` unless there are as many, all at least 1."""
    found = (factor,) * axes if isinstance(factor, int) else tuple(factor)
    if len(found) != axes or any(not isinstance(f, int) or f < 1 for f in found):
        raise ConfigError(f"model.{name}={factor} must be a whole number of at least 1, or {axes} of them")
    return found


def unshuffle(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Return space-to-depth: (B, C, *spatial) to (B, C prod(patch), *spatial/patch)."""
    if math.prod(patch) == 1:
        return x
    rows, channels, *sizes = x.shape
    axes = len(patch)
    cut = [part for size, p in zip(sizes, patch, strict=True) for part in (size // p, p)]
    order = [0, 1, *range(3, 3 + 2 * axes, 2), *range(2, 2 + 2 * axes, 2)]
    out = [size // p for size, p in zip(sizes, patch, strict=True)]
    return x.reshape(rows, channels, *cut).permute(order).reshape(rows, channels * math.prod(patch), *out)


def shuffle(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Invert `unshuffle`."""
    if math.prod(patch) == 1:
        return x
    rows, channels, *sizes = x.shape
    axes = len(patch)
    order = [0, 1, *(i for k in range(axes) for i in (2 + axes + k, 2 + k))]
    out = [size * p for size, p in zip(sizes, patch, strict=True)]
    return x.reshape(rows, -1, *patch, *sizes).permute(order).reshape(rows, channels // math.prod(patch), *out)
