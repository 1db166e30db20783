"""Data: the endless, step-indexed stream of training batches, and the held-out set.

Training reads one infinite stream of positions p = 0, 1, 2, … Epoch e = p // N is a permutation of the N items that
depends on (seed, e) alone, so the item at a position is a pure function of (seed, p). Micro-batch k of a job with
`world` ranks and b items per rank covers the positions [k·b·world, (k+1)·b·world), of which rank r takes the r-th
slice. Nothing has to be saved to continue: a resumed job starts the stream at the micro-batch it had reached, and each
item is seen once per epoch whatever the batch size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from suffuse.errors import ConfigError, DataError

__all__ = ["Data", "PositionStream", "Spec", "spaced"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spec:
    """What the items of a data set carry beside ``x``.

    Arguments:
        labels: Names of the classes in the order of ``cond["label"]``; empty without labels.
        scalars: Names of the float conditions, each a key of ``cond``.
        about: What the modality's own codec, network and preview must know of the data, as plain values; it is kept in
            checkpoints. ``about["classes"]``, where there, is the number of tokens of each categorical field.
    """

    labels: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


class PositionStream(Sampler[list[Any]]):
    """Lists of dataset indices, one list per micro-batch, from micro-batch `start` on and without an end.

    Arguments:
        length: Number of items N.
        batch: Items per rank and micro-batch b.
        seed: Seed of the permutations.
        start: First micro-batch.
        rank: This process.
        world: Number of processes.
        epochs: Yield ``(epoch, index)`` pairs, for data sets that augment by epoch.
        offset: Added to every position: how far the run was beyond where it would have been with this batch and world.
    """

    def __init__(
        self, length: int, batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1, epochs: bool = False,
        offset: int = 0,
    ) -> None:  # fmt: skip
        self.offset = offset
        self.length, self.batch, self.seed, self.start = length, batch, seed, start
        self.rank, self.world, self.epochs = rank, world, epochs
        self._cached: tuple[int, torch.Tensor] | None = None

    def permutation(self, epoch: int) -> torch.Tensor:
        """Return the order of the items in `epoch`, shape (N,)."""
        if self._cached is None or self._cached[0] != epoch:
            # Seeds that differ by one give unrelated permutations only after mixing.
            mixed = (self.seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + 1) % 2**63
            order = torch.randperm(self.length, generator=torch.Generator().manual_seed(mixed))
            self._cached = (epoch, order)
        return self._cached[1]

    def __iter__(self) -> Iterator[list[Any]]:
        step = self.start
        while True:
            first = self.offset + (step * self.world + self.rank) * self.batch
            yield [self._item(position) for position in range(first, first + self.batch)]
            step += 1

    def _item(self, position: int) -> Any:
        epoch, offset = divmod(position, self.length)
        index = int(self.permutation(epoch)[offset])
        return (epoch, index) if self.epochs else index


class _Whole(Dataset[Any]):
    """Lets a loader ask a data set for whole batches."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        return self.dataset[key]

    def __getitems__(self, keys: list[Any]) -> Any:
        return self.dataset.batch(keys)


def _as_it_is(batch: Any) -> Any:
    return batch


def spaced(length: int, limit: int | None = None) -> list[int]:
    """Return at most `limit` indices of `length` items, evenly spaced: sets are often sorted by class."""
    count = length if limit is None else min(limit, length)
    return [i * length // count for i in range(count)]


class Data:
    """Base of a modality's data: two map-style data sets and how they are batched.

    A subclass fills `train`, `val` and `spec` in `setup`. An item is a mapping ``{"x": Tensor, "cond": {name: int |
    float}, "index": int}``; a data set with the attribute ``epochs = True`` is indexed with ``(epoch, index)`` so that
    its augmentation can be a pure function of the two. One with a method ``batch(keys)`` is asked for whole batches,
    which spares tables in memory the cost of one item at a time.

    Arguments:
        batch_size: Items per device and micro-batch.
        workers: Processes that decode; 0 decodes in the training process.
        seed: Seed of the order, of splits and of augmentation.

    Raises:
        ConfigError: When batch_size < 1 or workers < 0.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    spec: Spec = Spec()
    elastic: ClassVar[bool] = True
    """Whether a run may go on with another number of ranks without an item coming twice in an epoch."""

    def __init__(self, batch_size: int = 64, workers: int = 0, seed: int = 0) -> None:
        if batch_size < 1:
            raise ConfigError(f"data.batch_size={batch_size} must be at least 1")
        if workers < 0:
            raise ConfigError(f"data.workers={workers} must be at least 0")
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.past: tuple[tuple[int, int, int], ...] = ()

    def setup(self) -> None:
        """Read whatever `train`, `val` and `spec` need; called once before they are used."""

    def describe(self) -> str:
        """Return what else is worth a line when a run starts; by default nothing."""
        return ""

    def check(self) -> None:
        """Raise `DataError` when a split is empty."""
        for name, split in (("train", self.train), ("val", self.val)):
            if len(split) == 0:  # type: ignore[arg-type]
                raise DataError(f"data: the {name} split of {type(self).__name__} is empty; point it at more items")

    def sample(self, limit: int | None = None, held_out: bool = False) -> list[Any]:
        """Return at most `limit` items of one shape, evenly spaced, for what must be known of all.

        Data whose items differ in shape says here which of them speak for the rest.

        Arguments:
            limit: How many; None for all.
            held_out: Of the held-out set rather than the training set.
        """
        split: Any = self.val if held_out else self.train
        return [split[(0, i) if getattr(split, "epochs", False) else i] for i in spaced(len(split), limit)]

    def follow(self, past: Sequence[tuple[int, int, int]]) -> None:
        """Take note of stretches of the run with another number of ranks, or rows per rank, before `train_loader`.

        The stream goes on at the item after the last that was seen, so that every item is still seen once per epoch.

        Arguments:
            past: Of every such stretch its micro-batches, ranks, and rows per rank and micro-batch, in order.

        """
        self.past = tuple(past) if self.elastic else ()
        if past and not self.elastic:
            _log.warning(
                "the order of this data depends on the number of ranks, which is another now: of the epoch under way "
                "some items come twice and some not at all"
            )

    def train_loader(self, start: int = 0, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return the endless loader of training batches from micro-batch `start` on."""
        epochs = bool(getattr(self.train, "epochs", False))
        stream = PositionStream(
            len(self.train),  # type: ignore[arg-type]
            self.batch_size, self.seed, start, rank, world, epochs,
            sum(count * (ranks * rows - world * self.batch_size) for count, ranks, rows in self.past),
        )  # fmt: skip
        return self._loader(self.train, stream)

    def val_loader(self, limit: int | None = None, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return one pass over this rank's share of `limit` held-out items, evenly spaced, in order."""
        return self._loader(Subset(self.val, spaced(len(self.val), limit)[rank::world]))  # type: ignore[arg-type]

    def _loader(self, dataset: Dataset[Any], batches: PositionStream | None = None) -> DataLoader[Any]:
        how: dict[str, Any] = {"batch_size": self.batch_size} if batches is None else {"batch_sampler": batches}
        if self.workers and batches is not None:
            how |= {"persistent_workers": True, "prefetch_factor": 4}
        if getattr(dataset, "batch", None) is not None:
            dataset, how["collate_fn"] = _Whole(dataset), _as_it_is
        return DataLoader(
            dataset, num_workers=self.workers if batches is not None else 0, pin_memory=torch.cuda.is_available(), **how
        )
