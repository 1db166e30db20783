"""Pictures: a finite set of pictures x_i in [0, 1]^(C x H x W), with a class and a caption each where there are some.

Item i in epoch e is ``{"x": float32 (C, H, W), "cond": {"label": int, "text": uint8}, "index": i}``; ``cond`` is empty
without classes and captions. With `flip` the picture is mirrored when the bit h(seed, e, i) is set, h a hash, so
augmentation is a function of its arguments and not of the process that computes it. With a hint (`suffuse_image.hints`)
``cond["image"]`` is a picture in [-1, 1] that goes with it: smaller, its edges, or one of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from suffuse.captions import Captions
from torch.utils.data import Dataset

from suffuse_image.hints import Hint

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
        texts: Captions of the pictures, or None.
        levels: The value of white.
        flip: Mirror half of the pictures, other ones in each epoch. Only an ``(epoch, index)`` pair is augmented.
        seed: Seed of the coin.
        hint: Makes the hint of a picture.
        hints: uint8, shape (N, E, H, W), the pictures that `hint` is made from; by default the pictures themselves.
    """

    def __init__(
        self, pixels: torch.Tensor, labels: torch.Tensor | None = None, texts: Captions | None = None, *,
        levels: int = 255, flip: bool = False, seed: int = 0, hint: Hint | None = None,
        hints: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self.pixels, self.labels, self.texts, self.levels = pixels, labels, texts, levels
        self.hint, self.hints = hint, hints
        self.flip, self.seed = flip, seed
        self.epochs = flip or (texts is not None and texts.varied)
        self.still = not flip
        """Whether pictures are the same in every epoch, whatever their captions are."""

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = (None, key) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        pixels, index = self._fetch(index)
        mirrored = epoch is not None and self.flip and flipped(self.seed, epoch, index)
        x = self._shown(pixels, mirrored)
        cond: dict[str, Any] = {} if self.labels is None else {"label": int(self.labels[index])}
        if self.texts is not None:
            cond["text"] = self.texts.encoded(index, epoch)
        if self.hint is not None:
            cond["image"] = 2 * self.hint(x if self.hints is None else self._shown(self.hints[index], mirrored)) - 1
        return {"x": x, "cond": cond, "index": index}

    def batch(self, keys: Sequence[int] | Sequence[tuple[int, int]]) -> dict[str, Any]:
        """Return the items `keys` as one batch, at the cost of a single look-up."""
        pairs = [(None, key) if isinstance(key, int) else key for key in keys]
        index = torch.tensor([i for _, i in pairs])
        x = self.pixels[index].float() / self.levels
        mirrored = [e is not None and self.flip and flipped(self.seed, e, i) for e, i in pairs]
        if any(mirrored):
            x = torch.where(torch.tensor(mirrored)[:, None, None, None], x.flip(-1), x)
        cond = {} if self.labels is None else {"label": self.labels[index]}
        if self.texts is not None:
            cond["text"] = self.texts.batch(keys)
        if self.hint is not None:
            own = x if self.hints is None else self.hints[index].float() / self.levels
            if self.hints is not None and any(mirrored):
                own = torch.where(torch.tensor(mirrored)[:, None, None, None], own.flip(-1), own)
            cond["image"] = 2 * self.hint(own) - 1
        return {"x": x, "cond": cond, "index": index}

    def _shown(self, pixels: torch.Tensor, mirrored: bool) -> torch.Tensor:
        x = pixels.float() / self.levels
        return x.flip(-1) if mirrored else x

    def _fetch(self, index: int) -> tuple[torch.Tensor, int]:
        """Return the uint8 pixels (C, H, W) of an item, and the index of the item they belong to."""
        return self.pixels[index], index
