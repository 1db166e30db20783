"""Clips: a finite set of sounds in memory, with a class and a caption each where there are some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from suffuse.text import encoded
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Clips"]


class Clips(Dataset[dict[str, Any]]):
    """Sounds kept in memory as 16-bit numbers.

    Item i is ``{"x": float32 (C, N), "cond": {...}, "index": i}`` with ``label`` (int), ``text`` (bytes, see
    `suffuse.text`) and named scalars where the set has them. With `lengths` ``x`` is a sound and its mask, see
    `suffuse_audio.ragged`.

    Arguments:
        samples: int16, shape (K, C, N).
        labels: int64, shape (K,), -1 where none is known; None without classes.
        captions: One text per sound, or nothing.
        scalars: Named float conditions of shape (K,).
        lengths: Samples of each sound, shape (K,); None where all have N.
    """

    def __init__(
        self, samples: Tensor, labels: Tensor | None = None, captions: Sequence[str] = (),
        scalars: Mapping[str, Tensor] | None = None, lengths: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.samples, self.captions, self.lengths = samples, tuple(captions), lengths
        self.cond: dict[str, Tensor] = {} if labels is None else {"label": labels}
        if captions:
            # Equal captions are common; each is encoded once.
            rows = {text: encoded(text) for text in dict.fromkeys(captions)}
            self.cond["text"] = torch.stack([rows[text] for text in captions])
        self.cond |= dict(scalars or {})

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        cond: dict[str, Any] = {
            name: value[index] if value.ndim > 1 else value[index].item() for name, value in self.cond.items()
        }
        return {"x": self._sound(index), "cond": cond, "index": index}

    def batch(self, keys: Sequence[int]) -> dict[str, Any]:
        """Return the items `keys` as one batch."""
        index = torch.tensor(keys)
        cond = {name: value[index] for name, value in self.cond.items()}
        return {"x": self._sound(index), "cond": cond, "index": index}

    def _sound(self, index: int | Tensor) -> Any:
        """Return one sound or several, with their masks where their lengths differ."""
        x = self.samples[index].float() / 32767
        if self.lengths is None:
            return x
        return {"x": x, "mask": torch.arange(x.shape[-1]) < self.lengths[index][..., None]}
