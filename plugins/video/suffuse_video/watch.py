"""Watch: reads the attributes of a described clip back from its pixels, by analysis alone, with no network.

Objects are what stands out from the background; each is compared with every shape, drawn in its place and colour. A
track is an object followed from frame to frame; unfolded at the walls it should be a straight line in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from suffuse_video.grammar import COLOURS, COUNTS, DIRECTIONS, SHAPES, SPEEDS
from suffuse_video.render import BACKGROUND, RADIUS, bounced, drawn

__all__ = ["Seen", "watch"]

_Float = NDArray[np.float64]
_WORDS = {number: word for word, number in COUNTS.items()}


@dataclass(frozen=True)
class Seen:
    """What was seen.

    Arguments:
        values: Count, colour, shape, direction and speed.
        straight: Whether every object keeps one speed between bounces.
        jitter: Root mean square distance of the objects from their straight lines, in pixels.
        grain: Standard deviation of the background.
        flicker: Standard deviation over time of the objects' areas, as a share of their mean.
    """

    values: tuple[str, str, str, str, str]
    straight: bool
    jitter: float
    grain: float
    flicker: float


def watch(clip: NDArray[np.floating[Any]]) -> Seen:
    """Return what is seen in a clip (3, T, H, W) in [0, 1] with square frames."""
    x: _Float = np.nan_to_num(np.asarray(clip, dtype=np.float64))
    size, radius = x.shape[-1], RADIUS * x.shape[-1]
    back = np.array(BACKGROUND)[:, None, None, None]
    away = np.abs(x - back).max(0)
    mask = away > 0.25
    frames = [_objects(mask[t], away[t]) for t in range(x.shape[1])]
    numbers = [len(found) for found in frames]
    count = max(set(numbers), key=numbers.count)
    # What is a pixel and a half from every object is background.
    near = ndimage.binary_dilation(mask, np.ones((1, 5, 5)))
    grain = float((x - back).transpose(1, 2, 3, 0)[~near].std()) if (~near).any() else 1.0
    if count == 0 or count not in _WORDS or numbers.count(count) < len(numbers):
        word = _WORDS.get(count, str(count)) if numbers.count(count) == len(numbers) else "changing"
        return Seen((word, "", "", "", ""), False, 9.0, grain, 1.0)
    tracks = _tracks(frames)
    colour = _colour(x, away)
    direction = _direction(tracks)
    axis = 0 if direction in ("left", "right") else 1
    motions = [_motion(track, axis, radius, size) for track in tracks]
    shape, speed = _shape(x, tracks, colour, radius), _speed([v for v, _ in motions], size)
    values = (_WORDS[count], colour, shape, direction, speed)
    residuals = [residual for _, residual in motions]
    jitter = float(np.sqrt(np.mean([r**2 for r in residuals])))
    area = away.sum((1, 2))
    return Seen(values, max(residuals) < 0.03 * size, jitter, grain, float(area.std() / area.mean()))


def _objects(mask: NDArray[np.bool_], weight: _Float) -> list[_Float]:
    """Return the centres (x, y) of the connected parts of a frame that are no specks."""
    labels, count = ndimage.label(mask)
    found = []
    for i in range(1, count + 1):
        inside = labels == i
        if inside.sum() >= 6:
            y, x = ndimage.center_of_mass(weight * inside)
            found.append(np.array([x + 0.5, y + 0.5]))
    return found


def _tracks(frames: list[list[_Float]]) -> list[_Float]:
    """Return a track (T, 2) per object: nearest neighbours from frame to frame."""
    tracks = [[centre] for centre in frames[0]]
    for found in frames[1:]:
        cost = np.array([[np.hypot(*(track[-1] - centre)) for centre in found] for track in tracks])
        for i, j in zip(*linear_sum_assignment(cost), strict=True):
            tracks[i].append(found[j])
    return [np.array(track) for track in tracks]


def _colour(x: _Float, away: _Float) -> str:
    inside = away > 0.7 * away.max()
    mean = x.transpose(1, 2, 3, 0)[inside].mean(0)
    name = min(COLOURS, key=lambda name: float(np.abs(mean - np.array(COLOURS[name])).sum()))
    return name if np.abs(mean - np.array(COLOURS[name])).max() < 0.2 else "mixed"


def _shape(x: _Float, tracks: list[_Float], colour: str, radius: float) -> str:
    """Return the shape that, drawn in every object's place, comes closest; a disc that does is none."""
    if colour not in COLOURS:
        return "none"
    errors = {}
    for shape in SHAPES:
        # The centre of mass of a triangle lies below the middle of its box.
        offset = np.array([0.0, radius / 3 if shape == "triangle" else 0.0])
        best = drawn(np.array(tracks) - offset, shape, COLOURS[colour], radius, x.shape[-1])
        errors[shape] = float(np.square(x - best).mean())
    for area in (3.24, 2.0):  # of a square, and of the other two, of radius 1
        disc = drawn(np.array(tracks), "disc", COLOURS[colour], radius * (area / np.pi) ** 0.5, x.shape[-1])
        errors["disc"] = min(errors.get("disc", np.inf), float(np.square(x - disc).mean()))
    return min(errors, key=errors.__getitem__)


def _direction(tracks: list[_Float]) -> str:
    """Return where all objects go in the first two steps."""
    votes = []
    for track in tracks:
        axis = int(np.abs(np.diff(track, axis=0)).sum(0).argmax())
        sign = np.sign(track[min(2, len(track) - 1), axis] - track[0, axis])
        votes.append((int(sign), 0) if axis == 0 else (0, int(sign)))
    names = [name for name, step in DIRECTIONS.items() if all(vote == step for vote in votes)]
    return names[0] if names else "mixed"


def _speed(speeds: list[float], size: int) -> str:
    """Return the word for the speed of all objects, given in pixels per frame."""
    words = {min(SPEEDS, key=lambda word: abs(SPEEDS[word] * size - speed)) for speed in speeds}
    return words.pop() if len(words) == 1 else "mixed"


def _motion(track: _Float, axis: int, radius: float, size: int) -> tuple[float, float]:
    """Return the nearest motion at one speed between the walls: that speed, and the distance from it, in pixels."""
    t = np.arange(len(track))
    free = size - 2 * radius
    along = track[:, axis]
    low, high = 0.6 * min(SPEEDS.values()) * size, 1.4 * max(SPEEDS.values()) * size
    speed, start = 0.5 * (low + high), radius + free
    half_speed, half_start = 0.5 * (high - low), free
    best = np.inf
    # A grid of speeds and starts, then finer ones around the best: the error of a speed grows with the time.
    for count, places in ((max(50, 4 * len(track)), 60), (13, 13), (13, 13)):
        speeds = np.linspace(speed - half_speed, speed + half_speed, count)
        starts = np.linspace(start - half_start, start + half_start, places)
        path = bounced(starts[:, None, None] + speeds[None, :, None] * t, radius, size)
        gap = along - path
        # The centre of mass of a triangle is off the middle of its box, so a constant is fitted as well.
        gap = gap - np.clip(gap.mean(-1, keepdims=True), -radius / 2, radius / 2)
        error = (gap**2).mean(-1)
        i, j = np.unravel_index(error.argmin(), error.shape)
        best = min(best, float(error[i, j]))
        start, speed = float(starts[i]), float(speeds[j])
        half_start, half_speed = 2 * half_start / (places - 1), 2 * half_speed / (count - 1)
    across = track[:, 1 - axis] - track[:, 1 - axis].mean()
    return speed, float(np.sqrt(best + (across**2).mean()))
