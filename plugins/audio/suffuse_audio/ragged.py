"""Ragged: sounds of lengths of their own in one batch.

``{"x": (B, C, N), "mask": (B, N)}``, one item without the B: what follows the end of a sound is zero, and false in the
mask. Where all have one length, a batch is the tensor alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["alone", "clips", "each", "item", "quantiles", "together"]


def item(x: Tensor, samples: int) -> dict[str, Tensor]:
    """Return a sound (C, n), cut or followed by silence to `samples`, and its mask."""
    x = x[:, :samples]
    mask = torch.arange(samples) < x.shape[1]
    return {"x": torch.nn.functional.pad(x, (0, samples - x.shape[1])), "mask": mask}


def alone(x: Any) -> Tensor:
    """Return one sound (C, n) at its own length."""
    if not isinstance(x, Mapping):
        return x  # type: ignore[no-any-return]
    sound: Tensor = x["x"][:, : int(x["mask"].bool().sum())]
    return sound


def each(xs: Any) -> list[Tensor]:
    """Return the sounds of a batch, each (C, n) at its own length."""
    if not isinstance(xs, Mapping):
        return list(xs)
    return [x[:, :n] for x, n in zip(xs["x"], xs["mask"].bool().sum(1).tolist(), strict=True)]


def together(xs: Any, samples: int) -> Tensor:
    """Return the sounds of a batch (B, C, samples), cut or followed by silence where their lengths differ."""
    if not isinstance(xs, Mapping):
        return xs  # type: ignore[no-any-return]
    x: Tensor = (xs["x"] * xs["mask"].bool()[:, None])[..., :samples]
    return torch.nn.functional.pad(x, (0, samples - x.shape[-1]))


def clips(xs: Mapping[str, Tensor], samples: int) -> Tensor:
    """Return what the sounds of a batch hold one after another, in clips (K, C, samples) that nothing is missing of."""
    joined = torch.cat(each(xs), -1)
    count = max(1, joined.shape[-1] // samples)
    if joined.shape[-1] < samples:
        joined = joined.repeat(1, -(-samples // max(joined.shape[-1], 1)))
    return joined[:, : count * samples].unflatten(1, (count, samples)).transpose(0, 1)


def quantiles(lengths: Sequence[int], most: int = 33) -> list[int]:
    """Return at most `most` of the lengths, evenly spaced in their order with the least and the greatest."""
    order = sorted(lengths)
    count = min(most, len(order))
    return [order[round(i * (len(order) - 1) / max(count - 1, 1))] for i in range(count)]
