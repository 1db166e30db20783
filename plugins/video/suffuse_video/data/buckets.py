"""Buckets: clips of several lengths and proportions in batches of one shape each.

A bucket is a shape (frames, height, width). A file goes to a bucket of the longest duration that it fills, there to the
one that crops least of it; one picture goes to a bucket of one frame. Training on pictures and clips together is a set
with both.

Order. Bucket k has N_k items and batches of B_k over all ranks. Its batches are consecutive runs of its own endless
stream of positions, as in `suffuse.data`: each item is seen once before any is seen again, and the rest of an epoch
that fills no batch opens the bucket's next one. Epoch e of the whole has floor((e + 1) N_k / B_k) - floor(e N_k / B_k)
batches of every bucket, shuffled; batch number s of the run is therefore a function of (seed, s) alone, all ranks take
the same bucket in the same step, and every item is seen equally often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from suffuse.data import PositionStream
from suffuse.errors import ConfigError
from suffuse.noise import mix
from torch.utils.data import Sampler

from suffuse_video.data.decode import Shape, whole
from suffuse_video.files import Head

__all__ = ["BucketStream", "assigned", "automatic", "grouped", "listed", "rows"]

ASPECTS = (1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16)
"""Width over height of the buckets that are derived."""


def listed(value: Any) -> list[Shape]:
    """Return the buckets of a list [[frames, height, width], …].

    Raises:
        ConfigError: When it is no such list.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ConfigError(f"data.buckets={value} must be a list [[frames, height, width], …], auto or null")
    found = []
    for row in value:
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 3:
            raise ConfigError(f"data.buckets: {row} is no bucket; write [frames, height, width]")
        found.append(Shape(*(whole(number, "data.buckets") for number in row)))
    return list(dict.fromkeys(found))


def assigned(head: Head, count: int, shapes: Sequence[Shape]) -> int | None:
    """Return the number of the bucket that a file belongs to, or None for a picture without a bucket.

    Arguments:
        head: Of the file.
        count: Its frames at the rate of the data.
        shapes: The buckets.
    """
    allowed = [s for s in shapes if s.frames <= count]
    if head.still and not allowed:
        return None
    # What fills no bucket is lengthened as little as can be.
    frames = max(s.frames for s in allowed) if allowed else min(s.frames for s in shapes)

    def merit(number: int) -> tuple[float, bool, int]:
        shape = shapes[number]
        ratio = (shape.width / shape.height) / (head.width / head.height)
        enlarged = shape.height > head.height or shape.width > head.width
        # Of equal proportions the largest that need not be enlarged.
        return round(min(ratio, 1 / ratio), 4), not enlarged, -shape.cost if enlarged else shape.cost

    return max((k for k, s in enumerate(shapes) if s.frames == frames), key=merit)


def automatic(
    heads: Sequence[Head], counts: Sequence[int], frames: int, size: tuple[int, int], batch: int
) -> list[Shape]:
    """Return a few buckets for files: `frames` and halves of it, in five proportions no larger than `size`.

    Buckets that fewer files than a batch would go to are left out, unless they are the only ones for pictures or clips.

    Arguments:
        heads: Of the files.
        counts: Frames of each at the rate of the data.
        frames: Longest duration.
        size: Height and width whose product is the most pixels of a frame.
        batch: See above.
    """
    durations = {1} if any(head.still for head in heads) else set()
    for halvings in range(3):
        # Codecs that keep the first frame apart want 4 n + 1 frames: what is odd stays so.
        duration = 1 + (frames - 1) // 2**halvings if frames % 2 else frames // 2**halvings
        durations |= {duration} if duration > 1 or frames == 1 else set()
    places = dict.fromkeys(_place(aspect, size) for aspect in ASPECTS)
    shapes = [Shape(duration, *place) for duration in sorted(durations, reverse=True) for place in places]
    while True:
        numbers = [assigned(head, count, shapes) for head, count in zip(heads, counts, strict=True)]
        uses = [numbers.count(k) for k in range(len(shapes))]
        shapes, uses = [s for s, n in zip(shapes, uses, strict=True) if n], [n for n in uses if n]
        alone = [sum((s.frames == 1) == (t.frames == 1) for t in shapes) == 1 for s in shapes]
        small = [k for k, n in enumerate(uses) if n < batch and not alone[k]]
        if not small:
            return sorted(shapes, key=lambda s: (-s.frames, s.height))
        del shapes[min(small, key=lambda k: (uses[k], k))]


