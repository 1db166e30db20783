r"""Render: draws a described clip; what the description leaves open is a function of a seed.

Each object has a lane of its own across the direction of motion and a place on it, and keeps its speed; at the walls it
is reflected: with u = p + v t, its centre is at r + |((u - r + w) mod 2 w) - w| for the free width w = W - 2 r (written
out in `bounced`). Edges are antialiased: a pixel's share of an object is clamp(1/2 - d) of the signed distance d of its
centre from the outline, in pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from suffuse_video.grammar import COLOURS, COUNTS, DIRECTIONS, SPEEDS, Clip

__all__ = ["BACKGROUND", "RADIUS", "bounced", "drawn", "render"]

_Float = NDArray[np.float64]

BACKGROUND = (0.06, 0.06, 0.12)
RADIUS = 0.2
"""Radius of an object as a share of the picture's side."""


def render(clip: Clip, seed: int, frames: int = 8, size: int = 24, start: int = 0) -> NDArray[np.float32]:
    """Return the clip, float32 (3, frames, size, size) in [0, 1].

    Arguments:
        clip: What is seen.
        seed: Decides everything that `clip` leaves open.
        frames: Number of frames.
        size: Side in pixels.
        start: First frame, counted from the clip's beginning, of which the description speaks.
    """
    random = np.random.default_rng([seed, 31_337])
    count, radius = COUNTS[clip["count"]], RADIUS * size
    step = DIRECTIONS[clip["direction"]]
    free = size - 2 * radius
    lanes = _lanes(random, count, radius, size)
    speed = size * SPEEDS[clip["speed"]]
    # The first two steps are free of walls: the direction that the caption names can be seen.
    places = radius + (free - 2.2 * speed) * random.random(count)
    if sum(step) < 0:
        places = size - places
    t = start + np.arange(frames)
    centres = np.empty((count, frames, 2))
    along = 0 if step[0] else 1
    for i in range(count):
        centres[i, :, along] = bounced(places[i] + sum(step) * speed * t, radius, size)
        centres[i, :, 1 - along] = lanes[i]
    return drawn(centres, clip["shape"], COLOURS[clip["colour"]], radius, size)


def drawn(
    centres: _Float, shape: str, colour: tuple[float, float, float], radius: float, size: int
) -> NDArray[np.float32]:
    """Return frames (3, T, size, size) with one shape at centres (count, T, 2) of x and y in pixels."""
    y, x = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5, indexing="ij")
    there = np.zeros((centres.shape[1], size, size))
    for centre in centres:
        dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
        there = np.maximum(there, np.clip(0.5 - _outline(shape, dx, dy, radius), 0, 1))
    back, front = (np.array(c)[:, None, None, None] for c in (BACKGROUND, colour))
    return np.asarray(back + (front - back) * there, dtype=np.float32)


def bounced(u: _Float, radius: float, size: float) -> _Float:
    """Return places between two walls of what would be at `u` without them."""
    free = size - 2 * radius
    return radius + np.abs((u - radius + free) % (2 * free) - free)


def _outline(shape: str, dx: _Float, dy: _Float, radius: float) -> _Float:
    """Return signed distances in pixels, negative inside."""
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius
    if shape == "disc":  # not of the grammar: what a shape without corners would be
        return np.hypot(dx, dy) - radius
    if shape == "diamond":
        return (np.abs(dx) + np.abs(dy) - radius) / 2**0.5
    # An upright triangle: below its two slopes, above its base.
    slope = (2 * np.abs(dx) - dy - radius) / 5**0.5
    return np.maximum(slope, dy - radius)


def _lanes(random: np.random.Generator, count: int, radius: float, size: int) -> list[float]:
    """Return places across the motion that keep objects apart."""
    apart = 2 * radius + 1.5
    slack = size - 2 * radius - (count - 1) * apart
    cuts = np.sort(random.random(count)) * slack
    return [float(radius + cuts[i] + i * apart) for i in range(count)]
