"""Auto: whichever figures the data allows."""

from __future__ import annotations

from collections.abc import Mapping

from suffuse.data import Data
from suffuse.text import captions_of
from torch import Tensor

from suffuse_shapes.grammar import parse
from suffuse_shapes.metrics.attributes import Attributes
from suffuse_shapes.metrics.likeness import Likeness

__all__ = ["Auto"]


class Auto:
    """`Attributes` for the embedded set's captions, `Likeness` to held-out clouds for other data.

    Arguments:
        distance: See `Likeness`.
        limit: See `Likeness`.
        points: See `Likeness`.
        seed: Seed of `Attributes`.
    """

    def __init__(self, distance: str = "chamfer", limit: int = 200, points: int = 2048, seed: int = 0) -> None:
        self.attributes, self.likeness = Attributes(seed=seed), Likeness(distance, limit, points)

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of clouds (K, C, N) drawn for the conditions `cond`."""
        if "text" in cond and any(parse(caption) is not None for caption in captions_of(cond["text"])):
            return self.attributes(samples, cond, data)
        return self.likeness(samples, cond, data) if len(samples) > 1 else {}
