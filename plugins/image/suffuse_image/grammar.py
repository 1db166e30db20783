"""Grammar: the pictures that can be described in a sentence and rendered from it.

A `Scene` is one of three kinds: one object with its size and place, several alike that are counted, or two with a
relation. Two hold-outs show whether attributes were learned or sentences. Of every shape one colour never occurs in
training, alone, counted or beside another (a new thing of known attributes); and one eighth of the pairs of known
things are never seen together (a new pair of known things).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

__all__ = [
    "COLOURS", "COUNTS", "KINDS", "PLACES", "RELATIONS", "SHAPES", "SIZES", "Scene", "Thing", "by_caption", "new_thing",
    "scenes",
]  # fmt: skip

COLOURS = {
    "red": (0.92, 0.18, 0.18),
    "green": (0.18, 0.75, 0.28),
    "blue": (0.22, 0.40, 1.00),
    "yellow": (0.98, 0.88, 0.18),
    "purple": (0.75, 0.28, 0.85),
    "white": (0.96, 0.96, 0.96),
    "orange": (1.00, 0.53, 0.10),
    "cyan": (0.25, 0.85, 0.90),
}
SHAPES = ("circle", "square", "triangle")
SIZES = ("small", "large")
PLACES = {
    "at the top left": (-1, -1),
    "at the top": (0, -1),
    "at the top right": (1, -1),
    "on the left": (-1, 0),
    "in the middle": (0, 0),
    "on the right": (1, 0),
    "at the bottom left": (-1, 1),
    "at the bottom": (0, 1),
    "at the bottom right": (1, 1),
}
"""Thirds of the picture in x (to the right) and y (downwards)."""
COUNTS = {"two": 2, "three": 3, "four": 4}
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
"""Where the first of two objects lies, seen from the second."""
KINDS = ("one", "several", "pair")

_OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_NEW = {("green", "circle"), ("red", "square"), ("blue", "triangle")}

Thing = tuple[str, str]
"""Colour and shape."""


@dataclass(frozen=True)
class Scene:
    """One combination of attributes.

    Arguments:
        kind: ``one``, ``several`` or ``pair``.
        values: Of one: size, colour, shape, place; of several: count, colour, shape; of a pair: colour, shape,
            relation, colour, shape.
    """

    kind: str
    values: tuple[str, ...]

    NAMES: ClassVar[dict[str, tuple[str, ...]]] = {
        "one": ("size", "colour", "shape", "place"),
        "several": ("count", "colour", "shape"),
        "pair": ("colour", "shape", "relation", "colour", "shape"),
    }

    @property
    def caption(self) -> str:
        """The sentence that describes it."""
        v = self.values
        if self.kind == "one":
            return f"a {v[0]} {v[1]} {v[2]} {v[3]}"
        if self.kind == "several":
            return f"{v[0]} {v[1]} {v[2]}s"
        return f"a {v[0]} {v[1]} {v[2]} a {v[3]} {v[4]}"

    @property
    def captions(self) -> tuple[str, ...]:
        """All sentences that describe it: a pair can be told from either end."""
        if self.kind != "pair":
            return (self.caption,)
        return self.caption, self.turned.caption

    @property
    def turned(self) -> Scene:
        """The same pair, told from its other end."""
        colour, shape, relation, colour2, shape2 = self.values
        return Scene("pair", (colour2, shape2, _OPPOSITE[relation], colour, shape))

    @property
    def things(self) -> tuple[Thing, ...]:
        """Colour and shape of what is in it."""
        v = self.values
        return ((v[0], v[1]), (v[3], v[4])) if self.kind == "pair" else ((v[1], v[2]),)

    @property
    def held_out(self) -> bool:
        """Whether no training item has this combination."""
        if any(new_thing(thing) for thing in self.things):
            return True
        return self.kind == "pair" and _hash(" ".join(sorted(" ".join(thing) for thing in self.things))) < 32


def new_thing(thing: Thing) -> bool:
    """Return whether no training item shows this colour with this shape."""
    return thing in _NEW


@functools.cache
def scenes(kind: str) -> tuple[Scene, ...]:
    """Return every combination of a kind; pairs are of known things, which differ."""
    things = list(itertools.product(COLOURS, SHAPES))
    if kind == "one":
        return tuple(Scene(kind, (s, *thing, p)) for s, thing, p in itertools.product(SIZES, things, PLACES))
    if kind == "several":
        return tuple(Scene(kind, (n, *thing)) for n, thing in itertools.product(COUNTS, things))
    known = [thing for thing in things if not new_thing(thing)]
    pairs = itertools.product(known, RELATIONS, known)
    return tuple(Scene(kind, (*a, relation, *b)) for a, relation, b in pairs if a != b)


@functools.cache
def by_caption() -> dict[str, Scene]:
    """Return every combination by its caption."""
    return {scene.caption: scene for kind in KINDS for scene in scenes(kind)}


def _hash(text: str) -> int:
    return blake2b(text.encode(), digest_size=4).digest()[0]
