"""Buckets: items of several shapes in batches of one shape each.

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
from torch.utils.data import Sampler

from suffuse.data import PositionStream
from suffuse.errors import ConfigError
from suffuse.noise import mix

__all__ = ["ASPECTS", "BucketStream", "fitted", "grouped"]

ASPECTS = (1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16)
"""Width over height of the buckets that are derived."""


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
        past: Stretches of the run on other numbers of ranks, see `suffuse.data.Data.follow`: every bucket's stream goes
            on where it was. The shuffling of the buckets starts anew after each.

    Raises:
        ConfigError: When the rows of a batch were others in the past: how many each bucket had is not known.
    """

    def __init__(
        self, bucket: Sequence[int], batch: Sequence[int], seed: int, start: int = 0, rank: int = 0, world: int = 1,
        epochs: bool = False, past: Sequence[tuple[int, int, int]] = (), rows: int | None = None,
    ) -> None:  # fmt: skip
        self.passed, self.done = 0, dict.fromkeys(sorted(set(bucket)), 0)
        for number, (count, ranks, then) in enumerate(past):
            if rows is not None and then != rows:
                raise ConfigError(f"data.batch_size={rows}: this run began with {then}, and buckets cannot change it")
            earlier = BucketStream(bucket, batch, seed, world=ranks, past=past[:number])
            self.passed += count
            self.done = earlier.seen(self.passed)
        self.seed, self.start, self.rank, self.world, self.epochs = seed, start, rank, world, epochs
        self.batch = list(batch)
        self.items = {k: [i for i, b in enumerate(bucket) if b == k] for k in sorted(set(bucket))}
        self.streams = {k: PositionStream(len(v), 1, mix(seed, k, 21) % 2**32) for k, v in self.items.items()}
        self._cached: tuple[int, list[tuple[int, int]]] | None = None

    def __iter__(self) -> Iterator[list[Any]]:
        step = self.start
        while True:
            k, number = self.place(step)
            first = self.done[k] + (number * self.world + self.rank) * self.batch[k]
            yield [self._item(k, position) for position in range(first, first + self.batch[k])]
            step += 1

    def place(self, step: int) -> tuple[int, int]:
        """Return the bucket of a micro-batch, and how many batches of that bucket came before, on so many ranks."""
        epoch = self._epoch(step)
        return self._order(epoch)[step - self.passed - self._before(epoch)]

    def seen(self, step: int) -> dict[int, int]:
        """Return how many items of each bucket came before a micro-batch."""
        epoch = self._epoch(step)
        under_way = [k for k, _ in self._order(epoch)[: step - self.passed - self._before(epoch)]]
        batches = {k: self._done(k, epoch) + under_way.count(k) for k in self.items}
        return {k: self.done[k] + n * self.batch[k] * self.world for k, n in batches.items()}

    def _epoch(self, step: int) -> int:
        """Return the epoch of a micro-batch, counted from the last change of the number of ranks."""
        step -= self.passed
        per = sum(len(v) / (self.batch[k] * self.world) for k, v in self.items.items())
        epoch = int(step / per)
        while self._before(epoch + 1) <= step:
            epoch += 1
        while self._before(epoch) > step:
            epoch -= 1
        return epoch

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


def fitted(aspect: float, size: tuple[int, int]) -> tuple[int, int]:
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
