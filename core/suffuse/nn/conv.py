"""Conv: what convolutional networks for one, two or three axes share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse.errors import ConfigError

__all__ = ["POOL", "ChannelNorm", "Factor", "conv", "factors_of", "norm", "shuffle", "stilled", "unshuffle"]

Factor = int | Sequence[int]
_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _Causal(nn.Module):
    """A convolution that looks back along the first axis, and to both sides along the others."""

    def __init__(self, axes: int, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.past = kernel - 1
        self.conv: nn.Module = _CONV[axes](inputs, outputs, kernel, padding=(0, *[kernel // 2] * (axes - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution, of the size of x."""
        out: Tensor = self.conv(stilled(x, self.past))
        return out


class ChannelNorm(nn.Module):
    """Root mean square norm over the channels, of every position by itself.

    Arguments:
        channels: Size of axis 1.
        eps: Added to the mean square.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x, normalised."""
        fine = x.to(torch.promote_types(x.dtype, torch.float32))
        size = (fine.square().mean(1, keepdim=True) + self.eps).rsqrt().to(x.dtype)
        return x * size * self.weight.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))


def stilled(x: Tensor, past: int) -> Tensor:
    """Return x with its first entry of axis 2 `past` more times in front.

    What is before the first entry is then the first entry, and no border that a network could tell from the data.
    """
    return torch.cat([x[:, :, :1].expand(-1, -1, past, *x.shape[3:]), x], 2) if past else x


def conv(
    axes: int, inputs: int, outputs: int, kernel: int = 3, zero: bool = False, causal: bool = False
) -> nn.Module:  # fmt: skip
    """Return a convolution that keeps the size.

    Arguments:
        axes: Spatial axes.
        inputs: Channels that go in.
        outputs: Channels that come out.
        kernel: Size along every axis, odd.
        zero: Start at zero.
        causal: Let no entry depend on later ones of the first axis.
    """
    layer: nn.Module
    if causal and kernel > 1:
        layer = _Causal(axes, inputs, outputs, kernel)
    else:
        layer = _CONV[axes](inputs, outputs, kernel, padding=kernel // 2)
    if zero:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return layer


def norm(channels: int, causal: bool = False) -> nn.Module:
    """Return a group norm with as many groups as fit, at most 32, and 8 for few channels.

    Its means are over all positions; for a `causal` network it is a `ChannelNorm`, which looks at one.
    """
    if causal:
        return ChannelNorm(channels)
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
