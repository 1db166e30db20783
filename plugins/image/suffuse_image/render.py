"""Render: draws a described picture; what the description leaves open is a function of a seed.

Edges are antialiased: a pixel's share of an object is clamp(1/2 - d) of the signed distance d of its centre from the
outline, in pixels. Objects keep at least `GAP` apart, so that they can be counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from suffuse_image.grammar import COLOURS, COUNTS, PLACES, RELATIONS, Scene

__all__ = ["BACKGROUND", "RADII", "Disc", "drawn", "render"]

_Float = NDArray[np.float64]

BACKGROUND = (0.07, 0.07, 0.12)
RADII = {"small": (0.12, 0.135), "large": (0.18, 0.195), "several": (0.12, 0.14), "pair": (0.16, 0.19)}
"""Least and greatest radius of an object as a share of the picture's side."""
GAP = 0.06
"""Least distance between two objects' boxes, as a share of the side."""
JITTER = 0.03
"""How far an object may be from the middle of its place, as a share of the side."""

Disc = tuple[float, float, float]
"""Centre x, centre y and radius of an object, in sides."""


def render(scene: Scene, seed: int, size: int = 32) -> NDArray[np.float32]:
    """Return the picture, float32 (3, size, size) in [0, 1].

    Arguments:
        scene: What is seen.
        seed: Decides everything that `scene` leaves open.
        size: Side in pixels.
    """
    random = np.random.default_rng([seed, 40_487])
    discs = {"one": _one, "several": _several, "pair": _pair}[scene.kind](scene, random)
    picture = np.broadcast_to(np.array(BACKGROUND)[:, None, None], (3, size, size))
    things = scene.things * len(discs) if scene.kind == "several" else scene.things
    for disc, (colour, shape) in zip(discs, things, strict=True):
        picture = drawn(picture, disc, shape, COLOURS[colour])
    return picture.astype(np.float32)


def drawn(picture: _Float, disc: Disc, shape: str, colour: tuple[float, float, float]) -> _Float:
    """Return a picture (3, size, size) with one object over it."""
    size = picture.shape[-1]
    x, y, radius = (value * size for value in disc)
    line = np.arange(size) + 0.5
    there = np.clip(0.5 - _outline(shape, line[None] - x, line[:, None] - y, radius), 0, 1)
    return np.asarray(picture + (np.array(colour)[:, None, None] - picture) * there)


def _outline(shape: str, dx: _Float, dy: _Float, radius: float) -> _Float:
    """Return signed distances in pixels, negative inside."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    # An upright triangle: below its two slopes, above its base.
    slope = (2 * np.abs(dx) - dy - radius) / 5**0.5
    return np.maximum(slope, dy - radius)


def _one(scene: Scene, random: np.random.Generator) -> list[Disc]:
    across, down = PLACES[scene.values[3]]
    x, y = (0.5 + 0.27 * step + JITTER * random.uniform(-1, 1) for step in (across, down))
    return [(x, y, random.uniform(*RADII[scene.values[0]]))]


def _several(scene: Scene, random: np.random.Generator) -> list[Disc]:
    """Return objects at random places that keep apart; crowded beginnings are given up."""
    while True:
        found: list[Disc] = []
        for _ in range(200):
            radius = random.uniform(*RADII["several"])
            x, y = random.uniform(radius + 0.02, 0.98 - radius, 2)
            if all(max(abs(x - a), abs(y - b)) > radius + r + GAP for a, b, r in found):
                found.append((float(x), float(y), radius))
                if len(found) == COUNTS[scene.values[0]]:
                    return found


def _pair(scene: Scene, random: np.random.Generator) -> list[Disc]:
    """Return two objects, apart along the axis of their relation and about level across it."""
    step = RELATIONS[scene.values[2]]
    a, b = random.uniform(*RADII["pair"], 2)
    near, far = (a, b) if sum(step) < 0 else (b, a)
    apart = random.uniform(near + far + GAP, 0.96 - near - far)
    start = random.uniform(0.02 + near, 0.98 - apart - far)
    along = (start, start + apart) if sum(step) < 0 else (start + apart, start)
    level = random.uniform(0.25, 0.75)
    across = (float(np.clip(level + random.uniform(-0.06, 0.06), 0.03 + r, 0.97 - r)) for r in (a, b))
    places = zip(along, across, strict=True)
    if step[0]:
        return [(u, v, r) for (u, v), r in zip(places, (a, b), strict=True)]
    return [(v, u, r) for (u, v), r in zip(places, (a, b), strict=True)]
