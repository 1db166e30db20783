"""Embed: vectors for the noise level and the condition."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from suffuse.errors import ConfigError

__all__ = ["Embedding", "fourier", "spatial"]


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


def spatial(shape: tuple[int, ...]) -> int:
    """Return the number of spatial axes of a state's shape (C, *spatial).

    Raises:
        ConfigError: Unless it is 1, 2 or 3.
    """
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
    """

    def __init__(self, width: int, cond_dim: int = 0) -> None:
        super().__init__()
        self.width = width
        self.noise = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        self.cond = nn.Linear(cond_dim, width) if cond_dim else None

    def forward(self, noise: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the embedding after its last nonlinearity."""
        embedded: Tensor = self.noise(fourier(noise, 128))
        if self.cond is not None:
            if cond is None or "vector" not in cond:
                raise ConfigError("model: a conditional network needs cond['vector']")
            vector = self.cond(cond["vector"])
            embedded = embedded + (vector[:, None] if embedded.ndim == 3 else vector)
        return nn.functional.silu(embedded)
