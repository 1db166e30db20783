"""Pictures: a finite set of pictures x_i in [0, 1]^(C x H x W), with a class and a caption each where there are some.

Item i in epoch e is ``{"x": float32 (C, H, W), "cond": {"label": int}, "index": i}``; ``cond`` is empty without
classes. With `flip` the picture is mirrored when the bit h(seed, e, i) is set, h a hash, so augmentation is a function
of its arguments and not of the process that computes it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import Dataset

__all__ = ["Pictures", "flipped"]


def flipped(seed: int, epoch: int, index: int) -> bool:
    """Return whether item `index` is mirrored in `epoch`: a fair, reproducible coin."""
    words = struct.pack("<3Q", seed % 2**64, epoch % 2**64, index % 2**64)
    return bool(blake2b(words, digest_size=1).digest()[0] & 1)


class Pictures(Dataset[dict[str, Any]]):
    """Pictures kept in memory as integers.

    Arguments:
        pixels: uint8, shape (N, C, H, W), with values in 0..`levels`.
        labels: int64, shape (N,), -1 where none is known; None without classes.
        captions: One text per picture, or nothing.
        levels: The value of white.
        flip: Mirror half of the pictures, other ones in each epoch. Only an ``(epoch, index)`` pair is augmented.
        seed: Seed of the coin.
    """

    def __init__(
        self, pixels: torch.Tensor, labels: torch.Tensor | None = None, captions: Sequence[str] = (), *,
        levels: int = 255, flip: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        self.pixels, self.labels, self.captions = pixels, labels, tuple(captions)
        self.levels, self.epochs, self.seed = levels, flip, seed

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = (None, key) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        pixels, index = self._fetch(index)
        x = pixels.float() / self.levels
        if epoch is not None and self.epochs and flipped(self.seed, epoch, index):
            x = x.flip(-1)
        cond = {} if self.labels is None else {"label": int(self.labels[index])}
        return {"x": x, "cond": cond, "index": index}

    def batch(self, keys: Sequence[int] | Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return the items `keys` as one batch, at the cost of a single look-up."""
        pairs = [(None, key) if isinstance(key, int) else key for key in keys]
        index = torch.tensor([i for _, i in pairs])
        x = self.pixels[index].float() / self.levels
        mirrored = [e is not None and self.epochs and flipped(self.seed, e, i) for e, i in pairs]
        if any(mirrored):
            x = torch.where(torch.tensor(mirrored)[:, None, None, None], x.flip(-1), x)
        return {"x": x, "cond": {} if self.labels is None else {"label": self.labels[index]}, "index": index}

    def _fetch(self, index: int) -> tuple[torch.Tensor, int]:
        """Return the uint8 pixels (C, H, W) of an item, and the index of the item they belong to."""
        return self.pixels[index], index
