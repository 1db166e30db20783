"""Buckets: clips of several lengths and proportions in batches of one shape each.

A bucket is a shape (frames, height, width). A file goes to a bucket of the longest duration that it fills, there to the
one that crops least of it; one picture goes to a bucket of one frame. Training on pictures and clips together is a set
with both. The order of batches is `suffuse.buckets`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from suffuse.buckets import ASPECTS, BucketStream, fitted, grouped
from suffuse.errors import ConfigError

from suffuse_video.data.decode import Shape, whole
from suffuse_video.files import Head

__all__ = ["BucketStream", "assigned", "automatic", "grouped", "listed", "rows"]


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
    places = dict.fromkeys(fitted(aspect, size) for aspect in ASPECTS)
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
