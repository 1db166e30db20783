"""Decode: from a file to a clip of a data set's rate and one of its shapes.

A file of n frames at the set's rate has n - T + 1 stretches of T frames, of which `place` in [0, 1) takes one; 1/2 is
the middle. A file that is shorter is lengthened as `short` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import ImageColor
from suffuse.errors import ConfigError, check_whole, suggest
from torch import Tensor

from suffuse_video.files import FITS, SHORTS, ClipError, Head, pixels
from suffuse_video.files import probe as probe_file

__all__ = ["MIDDLE", "Decoder", "Shape", "sides", "whole"]

MIDDLE = 0.5


class Shape(NamedTuple):
    """Frames, height and width of a clip."""

    frames: int
    height: int
    width: int

    @property
    def cost(self) -> int:
        """Number of places in time and space."""
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        return f"{self.frames} x {self.height} x {self.width}"


@dataclass(frozen=True)
class Decoder:
    """Reads clips at one rate.

    Arguments:
        fps: Frames per second; None takes the frames of every file as they follow one another.
        fit: ``crop``, ``letterbox`` or ``stretch``.
        short: What follows the end of a file that is shorter than a clip: ``hold`` its last frame, ``repeat`` it from
            its beginning, or ``error``.
        background: What lies behind transparency and beside a letterboxed clip: a CSS colour name or ``#rrggbb``.

    Raises:
        ConfigError: When an argument has no meaning.
    """

    fps: float | None = 8.0
    fit: str = "crop"
    short: str = "hold"
    background: str = "black"

    def __post_init__(self) -> None:
        if self.fps is not None and (
            isinstance(self.fps, bool) or not isinstance(self.fps, int | float) or not 0 < self.fps <= 1000
        ):
            raise ConfigError(
                f"data.fps={self.fps} must be above 0 and at most 1000, or null for every file's own rate"
            )
        for name, value, known in (("fit", self.fit, FITS), ("short", self.short, SHORTS)):
            if value not in known:
                raise ConfigError(f"data.{name}={value} is unknown{suggest(str(value), known)}")
        try:
            ImageColor.getrgb(self.background)
        except (ValueError, AttributeError, TypeError) as error:
            text = f"data.background={self.background} is no colour; use a name like black, or '#rrggbb' in quotes"
            raise ConfigError(text) from error

    def probe(self, source: Path | bytes) -> Head:
        """Return what is known of a file; see `suffuse_video.files.probe`."""
        return probe_file(source)

    def clip(self, source: Path | bytes, head: Head, shape: Shape, place: float) -> Tensor:
        """Return one stretch of a file, uint8 (3, frames, height, width), by seeking.

        Raises:
            ClipError: When it cannot be read, or is too short.
        """
        count = head.count(self.fps)
        first = int(place * max(1, count - shape.frames + 1))
        rate = self.fps or head.fps or 1.0
        return pixels(
            source, shape.frames, (shape.height, shape.width), self.fps, first / rate, self.fit, self.short,
            self.background,
        )  # fmt: skip

    def all(self, source: Path | bytes, head: Head, shape: Shape) -> Tensor:
        """Return the whole of a file, uint8 (3, n, height, width), and what is held behind its end.

        Raises:
            ClipError: When it cannot be read.
        """
        size, count = (shape.height, shape.width), head.count(self.fps)
        count = max(count, shape.frames) if self.short == "hold" else count
        return pixels(source, count, size, self.fps, 0.0, self.fit, "hold", self.background)

    def cut(self, film: Tensor, frames: int, place: float) -> Tensor:
        """Return of the whole of a file what `clip` returns."""
        count = film.shape[1]
        first = int(place * max(1, count - frames + 1))
        return film[:, torch.arange(first, first + frames) % count]

    def check(self, head: Head, shape: Shape) -> None:
        """Raise `ClipError` when a file is too short."""
        count = head.count(self.fps)
        if self.short == "error" and count < shape.frames:
            at = f" at {self.fps:g} per second" if self.fps and head.fps else ""
            raise ClipError(f"it has {count} frames{at}, a clip needs {shape.frames} (data.short=hold lengthens it)")


def sides(size: int | Sequence[int], key: str = "data.size") -> tuple[int, int]:
    """Return height and width of a side or [height, width], or raise `ConfigError` naming `key`."""
    both = [size] * 2 if isinstance(size, int) else size
    if not isinstance(both, Sequence) or isinstance(both, str) or len(both) != 2:
        raise ConfigError(f"{key}={size} must be a positive whole number or [height, width]")
    return whole(both[0], key), whole(both[1], key)


def whole(value: object, key: str, least: int = 1) -> int:
    """Return a whole number of at least `least`, or raise `ConfigError` naming `key`."""
    return check_whole(key, value, least)
