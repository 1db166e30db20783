"""Grammar: the clips that can be described in a sentence and rendered from it.

A `Clip` is one combination of attributes (count, colour, shape, direction, speed) and `caption` its sentence.
Combinations whose caption's hash falls into one eighth are held out: no training item has them, so that samples for
them show whether attributes were learned or sentences.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from hashlib import blake2b

__all__ = ["COLOURS", "COUNTS", "DIRECTIONS", "SHAPES", "SPEEDS", "Clip", "by_caption", "clips", "held_out"]

COUNTS = {"one": 1, "two": 2}
COLOURS = {
    "red": (0.93, 0.20, 0.20),
    "green": (0.20, 0.80, 0.30),
    "blue": (0.25, 0.45, 1.00),
    "yellow": (0.98, 0.85, 0.20),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("square", "triangle", "diamond")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Steps in x (to the right) and y (downwards)."""
SPEEDS = {"slowly": 0.05, "quickly": 0.10}
"""Picture sides per frame."""


@dataclass(frozen=True)
class Clip:
    """One combination of attributes.

    Arguments:
        values: Count, colour, shape, direction in which they move at first, and speed.
    """

    values: tuple[str, str, str, str, str]

    NAMES = ("count", "colour", "shape", "direction", "speed")

    def __getitem__(self, name: str) -> str:
        return self.values[self.NAMES.index(name)]

    @property
    def caption(self) -> str:
        """The sentence that describes it."""
        count, colour, shape, direction, speed = self.values
        return f"{count} {colour} {shape}{'s' * (COUNTS[count] > 1)} moving {direction} {speed}"


@functools.cache
def clips() -> tuple[Clip, ...]:
    """Return every combination."""
    return tuple(Clip(values) for values in itertools.product(COUNTS, COLOURS, SHAPES, DIRECTIONS, SPEEDS))


@functools.cache
def by_caption() -> dict[str, Clip]:
    """Return every combination by its caption."""
    return {clip.caption: clip for clip in clips()}


def held_out(clip: Clip) -> bool:
    """Return whether no training item has this combination."""
    return blake2b(clip.caption.encode(), digest_size=4).digest()[0] < 32
