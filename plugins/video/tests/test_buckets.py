"""Buckets: which shape a file goes to, and the order of batches of several shapes."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest
from suffuse.errors import ConfigError
from suffuse_video.data.buckets import BucketStream, assigned, automatic, grouped, listed, rows
from suffuse_video.data.decode import Shape
from suffuse_video.files import Head


def head(frames: int, height: int = 64, width: int = 64, fps: float = 8.0) -> Head:
    return Head(frames, fps, height, width, frames / fps if fps else 0.0)


# Which bucket.


def chosen(found: Head, shapes: list[Shape]) -> Shape | None:
    number = assigned(found, found.frames, shapes)
    return None if number is None else shapes[number]


def test_the_longest_duration_that_is_filled():
    shapes = [Shape(n, 64, 64) for n in (4, 16, 8)]
    assert [chosen(head(n), shapes).frames for n in (3, 4, 7, 8, 15, 16, 99)] == [4, 4, 4, 8, 8, 16, 16]


def test_the_least_cropping_of_that_duration():
    shapes = [Shape(8, *place) for place in ((64, 64), (48, 80), (80, 48))] + [Shape(4, 36, 64)]
    for size, wanted in (
        ((64, 64), (64, 64)),
        ((1080, 1920), (48, 80)),
        ((640, 360), (80, 48)),
        ((480, 600), (64, 64)),
    ):
        assert chosen(head(20, *size), shapes)[1:] == wanted
    # The duration comes before the proportions.
    assert chosen(head(5, 1080, 1920), shapes) == Shape(4, 36, 64)


def test_the_largest_size_that_is_not_enlarged():
    shapes = [Shape(8, n, n) for n in (32, 64, 128)]
    assert [chosen(head(8, n, n), shapes).height for n in (16, 32, 63, 64, 127, 1000)] == [32, 32, 32, 64, 64, 128]


def test_pictures():
    picture = Head(1, 0.0, 64, 64, 0.0)
    assert chosen(picture, [Shape(8, 64, 64), Shape(1, 64, 64)]) == Shape(1, 64, 64)
    assert chosen(picture, [Shape(8, 64, 64)]) is None
    # A video of one frame is lengthened where nothing shorter is.
    assert chosen(head(1), [Shape(8, 64, 64), Shape(4, 64, 64)]) == Shape(4, 64, 64)


def test_lists():
    assert listed([[8, 64, 48], [1, 32, 32], [8, 64, 48]]) == [(8, 64, 48), (1, 32, 32)]
    for value, said in (("8", "must be a list"), ([], "must be a list"), ([8, 64, 64], "8 is no bucket"),
                        ([[8, 64]], "write .frames, height, width."), ([[8, 0, 4]], "data.buckets=0")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            listed(value)


# Derived buckets.


def test_derived_buckets():
    heads = [head(n, *size) for size in ((360, 640), (640, 360), (64, 64)) for n in (4, 9, 40) for _ in range(5)]
    found = automatic(heads, [h.frames for h in heads], 16, (64, 64), 4)
    assert {s.frames for s in found} == {16, 8, 4} and len(found) == 9
    for shape in found:
        assert shape.height * shape.width <= 64 * 64 and shape.height % 16 == shape.width % 16 == 0
        assert shape.height * shape.width >= 0.8 * 64 * 64
    assert (found[0].frames, found[-1].frames) == (16, 4)
    # Odd durations stay odd, as codecs with a first frame of its own want them.
    assert {s.frames for s in automatic(heads, [h.frames + 1 for h in heads], 17, (64, 64), 1)} == {17, 9, 5}


def test_a_bucket_needs_a_batch_of_files():
    heads = [head(40, 64, 64)] * 20 + [head(40, 360, 640)] * 3 + [head(9, 64, 64)] * 3
    found = automatic(heads, [h.frames for h in heads], 16, (64, 64), 8)
    assert found == [Shape(16, 64, 64)]
    assert len(automatic(heads, [h.frames for h in heads], 16, (64, 64), 3)) == 3
    pictures = [Head(1, 0.0, 64, 64, 0.0)] * 2
    both = automatic(heads + pictures, [h.frames for h in heads + pictures], 16, (64, 64), 8)
    assert both == [Shape(16, 64, 64), Shape(1, 64, 64)]  # the only one for pictures stays


@pytest.mark.parametrize(("size", "wide"), [((64, 64), (48, 80)), ((24, 24), (16, 32)), ((256, 256), (192, 336))])
def test_derived_proportions(size: tuple[int, int], wide: tuple[int, int]):
    heads = [head(40, 1080, 1920)] * 4
    assert automatic(heads, [40] * 4, 16, size, 1) == [Shape(16, *wide)]


def test_rows():
    shapes = [Shape(16, 64, 64), Shape(8, 64, 64), Shape(1, 64, 64)]
    assert rows(shapes, [100, 100, 1000], 4, False) == [4, 4, 4]
    assert rows(shapes, [100, 100, 1000], 4, True) == [4, 8, 64]
    assert rows(shapes, [100, 6, 3], 4, True) == [4, 6, 4]  # no more than there are, but a batch


def test_grouped():
    bucket = [0, 1, 0, 1, 1, 0, 0]
    assert grouped([6, 5, 4, 3, 2, 1, 0], bucket, [2, 3]) == [[6, 5], [2, 0], [4, 3, 1]]


# The order.

BUCKET = [0] * 23 + [1] * 9 + [2] * 2 + [0] * 6
BATCH = [4, 2, 3]


def stream(**how: int | bool) -> BucketStream:
    return BucketStream(**({"bucket": BUCKET, "batch": BATCH, "seed": 5} | how))


def take(count: int, **how: int | bool) -> list[list]:
    return list(islice(iter(stream(**how)), count))


def test_every_batch_is_of_one_bucket():
    for batch in take(200):
        kinds = {BUCKET[i] for i in batch}
        assert len(kinds) == 1 and len(batch) == BATCH[kinds.pop()]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_coverage(world: int):
    """Within a bucket each item is seen once before any is seen again; the rest of an epoch is carried over."""
    steps = [list(islice(iter(stream(rank=r, world=world)), 300)) for r in range(world)]
    order: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in zip(*steps, strict=True):
        whole = [i for part in step for i in part]
        assert len({BUCKET[i] for i in whole}) == 1  # all ranks take the same bucket
        order[BUCKET[whole[0]]] += whole
    for k, seen in order.items():
        size = BUCKET.count(k)
        assert len(seen) > 5 * size
        for first in range(0, len(seen) - size + 1, size):
            assert len(set(seen[first : first + size])) == size
    # Over all, every item is seen equally often, up to a batch of its bucket.
    counts = Counter(i for seen in order.values() for i in seen)
    mean = sum(counts.values()) / len(BUCKET)
    for i, n in counts.items():
        assert abs(n - mean) <= 1 + (BATCH[BUCKET[i]] * world) / BUCKET.count(BUCKET[i])


def test_an_epoch_has_every_bucket_in_proportion():
    found = Counter(BUCKET[batch[0]] for batch in take(10 * (29 + 18 + 3)))
    total = sum(found.values())
    shares = [29 / 4, 9 / 2, 2 / 3]
    for k, share in enumerate(shares):
        assert found[k] == pytest.approx(total * share / sum(shares), abs=2)
    # Buckets take turns at random, not one after another.
    kinds = [BUCKET[batch[0]] for batch in take(60)]
    assert sum(a != b for a, b in pairwise(kinds)) > 15


def test_determinism():
    assert take(40) == take(40) and take(40) != take(40, seed=6)
    assert [len(b) for b in take(40)] != [len(b) for b in take(40, seed=6)]


@pytest.mark.parametrize("world", [1, 2])
def test_a_resumed_stream_goes_on(world: int):
    for rank in range(world):
        whole = take(80, rank=rank, world=world, epochs=True)
        for start in range(70):
            assert take(3, start=start, rank=rank, world=world, epochs=True) == whole[start : start + 3]
    assert take(2, start=10**6) == take(2, start=10**6)


def test_ranks_are_disjoint_shares_of_one_batch():
    one = take(40, batch=[8, 4, 6])
    parts = [take(40, rank=rank, world=2) for rank in range(2)]
    # Two ranks with half the batch see the very same batches.
    assert [a + b for a, b in zip(*parts, strict=True)] == one
    # Only where one epoch of a bucket ends and the next begins may an item come twice in a batch.
    pairs = zip(*[take(40, rank=rank, world=2, epochs=True) for rank in range(2)], strict=True)
    assert all(not set(a) & set(b) for a, b in pairs)


def test_epochs_are_those_of_the_bucket():
    seen: dict[int, Counter[int]] = {}
    for batch in take(120, epochs=True):
        for epoch, index in batch:
            counts = seen.setdefault(index, Counter())
            assert counts[epoch] == 0 and epoch == sum(counts.values())
            counts[epoch] += 1


def test_a_set_smaller_than_a_batch():
    small = BucketStream([0, 0, 1], [8, 8], 0)
    found = list(islice(iter(small), 9))
    # Two of three items are in bucket 0, so two of three batches are.
    assert Counter(0 if batch[0] < 2 else 1 for batch in found) == {0: 6, 1: 3}
    assert all(len(batch) == 8 for batch in found)
