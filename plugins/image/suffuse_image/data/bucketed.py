"""Bucketed: pictures of several proportions, each in the bucket (height, width) that crops least of it.

Training batches are of one bucket each, in the order of `suffuse.buckets`, so a network sees whole pictures of every
proportion instead of their middles ("SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis",
Podell et al. 2023, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suffuse.buckets import ASPECTS, BucketStream, fitted, grouped
from suffuse.data import spaced
from suffuse.errors import ConfigError
from torch.utils.data import DataLoader, Dataset

from suffuse_image.data.pictures import Pictures

__all__ = ["Bucketed", "Shape", "assigned", "automatic", "listed", "loaders"]

Shape = tuple[int, int]
"""Height and width."""


class Bucketed(Dataset[dict[str, Any]]):
    """The pictures of several buckets as one set.

    Arguments:
        parts: The pictures of each bucket; none is empty.
        shapes: Their shapes.
        main: The shape that speaks for the rest; by default that of most pictures.
    """

    def __init__(self, parts: Sequence[Pictures], shapes: Sequence[Shape], main: Shape | None = None) -> None:
        self.parts, self.buckets = list(parts), list(shapes)
        self.bucket = [k for k, part in enumerate(parts) for _ in range(len(part))]
        self._first = [sum(len(part) for part in parts[:k]) for k in range(len(parts))]
        self.epochs = any(part.epochs for part in parts)
        self.still = all(part.still for part in parts)
        self.shape = main or self.buckets[max(range(len(parts)), key=lambda k: len(parts[k]))]
        self.main = [i for i, k in enumerate(self.bucket) if self.buckets[k] == self.shape]

    def __len__(self) -> int:
        return len(self.bucket)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key if isinstance(key, int) else key[1]
        k = self.bucket[index]
        own = index - self._first[k]
        return {**self.parts[k][own if isinstance(key, int) else (key[0], own)], "index": index}

    def caption(self, index: int) -> str:
        """Return the first caption of an item."""
        texts = self.parts[self.bucket[index]].texts
        return "" if texts is None else texts.chosen(index - self._first[self.bucket[index]])


def listed(value: Any) -> list[Shape] | None:
    """Return the buckets of a list [[height, width], …], or None for ``auto``.

    Raises:
        ConfigError: When it is neither.
    """
    if value == "auto":
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ConfigError(f"data.buckets={value} must be a list [[height, width], …], auto or null")
    found: list[Shape] = []
    for row in value:
        sides = list(row) if isinstance(row, Sequence) and not isinstance(row, str) else []
        if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
            raise ConfigError(f"data.buckets: {row} is no bucket; write [height, width]")
        found.append((sides[0], sides[1]))
    return list(dict.fromkeys(found))


def assigned(size: Shape, shapes: Sequence[Shape]) -> int:
    """Return the number of the bucket that crops least of a picture; of equals the largest that need not enlarge it."""

    def merit(number: int) -> tuple[float, bool, int]:
        height, width = shapes[number]
        ratio = (width / height) / (size[1] / size[0])
        larger = height > size[0] or width > size[1]
        return round(min(ratio, 1 / ratio), 4), not larger, -height * width if larger else height * width

    return max(range(len(shapes)), key=merit)


def automatic(sizes: Sequence[Shape], size: Shape, batch: int) -> list[Shape]:
    """Return buckets of up to five proportions with at most as many pixels as `size`; small ones are left out.

    Arguments:
        sizes: Of the pictures.
        size: Height and width whose product is the most pixels.
        batch: Buckets of fewer pictures are left out.
    """
    shapes = list(dict.fromkeys(fitted(aspect, size) for aspect in ASPECTS))
    while True:
        numbers = [assigned(own, shapes) for own in sizes]
        uses = [numbers.count(k) for k in range(len(shapes))]
        small = [k for k, n in enumerate(uses) if n < batch]
        if not small or len(shapes) == 1:
            return shapes
        del shapes[min(small, key=lambda k: (uses[k], k))]


def loaders(data: Any, split: Bucketed, kind: str, *how: Any) -> DataLoader[Any]:
    """Return a loader of batches of one bucket each.

    Arguments:
        data: The data, with ``batch_size``, ``seed`` and ``_loader``.
        split: Its split.
        kind: ``train``: endless, for (start, rank, world); ``val``: one pass, for (limit, rank, world).
        how: See `kind`.
    """
    sizes = [data.batch_size] * len(split.parts)
    if kind == "train":
        start, rank, world = how
        where = (data.seed, start, rank, world, split.epochs)
        stream = BucketStream(split.bucket, sizes, *where, data.past, data.batch_size)
        found: DataLoader[Any] = data._loader(split, stream)
        return found
    limit, rank, world = how
    rows = spaced(len(split), limit)[rank::world]
    return DataLoader(split, batch_sampler=grouped(rows, split.bucket, sizes))
