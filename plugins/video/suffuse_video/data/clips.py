"""Clips: a finite set of clips of one shape in memory, with a class and a caption each where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from suffuse.text import encoded
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Clips"]


class Clips(Dataset[dict[str, Any]]):
    """Clips kept in memory as integers.

    Item i is ``{"x": float32 (3, T, H, W), "cond": {...}, "index": i}`` with ``label`` (int) and ``text`` (bytes, see
    `suffuse.text`) where the set has them.

    Arguments:
        pixels: uint8, shape (N, 3, T, H, W).
        labels: int64, shape (N,), -1 where none is known; None without classes.
        captions: One text per clip, or nothing.
    """

    def __init__(self, pixels: Tensor, labels: Tensor | None = None, captions: Sequence[str] = ()) -> None:
        self.pixels, self.captions = pixels, tuple(captions)
        self.cond: dict[str, Tensor] = {} if labels is None else {"label": labels}
        if captions:
            # Equal captions are common; each is encoded once.
            rows = {text: encoded(text) for text in dict.fromkeys(captions)}
            self.cond["text"] = torch.stack([rows[text] for text in captions])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        cond: dict[str, Any] = {
            name: value[index] if value.ndim > 1 else value[index].item() for name, value in self.cond.items()
        }
        return {"x": self.pixels[index].float() / 255, "cond": cond, "index": index}

    def batch(self, keys: Sequence[int]) -> dict[str, Any]:
        """Return the items `keys` as one batch."""
        index = torch.tensor(keys)
        cond = {name: value[index] for name, value in self.cond.items()}
        return {"x": self.pixels[index].float() / 255, "cond": cond, "index": index}
