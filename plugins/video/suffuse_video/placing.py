"""Placing: brings a frame to a wanted size.

``crop`` fills the frame and cuts what hangs over, evenly on both sides, ``letterbox`` shows all of it on a background,
``stretch`` changes its proportions. Reduction is antialiased; a frame that has the wanted size keeps its pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["FITS", "placed", "square"]

FITS = ("crop", "letterbox", "stretch")
Pixels = NDArray[np.uint8]


def square(frame: Pixels, aspect: float) -> Pixels:
    """Return a frame (H, W, 3) with square pixels, of one whose pixels are `aspect` times as wide as high."""
    if abs(aspect - 1) < 1e-3:
        return frame
    size = (max(1, round(frame.shape[1] * aspect)), frame.shape[0])
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))


def placed(
    frame: Pixels, size: tuple[int, int], fit: str, background: tuple[int, int, int] = (0, 0, 0), aspect: float = 1.0
) -> Pixels:
    """Return a frame (H, W, 3) at another size.

    Arguments:
        frame: uint8.
        size: Height and width.
        fit: One of `FITS`.
        background: Colour beside a letterboxed frame.
        aspect: Width of the frame's pixels divided by their height.
    """
    (height, width), (high, wide) = frame.shape[:2], size
    if (height, width) == (high, wide) and abs(aspect - 1) < 1e-3:
        return frame
    picture, how = Image.fromarray(frame), Image.Resampling.BICUBIC
    # Sides of the largest part of the frame with the wanted proportions, in the frame's own pixels.
    across = min(float(width), height * wide / high / aspect)
    down = min(float(height), width * aspect * high / wide)
    if fit == "crop":
        left, top = (width - across) / 2, (height - down) / 2
        return np.asarray(picture.resize((wide, high), how, box=(left, top, left + across, top + down)))
    if fit == "stretch":
        return np.asarray(picture.resize((wide, high), how))
    scale = min(wide / (width * aspect), high / height)
    inner = (min(wide, max(1, round(width * aspect * scale))), min(high, max(1, round(height * scale))))
    whole = Image.new("RGB", (wide, high), background)
    whole.paste(picture.resize(inner, how), ((wide - inner[0]) // 2, (high - inner[1]) // 2))
    return np.asarray(whole)