def rows(shapes: Sequence[Shape], sizes: Sequence[int], batch: int, scale: bool) -> list[int]:
    """Return the clips of a batch of each bucket, per rank.

    Arguments:
        shapes: The buckets.
        sizes: Items of each.
        batch: Clips of a batch of the most costly bucket.
        scale: Make batches of others larger, so that all cost about the same, but no larger than the bucket.
    """
    most = max(shape.cost for shape in shapes)
    if not scale:
        return [batch] * len(shapes)
    return [max(batch, min(batch * most // s.cost, n)) for s, n in zip(shapes, sizes, strict=True)]


def grouped(order: Sequence[int], bucket: Sequence[int], batch: Sequence[int]) -> list[list[int]]:
    """Return items in batches of one bucket each, in their order within a bucket."""
    found = []
    for k in sorted(set(bucket)):
        mine = [i for i in order if bucket[i] == k]
        found += [mine[first : first + batch[k]] for first in range(0, len(mine), batch[k])]
    return found


class BucketStream(Sampler[list[Any]]):
    """Lists of data set indices, one list per micro-batch, from micro-batch `start` on and without an end.

    Arguments:
        bucket: Number of the bucket of each item.
        batch: Items of a batch of each bucket, per rank.
        seed: Seed of the order.
        start: First micro-batch.
        rank: This process.
        world: Number of processes.
        epochs: Yield ``(epoch, index)`` pairs; the epoch is that of the item's bucket.
    """

    def __init__(
        self, bucket: Sequence[int], batch: Sequence[int], seed: int, start: int = 0, rank: int = 0, world: int = 1,
        epochs: bool = False,
    ) -> None:  # fmt: skip
        self.seed, self.start, self.rank, self.world, self.epochs = seed, start, rank, world, epochs
        self.batch = list(batch)
        self.items = {k: [i for i, b in enumerate(bucket) if b == k] for k in sorted(set(bucket))}
        self.streams = {k: PositionStream(len(v), 1, mix(seed, k, 21) % 2**32) for k, v in self.items.items()}
        self._cached: tuple[int, list[tuple[int, int]]] | None = None

    def __iter__(self) -> Iterator[list[Any]]:
        step = self.start
        while True:
            k, number = self.place(step)
            first = (number * self.world + self.rank) * self.batch[k]
            yield [self._item(k, position) for position in range(first, first + self.batch[k])]
            step += 1

    def place(self, step: int) -> tuple[int, int]:
        """Return the bucket of a micro-batch, and how many batches of that bucket came before."""
        per = sum(len(v) / (self.batch[k] * self.world) for k, v in self.items.items())
        epoch = int(step / per)
        while self._before(epoch + 1) <= step:
            epoch += 1
        while self._before(epoch) > step:
            epoch -= 1
        return self._order(epoch)[step - self._before(epoch)]

    def _done(self, k: int, epoch: int) -> int:
        """Return the batches of a bucket before an epoch of the whole."""
        return epoch * len(self.items[k]) // (self.batch[k] * self.world)

    def _before(self, epoch: int) -> int:
        return sum(self._done(k, epoch) for k in self.items)

    def _order(self, epoch: int) -> list[tuple[int, int]]:
        """Return bucket and number of the batches of an epoch."""
        if self._cached is None or self._cached[0] != epoch:
            kinds = [k for k in self.items for _ in range(self._done(k, epoch + 1) - self._done(k, epoch))]
            generator = torch.Generator().manual_seed(mix(self.seed, epoch, 22))
            following, found = {k: self._done(k, epoch) for k in self.items}, []
            for place in torch.randperm(len(kinds), generator=generator).tolist():
                k = kinds[place]
                found.append((k, following[k]))
                following[k] += 1
            self._cached = (epoch, found)
        return self._cached[1]

    def _item(self, k: int, position: int) -> Any:
        epoch, offset = divmod(position, len(self.items[k]))
        index = self.items[k][int(self.streams[k].permutation(epoch)[offset])]
        return (epoch, index) if self.epochs else index


def _place(aspect: float, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of about a proportion with at most as many pixels as `size`.

    Sides are multiples of what divides both sides of `size` and 16, so that a network that takes one takes the other.
    """
    step, budget = math.gcd(size[0], size[1], 16), size[0] * size[1]
    best, least = size, math.inf
    for height in range(step, 4 * math.isqrt(budget) + 1, step):
        wide = min(height * aspect, budget / height)
        for width in {int(wide) // step * step, -int(-wide // step) * step}:
            if width >= step and height * width <= budget:
                # Half a per cent of proportion is worth as much as one of area.
                error = 2 * abs(math.log(width / height / aspect)) + math.log(budget / (height * width))
                if error < least - 1e-9:
                    best, least = (height, width), error
    return best
