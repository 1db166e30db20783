"""Look: reads what a described picture shows back from its pixels, by analysis alone, with no network.

Objects are the connected parts that stand out from the background. The shape of each is the one that, drawn in its
place and colour at the radius that its area says, comes closest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from suffuse_image.grammar import COLOURS, COUNTS, PLACES, RELATIONS, SHAPES, Scene
from suffuse_image.render import BACKGROUND, RADII, drawn

__all__ = ["Seen", "look"]

_Float = NDArray[np.float64]
_WORDS = {number: word for word, number in COUNTS.items()}
# Area of a shape of radius 1, and how far below the middle of its box its centre of mass lies.
_AREA = {"circle": np.pi, "square": 3.24, "triangle": 2.0}
_SINK = {"circle": 0.0, "square": 0.0, "triangle": 1 / 3}


@dataclass(frozen=True)
class _Object:
    x: float
    y: float
    radius: float
    colour: str
    shape: str
    error: float


@dataclass(frozen=True)
class Seen:
    """What was seen.

    Arguments:
        objects: Number of objects.
        values: As in `Scene`, of a picture of the kind that was asked for; empty words for what cannot be read.
        error: Root mean square difference of the objects' surroundings to clean drawings of them, the worst.
        grain: Standard deviation of the background.
    """

    objects: int
    values: tuple[str, ...]
    error: float
    grain: float


def look(picture: NDArray[np.floating[Any]], kind: str) -> Seen:
    """Return what is seen in a square picture (3, size, size) in [0, 1], as a scene of the kind ``kind`` is told."""
    x: _Float = np.nan_to_num(np.asarray(picture, dtype=np.float64))
    away = np.abs(x - np.array(BACKGROUND)[:, None, None]).max(0)
    mask = away > 0.25
    found = _objects(x, mask)
    # What is two pixels from every object is background.
    near = ndimage.binary_dilation(mask, np.ones((5, 5)))
    rest = (x - np.array(BACKGROUND)[:, None, None])[:, ~near]
    grain = float(rest.std()) if rest.size else 1.0
    error = max((thing.error for thing in found), default=1.0)
    return Seen(len(found), _told(found, kind), error, grain)


def _told(found: list[_Object], kind: str) -> tuple[str, ...]:
    """Return the values of a scene of this kind."""
    if kind == "one" and len(found) == 1:
        (thing,) = found
        bound = (RADII["small"][1] + RADII["large"][0]) / 2
        return "large" if thing.radius > bound else "small", thing.colour, thing.shape, _place(thing)
    if kind == "several" and len(found) in _WORDS:
        colours, shapes = {thing.colour for thing in found}, {thing.shape for thing in found}
        return _WORDS[len(found)], *(words.pop() if len(words) == 1 else "mixed" for words in (colours, shapes))
    if kind == "pair" and len(found) == 2:
        # Which of the two is the first is the caption's to say: the scene is told from the one at the top, or left.
        a, b = found
        return a.colour, a.shape, _relation(a, b), b.colour, b.shape
    return ("",) * len(Scene.NAMES[kind])


def _objects(x: _Float, mask: NDArray[np.bool_]) -> list[_Object]:
    """Return what the connected parts of a picture are, without specks."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    found = [labels == i for i in range(1, count + 1)]
    return [_object(x, inside) for inside in found if inside.sum() >= 6]


def _object(x: _Float, inside: NDArray[np.bool_]) -> _Object:
    size = x.shape[-1]
    back = np.array(BACKGROUND)
    core = ndimage.binary_erosion(inside)
    mean = x[:, core if core.sum() >= 4 else inside].mean(1)
    colour = min(COLOURS, key=lambda name: float(np.abs(mean - np.array(COLOURS[name])).sum()))
    fits = np.abs(mean - np.array(COLOURS[colour])).max() < 0.2
    # Shares of pixels that the object covers, also of those at its rim.
    rim = ndimage.binary_dilation(inside, np.ones((3, 3)))
    span = mean - back
    share = np.clip(np.einsum("c,chw->hw", span, x - back[:, None, None]) / max(float(span @ span), 1e-9), 0, 1) * rim
    area = float(share.sum())
    cy, cx = (float(v) + 0.5 for v in ndimage.center_of_mass(share))
    wide = ndimage.binary_dilation(inside, np.ones((5, 5)))
    clean = np.broadcast_to(back[:, None, None], x.shape)
    best: tuple[float, str, float, float] | None = None
    for shape in SHAPES:
        radius = (area / _AREA[shape]) ** 0.5
        y = cy - _SINK[shape] * radius
        guess = drawn(clean, (cx / size, y / size, radius / size), shape, (mean[0], mean[1], mean[2]))
        error = float(np.square(x - guess)[:, wide].mean() ** 0.5)
        if best is None or error < best[0]:
            best = (error, shape, radius / size, y / size)
    assert best is not None
    return _Object(cx / size, best[3], best[2], colour if fits else "mixed", best[1], best[0])


def _place(thing: _Object) -> str:
    steps = tuple(int(np.clip(np.floor(3 * v), 0, 2)) - 1 for v in (thing.x, thing.y))
    return next(name for name, step in PLACES.items() if step == steps)


def _relation(a: _Object, b: _Object) -> str:
    """Return where a lies, seen from b: along the axis on which they are farther apart, by twice as much."""
    dx, dy = a.x - b.x, a.y - b.y
    if max(abs(dx), abs(dy)) < 2 * min(abs(dx), abs(dy)):
        return "mixed"
    step = (int(np.sign(dx)), 0) if abs(dx) > abs(dy) else (0, int(np.sign(dy)))
    return next((name for name, where in RELATIONS.items() if where == step), "mixed")
