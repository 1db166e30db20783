"""Embed: vectors for the noise level and the condition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.errors import ConfigError

__all__ = ["Embedding", "Placed", "coordinates", "fourier", "resized", "spatial"]


def fourier(x: Tensor, width: int, lowest: float = 0.5, highest: float = 64.0) -> Tensor:
    """Return sines and cosines of x at geometrically spaced frequencies, shape (..., width).

    Arguments:
        x: Numbers of order one, any shape.
        width: Even number of features.
        lowest: Lowest angular frequency.
        highest: Highest angular frequency; its period is the finest difference that shows.
    """
    half = width // 2
    span = torch.linspace(math.log(lowest), math.log(highest), half, device=x.device, dtype=torch.float32)
    angle = x.float()[..., None] * span.exp()
    return torch.cat([angle.sin(), angle.cos()], -1)


def spatial(shape: Sequence[int] | Mapping[str, Any]) -> int:
    """Return the number of spatial axes of a state's shape (C, *spatial).

    Raises:
        ConfigError: Unless it is 1, 2 or 3, and for named fields, which are more than one tensor.
    """
    if isinstance(shape, Mapping):
        hint = "; masks need attention: model=dit" if "mask" in shape else ""
        raise ConfigError(f"model: this network takes one tensor, not the fields {sorted(shape)}{hint}")
    count = len(shape) - 1
    if count not in (1, 2, 3):
        raise ConfigError(
            f"model: a state of shape {tuple(shape)} has {count} spatial axes; this network takes 1, 2 or 3"
        )
    return count


class Embedding(nn.Module):
    """Noise level and condition vector to one vector, (B, width), or (B, T, width) for per-token noise.

    Arguments:
        width: Size of the result.
        cond_dim: Size of ``cond["vector"]``; 0 for an unconditional network.
        levels: Noise levels that are embedded together, as a further last axis of what is given; 1 without that axis.
    """

    def __init__(self, width: int, cond_dim: int = 0, levels: int = 1) -> None:
        super().__init__()
        self.width, self.levels = width, levels
        self.noise = nn.Sequential(nn.Linear(128 * levels, width), nn.SiLU(), nn.Linear(width, width))
        self.cond = nn.Linear(cond_dim, width) if cond_dim else None

    def forward(self, noise: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the embedding after its last nonlinearity."""
        features = fourier(noise, 128)
        embedded: Tensor = self.noise(features if self.levels == 1 else features.flatten(-2))
        if self.cond is not None:
            if cond is None or "vector" not in cond:
                raise ConfigError("model: a conditional network needs cond['vector']")
            vector = self.cond(cond["vector"])
            embedded = embedded + (vector[:, None] if embedded.ndim == 3 else vector)
        return nn.functional.silu(embedded)


def coordinates(sizes: Sequence[int], like: Tensor) -> Tensor:
    """Return each position's coordinates in [-1, 1], shape (axes, *sizes), on the device and in the type of `like`."""
    lines = [torch.linspace(-1, 1, size, device=like.device, dtype=like.dtype) for size in sizes]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def resized(cond: Mapping[str, Tensor] | None, channels: int, x: Tensor) -> Tensor:
    """Return the picture of a condition, (B, channels, *spatial), at the size and in the type of a state x.

    Raises:
        ConfigError: When the condition has no picture, or one of other channels.
    """
    image = None if cond is None else cond.get("image")
    if image is None or image.shape[1] != channels or image.ndim != x.ndim:
        found = "none" if image is None else str(tuple(image.shape[1:]))
        raise ConfigError(f"model: needs cond['image'] of {channels} channels and {x.ndim - 2} axes; there is {found}")
    if image.shape[2:] == x.shape[2:]:
        return image.to(x.dtype)
    modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
    smaller = all(a >= b for a, b in zip(image.shape[2:], x.shape[2:], strict=True))
    if smaller and all(a % b == 0 for a, b in zip(image.shape[2:], x.shape[2:], strict=True)):
        return nn.functional.interpolate(image, x.shape[2:], mode="area").to(x.dtype)
    return nn.functional.interpolate(image, x.shape[2:], mode=modes[x.ndim - 2]).to(x.dtype)


class Placed(nn.Module):
    """What the condition says about each position: a network of coordinates and embedding together.

    A convolution sees the same condition everywhere, and attention with relative positions knows no place in pure
    noise. Where the answer to "what belongs here?" depends on both, as for a sound that slides or beats at a tempo, a
    network of the two gives it at the first layer ("Compositional Pattern Producing Networks", Stanley 2007).

    Arguments:
        axes: Spatial axes.
        embed: Size of the embedding.
        hidden: Width inside.
        out: Size of the result.
    """

    FEATURES = 32
    """Sines and cosines per axis."""

    def __init__(self, axes: int, embed: int, hidden: int, out: int) -> None:
        super().__init__()
        self.where = nn.Linear(axes * self.FEATURES, hidden)
        self.what = nn.Linear(embed, hidden, bias=False)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out))

    def forward(self, where: Tensor, embedded: Tensor) -> Tensor:
        """Return features (B, N, out).

        Arguments:
            where: Coordinates in [-1, 1], shape (axes, N), or (B, axes, N) where they differ from row to row.
            embedded: Shape (B, G, embed) for G groups of equal size along the positions.
        """
        features = fourier(where.transpose(-1, -2), self.FEATURES).flatten(-2).to(embedded.dtype)
        here = self.where(features).unflatten(-2, (embedded.shape[1], -1))
        found: Tensor = self.rest((here + self.what(embedded)[:, :, None]).flatten(1, 2))
        return found
