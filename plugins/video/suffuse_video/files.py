"""Files: clips out of video files, pictures and folders of pictures, and into MP4 and GIF.

A clip is float32 (3, T, H, W) in [0, 1]. What is read is the needed stretch of a file at the wanted rate and size, see
`suffuse_video.timeline` for which frames those are; nothing needs FFmpeg to be installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import ImageColor
from torch import Tensor

from suffuse_video import container, stills
from suffuse_video.placing import FITS, placed, square
from suffuse_video.timeline import SHORTS, ClipError, Head, Wanted, fraction
from suffuse_video.writing import write_gif, write_mp4, write_png

__all__ = [
    "FITS", "SHORTS", "ClipError", "Head", "pixels", "probe", "read", "suffixes", "write_gif", "write_mp4", "write_png",
]  # fmt: skip

VIDEOS = frozenset(
    (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".ogv", ".flv")
)
Size = int | tuple[int, int]


def suffixes() -> frozenset[str]:
    """Return the endings of files that can be read, in lower case: of videos, animations and pictures."""
    return VIDEOS | stills.PICTURES


def probe(source: str | Path | bytes) -> Head:
    """Return frames, rate, size and length of a file, a folder of numbered pictures, or the bytes of a file.

    Raises:
        ClipError: When it is neither video nor picture, or is damaged.
    """
    source = Path(source) if isinstance(source, str) else source
    return stills.probe(source) if _still(source) else container.probe(source)


def read(
    source: str | Path | bytes, frames: int | None = None, size: Size | None = None, fps: float | None = None,
    start: float = 0.0, fit: str = "crop", short: str = "hold", background: str = "black",
) -> Tensor:  # fmt: skip
    """Return a clip, float32 (3, T, H, W) in [0, 1].

    Arguments:
        source: A file, a folder of numbered pictures, or the bytes of a file.
        frames: How many; by default all from `start` on.
        size: Side, or (height, width); by default the file's own.
        fps: Rate of the clip; by default the frames as they follow one another.
        start: Where it starts, in seconds; in frames divided by `fps` for what has no rate.
        fit: ``crop``, ``letterbox`` or ``stretch``, see `suffuse_video.placing`.
        short: Behind the end of a file ``hold`` its last frame, ``repeat`` it, or raise an ``error``.
        background: What lies behind transparency and beside a letterboxed clip: a CSS colour name or ``#rrggbb``.

    Raises:
        ClipError: When it cannot be read.
    """
    return pixels(source, frames, size, fps, start, fit, short, background).float() / 255


def pixels(
    source: str | Path | bytes, frames: int | None = None, size: Size | None = None, fps: float | None = None,
    start: float = 0.0, fit: str = "crop", short: str = "hold", background: str = "black",
) -> Tensor:  # fmt: skip
    """Return a clip as uint8 (3, T, H, W); see `read`."""
    source = Path(source) if isinstance(source, str) else source
    if fit not in FITS or short not in SHORTS:
        raise ValueError(f"fit={fit} is none of {FITS}, or short={short} none of {SHORTS}")
    wanted = Wanted(fraction(max(0.0, start)), frames, None if fps is None else fraction(fps), short)
    colour = ImageColor.getrgb(background)[:3]
    found = (
        [(frame, 1.0) for frame in stills.read(source, wanted, colour)]
        if _still(source)
        else container.read(source, wanted)
    )
    if size is None:
        first = square(*found[0])
        goal = (int(first.shape[0]), int(first.shape[1]))
    else:
        goal = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    # A frame that is taken twice is placed once.
    made = {id(frame): placed(frame, goal, fit, colour, aspect) for frame, aspect in found}
    whole = np.stack([made[id(frame)] for frame, _ in found])
    return torch.from_numpy(np.ascontiguousarray(whole.transpose(3, 0, 1, 2)))


def _still(source: Path | bytes) -> bool:
    return (isinstance(source, Path) and source.is_dir()) or stills.is_picture(source)
