"""Decoder: any picture file to uint8 pixels (C, h, w) of one fixed shape.

The order is fixed: turn as EXIF says, bring the values to 8 bits, lay transparency over the background, change the
colour space, fit the size. A picture that already has the wanted shape keeps its pixels exactly.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from suffuse.errors import ConfigError, suggest

__all__ = ["Decoder", "PictureError", "check", "size_of", "suffixes", "whole"]

FITS = ("crop", "letterbox", "stretch")
UNSAFE = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
"""Formats that Pillow knows by name but reads through other programs, or not at all."""


class PictureError(Exception):
    """A file that cannot be decoded; the text says why."""


def suffixes() -> frozenset[str]:
    """Return the lower-case suffixes of the files that count as pictures."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, form in known.items() if form in Image.OPEN and form not in UNSAFE)


@dataclass(frozen=True)
class Decoder:
    """Reads pictures at one size, of any format, mode and depth that Pillow reads.

    Arguments:
        size: Side, or (height, width), in pixels.
        channels: 3 for RGB, 1 for grey.
        fit: ``crop`` fills the frame and cuts what hangs over, ``letterbox`` shows all of the picture on the
            background, ``stretch`` changes the proportions.
        background: What lies behind transparency and beside a letterboxed picture: a CSS colour name or ``#rrggbb``.

    Raises:
        ConfigError: When an argument has no meaning.
    """

    size: int | Sequence[int]
    channels: int = 3
    fit: str = "crop"
    background: str = "white"

    def __post_init__(self) -> None:
        sides = [self.size] * 2 if isinstance(self.size, int) else self.size
        if not isinstance(sides, Sequence) or len(sides) != 2 or any(_not_positive(side) for side in sides):
            raise ConfigError(f"data.size={self.size} must be a positive whole number or [height, width]")
        if self.channels not in (1, 3):
            raise ConfigError(f"data.channels={self.channels} must be 3 (RGB) or 1 (grey)")
        if self.fit not in FITS:
            raise ConfigError(f"data.fit={self.fit} is unknown{suggest(str(self.fit), FITS)}")
        try:
            ImageColor.getrgb(self.background)
        except (ValueError, AttributeError, TypeError) as error:
            text = f"data.background={self.background} is no colour; use a name like white, or '#rrggbb' in quotes"
            raise ConfigError(text) from error

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of what is returned."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, height, width

    def __call__(self, source: Path | bytes) -> torch.Tensor:
        """Return the first frame of a file, or of a file's bytes, as uint8 of shape (C, h, w).

        Raises:
            PictureError: When it cannot be decoded.
        """
        try:
            with _open(source) as image:
                image.load()
                return self._pixels(self._fitted(self._coloured(ImageOps.exif_transpose(image))))
        except MemoryError:
            raise
        # Damaged files make decoders raise nearly anything: struct.error, IndexError, zlib.error, SyntaxError, …
        except Exception as error:
            raise PictureError(_reason(error)) from error

    def _coloured(self, image: Image.Image) -> Image.Image:
        """Return the picture in mode RGB or L, without transparency."""
        if image.mode.startswith(("I", "F")):
            image = _eight_bit(image)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, self.background), image)
        if image.mode not in ("RGB", "L"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        return image.convert("RGB" if self.channels == 3 else "L")

    def _fitted(self, image: Image.Image) -> Image.Image:
        """Return the picture at the wanted size; reduction is antialiased."""
        _, height, width = self.shape
        how = Image.Resampling.BICUBIC
        if image.size == (width, height):
            return image
        if self.fit == "crop":
            return ImageOps.fit(image, (width, height), how)
        if self.fit == "letterbox":
            return ImageOps.pad(image, (width, height), how, color=self.background)
        return image.resize((width, height), how)

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        array = np.array(image)
        return torch.from_numpy(array[None] if self.channels == 1 else array.transpose(2, 0, 1).copy())


def whole(source: Path | bytes) -> torch.Tensor:
    """Return the first frame of a file at its own size, uint8 (C, h, w), of one channel where it is grey.

    Raises:
        PictureError: When it cannot be decoded.
    """
    try:
        with _open(source) as image:
            image.load()
            grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F"))
            decoder = Decoder(1, 1 if grey else 3)
            return decoder._pixels(decoder._coloured(ImageOps.exif_transpose(image)))
    except MemoryError:
        raise
    except Exception as error:  # as in Decoder
        raise PictureError(_reason(error)) from error


def check(source: Path | bytes) -> None:
    """Read no more than a file's header.

    Raises:
        PictureError: When it is not one of a picture.
    """
    try:
        with _open(source):
            pass
    except Exception as error:
        raise PictureError(_reason(error)) from error


def size_of(source: Path | bytes) -> tuple[int, int] | None:
    """Return height and width of a picture as it is shown, from its header; None where it has none."""
    try:
        with _open(source) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF's orientation: on its side
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # what cannot be read is counted and named by who decodes it
        return None


def _open(source: Path | bytes) -> Image.Image:
    safe = [form for form in Image.registered_extensions().values() if form in Image.OPEN and form not in UNSAFE]
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=sorted(set(safe)))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return a deep grey picture as mode L: integers count to 65535, floats to 1."""
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode.startswith("F") else 65535.0
    # A range other than the format's own would need a guess, and a wrong one passes for data.
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > white:
        raise PictureError(f"{image.mode} pixels outside [0, {white:g}]")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _not_positive(side: object) -> bool:
    return isinstance(side, bool) or not isinstance(side, int) or side < 1


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # Pillow's own text names an object in memory, which helps nobody.
    return "not a picture" if "cannot identify image file" in text else text or type(error).__name__
