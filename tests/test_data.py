"""The stream of positions: every item once per epoch, whatever the batch size, the ranks, or the restarts."""

from __future__ import annotations

from itertools import chain, islice

import pytest
import torch
from suffuse.buckets import BucketStream
from suffuse.data import Data, PositionStream
from suffuse.errors import ConfigError, DataError


def take(stream: PositionStream, batches: int) -> list[int]:
    return list(chain.from_iterable(islice(iter(stream), batches)))


def test_each_item_once_per_epoch_across_batch_borders() -> None:
    seen = take(PositionStream(length=10, batch=4, seed=3), 5)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_order_depends_on_the_seed_alone() -> None:
    assert take(PositionStream(50, 5, seed=1), 10) == take(PositionStream(50, 25, seed=1), 2)
    assert take(PositionStream(50, 5, seed=1), 10) != take(PositionStream(50, 5, seed=2), 10)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(world: int) -> None:
    whole = list(islice(iter(PositionStream(13, 8, seed=0)), 6))
    parts = [list(islice(iter(PositionStream(13, 8 // world, 0, 0, rank, world)), 6)) for rank in range(world)]
    assert [list(chain.from_iterable(step)) for step in zip(*parts, strict=True)] == whole


def test_resuming_on_other_ranks_sees_each_item_once() -> None:
    first = take(PositionStream(12, 6, seed=5), 1)
    rest = [take(PositionStream(12, 3, 5, start=1, rank=rank, world=2), 1) for rank in range(2)]
    assert sorted(first + rest[0] + rest[1]) == list(range(12))


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert sorted(take(PositionStream(3, 7, seed=0), 1)[:6]) == [0, 0, 1, 1, 2, 2]


class Numbers(Data):
    def __init__(self, count: int = 10, **options: int) -> None:
        super().__init__(**options)
        self.count = count

    def setup(self) -> None:
        items = [{"x": torch.tensor([float(i)]), "cond": {}, "index": i} for i in range(self.count)]
        self.train, self.val = items, items[:5]


def test_validation_covers_the_items_once() -> None:
    data = Numbers(batch_size=2)
    data.setup()
    parts = [[i for b in data.val_loader(rank=r, world=2) for i in b["index"].tolist()] for r in range(2)]
    assert parts == [[0, 2, 4], [1, 3]]
    assert [b["index"].tolist() for b in data.val_loader(limit=3)] == [[0, 1], [3]]


def test_a_sample_is_evenly_spaced() -> None:
    data = Numbers(count=10)
    data.setup()
    assert [item["index"] for item in data.sample(4)] == [0, 2, 5, 7]
    assert [item["index"] for item in data.sample()] == list(range(10))
    assert [item["index"] for item in data.sample(2, held_out=True)] == [0, 2]
    data.train = Epochs(10)
    assert data.sample(2) == [(0, 0), (0, 5)]


class Epochs(list):
    epochs = True

    def __init__(self, count: int) -> None:
        super().__init__(range(count))

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


def test_workers_yield_the_same_stream() -> None:
    alone, helped = Numbers(batch_size=4), Numbers(batch_size=4, workers=2)
    for data in (alone, helped):
        data.setup()
    pairs = zip(islice(iter(alone.train_loader(3)), 4), islice(iter(helped.train_loader(3)), 4), strict=True)
    assert all(torch.equal(a["x"], b["x"]) for a, b in pairs)


class Table(list):
    def batch(self, keys: list[int]) -> dict:
        return {"x": torch.tensor([[float(k)] for k in keys]), "cond": {}, "index": torch.tensor(keys)}


def test_whole_batches_are_asked_for_where_they_can_be() -> None:
    plain, whole = Numbers(batch_size=3), Numbers(batch_size=3)
    for data in (plain, whole):
        data.setup()
    whole.train = Table(whole.train)
    for a, b in zip(islice(iter(plain.train_loader()), 5), islice(iter(whole.train_loader()), 5), strict=True):
        assert torch.equal(a["x"], b["x"]) and torch.equal(a["index"], b["index"])


def test_errors_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size=0"):
        Numbers(batch_size=0)
    with pytest.raises(ConfigError, match=r"data\.workers=-1"):
        Numbers(workers=-1)
    empty = Numbers(count=0)
    empty.setup()
    with pytest.raises(DataError, match="the train split of Numbers is empty"):
        empty.check()


@pytest.mark.parametrize("worlds", [(1, 2), (2, 1), (2, 4, 1), (4, 3)])
def test_another_number_of_ranks_sees_each_item_once_per_epoch(worlds: tuple[int, ...]) -> None:
    """Every few steps the run goes on with another number of ranks."""
    data = Data(batch_size=2)
    data.train, seen, past, micro = list(range(23)), [], [], 0
    for world in worlds:
        data.follow(past)
        streams = [iter(data.train_loader(micro, rank, world).batch_sampler) for rank in range(world)]
        for _ in range(5):
            seen += [index for stream in streams for index in next(stream)]
        micro += 5
        past.append((5, world, 2))
    whole = [index for batch in islice(iter(PositionStream(23, 1, data.seed)), len(seen)) for index in batch]
    assert seen == whole
    epochs = [seen[first : first + 23] for first in range(0, len(seen) - 22, 23)]
    assert epochs and all(sorted(epoch) == list(range(23)) for epoch in epochs)


def test_buckets_go_on_with_another_number_of_ranks() -> None:
    bucket, batch = [0] * 12 + [1] * 8, [2, 1]
    seen: dict[int, list[int]] = {0: [], 1: []}
    past: list[tuple[int, int, int]] = []
    for world in (1, 2, 1):
        done = sum(count for count, *_ in past)
        streams = [iter(BucketStream(bucket, batch, 3, done, rank, world, past=past, rows=2)) for rank in range(world)]
        for _ in range(7):
            for items in (next(stream) for stream in streams):
                seen[bucket[items[0]]] += items
        past.append((7, world, 2))
    for k, size in ((0, 12), (1, 8)):
        epochs = [seen[k][first : first + size] for first in range(0, len(seen[k]) - size + 1, size)]
        assert epochs and all(len(set(epoch)) == size for epoch in epochs)
    with pytest.raises(ConfigError, match="this run began with 2"):
        BucketStream(bucket, batch, 3, past=past, rows=4)
