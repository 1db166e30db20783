"""Tiles: large pictures and frames go through an autoencoder in squares, which are blended where they overlap.

y = sum_k w_k y_k / sum_k w_k with y_k the result of tile k, and w_k falling linearly over a quarter of its side: memory
does not grow with the frame. An autoencoder of diffusers that can be told a size tiles in its own way.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.autoencoder import Coder
from suffuse.errors import ConfigError

__all__ = ["Tiled", "tile_in"]

_KEYS = ("tile_sample_min_height", "tile_sample_min_width")


def tile_in(coder: Coder, tile: int) -> None:
    """Let an autoencoder encode and decode in squares.

    Arguments:
        coder: The autoencoder.
        tile: Side in pixels.

    Raises:
        ConfigError: When the side is no multiple of four times the autoencoder's factors.
    """
    step = 4 * math.lcm(*coder.factor[-2:])
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < step or tile % step:
        raise ConfigError(f"codec.tile={tile} must be a multiple of {step} pixels, four times the autoencoder's factor")
    network = getattr(coder.model, "network", None)
    enable = getattr(network, "enable_tiling", None)
    known: Any = inspect.signature(enable).parameters if enable is not None else {}
    # Some classes have one size built in, and those that can be told a size call its parts differently.
    if enable is None or not set(_KEYS) <= set(known):
        coder.model = Tiled(coder.model, (coder.factor[-2], coder.factor[-1]), tile)
        return
    sizes: dict[str, float] = dict.fromkeys(_KEYS, tile)
    for axis in ("height", "width"):
        sizes |= {f"tile_sample_stride_{axis}": tile - tile // 4, f"tile_overlap_factor_{axis}": 0.25}
    enable(**{name: value for name, value in sizes.items() if name in known})


class Tiled(nn.Module):
    """A model of pictures or clips that works on squares of them, along the last two axes.

    Arguments:
        model: Encodes states (B, C, ..., H, W) and decodes their latents.
        factor: Its down-sampling of height and width.
        tile: Side of a square of a state.
    """

    def __init__(self, model: nn.Module, factor: tuple[int, int], tile: int) -> None:
        super().__init__()
        self.model: Any = model
        self.factor, self.tile = factor, tile

    @property
    def network(self) -> Any:
        """The network inside."""
        return self.model.network

    def encode(self, x: Tensor) -> Tensor:
        """Return latents."""
        return self._blended(self.model.encode, x, tuple(1 / f for f in self.factor), (self.tile, self.tile))

    def decode(self, z: Tensor) -> Tensor:
        """Return states."""
        sides = (self.tile // self.factor[0], self.tile // self.factor[1])
        return self._blended(self.model.decode, z, tuple(map(float, self.factor)), sides)

    @staticmethod
    def _blended(
        function: Callable[[Tensor], Tensor], x: Tensor, ratio: tuple[float, ...], sides: tuple[int, int]
    ) -> Tensor:  # fmt: skip
        """Return the blend of a function of tiles, whose results are larger by a ratio per axis."""
        places = [_places(size, side) for size, side in zip(x.shape[-2:], sides, strict=True)]
        out = weights = None
        for top in places[0]:
            for left in places[1]:
                found = function(x[..., top : top + sides[0], left : left + sides[1]])
                h, w = found.shape[-2:]
                if out is None or weights is None:
                    sizes = [round(size * r) for size, r in zip(x.shape[-2:], ratio, strict=True)]
                    out, weights = found.new_zeros(*found.shape[:-2], *sizes), found.new_zeros(*sizes)
                weight = _ramp(h, found).outer(_ramp(w, found))
                i, j = round(top * ratio[0]), round(left * ratio[1])
                out[..., i : i + h, j : j + w] += weight * found
                weights[i : i + h, j : j + w] += weight
        assert out is not None and weights is not None  # there is a tile
        return out / weights


def _places(size: int, side: int) -> list[int]:
    """Return where tiles begin: a quarter overlaps, and the last ends where the frame does."""
    last = max(size - side, 0)
    return [*range(0, last, side - side // 4), last]


def _ramp(size: int, like: Tensor) -> Tensor:
    """Return weights of a tile along an axis."""
    rising = torch.arange(1, size + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(rising, rising.flip(0)).clamp(max=max(size // 4, 1))
