"""Stills: pictures, animated GIF, WebP and PNG through Pillow, and folders of numbered pictures as clips.

Pillow knows how the frames of an animation are laid over one another and how long each is shown. A picture is a clip of
one frame. A folder whose pictures have numbers for names, as ``0001.png`` or ``frame_12.jpg``, is a clip whose frames
they are in the order of the numbers; it has no rate of its own, so a clip takes them one for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from suffuse_video.placing import Pixels
from suffuse_video.timeline import ClipError, Head, Wanted, chosen

__all__ = ["PICTURES", "is_picture", "numbered", "probe", "read"]

PICTURES = frozenset({".gif", ".png", ".apng", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".avif", ".ppm"})
"""Endings of what Pillow reads here."""
FORMATS = ("GIF", "PNG", "WEBP", "JPEG", "BMP", "TIFF", "AVIF", "PPM")
NUMBERED = re.compile(r"^(.*?)(\d+)$")
Colour = tuple[int, int, int]


def is_picture(source: Path | bytes) -> bool:
    """Return whether Pillow knows a file by its first bytes."""
    try:
        with _open(source):
            return True
    except OSError:
        return False
    except Image.DecompressionBombError:  # said when it is read
        return True


def numbered(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the order of their numbers, or nothing when it is no clip.

    It is one when it has two pictures or more, no folders, and all pictures are named by one word and a number.
    """
    found: dict[int, Path] = {}
    words = set()
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            return []
        if path.suffix.lower() in PICTURES:
            match = NUMBERED.match(path.stem)
            if match is None or int(match[2]) in found:
                return []
            words.add((match[1], path.suffix.lower()))
            found[int(match[2])] = path
    return [found[n] for n in sorted(found)] if len(found) > 1 and len(words) == 1 else []


def probe(source: Path | bytes) -> Head:
    """Return what is known of a picture, an animation or a folder.

    Raises:
        ClipError: When it cannot be read.
    """
    if isinstance(source, Path) and source.is_dir():
        paths = _paths(source)
        first = probe(paths[0])
        return Head(len(paths), 0.0, first.height, first.width, 0.0)
    try:
        with _open(source) as image:
            height, width = ImageOps.exif_transpose(image).size[::-1] if _single(image) else image.size[::-1]
            delays = [] if _single(image) else _delays(image)
    except Exception as error:
        raise ClipError(_reason(source, error)) from error
    if not delays:
        return Head(1, 0.0, height, width, 0.0)
    seconds = sum(delays)
    return Head(len(delays), float(len(delays) / seconds), height, width, float(seconds))


def read(source: Path | bytes, wanted: Wanted, background: Colour) -> list[Pixels]:
    """Return frames (H, W, 3).

    Arguments:
        source: A picture, an animation, the bytes of either, or a folder.
        wanted: Which frames.
        background: What lies behind transparency.

    Raises:
        ClipError: When they cannot be read.
    """
    folder = isinstance(source, Path) and source.is_dir()
    try:
        if folder:
            assert isinstance(source, Path)
            paths = _paths(source)
            # Numbers of frames stand for times: frame j of the clip is picture number start + j.
            rate = wanted.fps or Fraction(1)
            times = wanted.times(len(paths), rate)
            shown = ((Fraction(i) / rate, path) for i, path in enumerate(paths))
            return chosen(shown, times, lambda path: _picture(path, background))
        with _open(source) as image:
            if _single(image):
                image.load()
                times = wanted.times(1, wanted.fps or Fraction(1))
                pixels = _coloured(ImageOps.exif_transpose(image), background)
                return [pixels] * len(times)
            delays = _delays(image)
            if wanted.fps is None:
                starts = [sum(delays[:i], Fraction(0)) for i in range(len(delays))]
                first = max(0, sum(start <= wanted.start for start in starts) - 1)
                one = Fraction(1)
                picked = Wanted(Fraction(first), wanted.frames, one, wanted.short).times(len(delays), one)
                order = ((Fraction(i), pixels) for i, (_, pixels) in enumerate(_animated(image, delays, background)))
                return chosen(order, picked, lambda pixels: pixels)
            times = wanted.times(max(1, round(sum(delays) * wanted.fps)), wanted.fps)
            return chosen(_animated(image, delays, background), times, lambda pixels: pixels)
    except (MemoryError, ClipError):
        raise
    # Damaged files make decoders raise nearly anything: struct.error, IndexError, zlib.error, SyntaxError, …
    except Exception as error:
        raise ClipError(_reason(source, error)) from error


def _picture(path: Path, background: Colour) -> Pixels:
    try:
        with _open(path) as image:
            image.load()
            return _coloured(ImageOps.exif_transpose(image), background)
    except Exception as error:
        raise ClipError(f"{path.name}: {_reason(path, error)}") from error


def _paths(folder: Path) -> list[Path]:
    paths = numbered(folder)
    if not paths:
        raise ClipError("it is a folder without numbered pictures (0001.png, 0002.png, …)")
    return paths


def _open(source: Path | bytes) -> Image.Image:
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # a Pillow without WebP or AVIF lacks their names
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=known)


def _single(image: Image.Image) -> bool:
    return image.format in ("TIFF", "MPO") or getattr(image, "n_frames", 1) < 2


def _delays(image: Image.Image) -> list[Fraction]:
    """Return how long each frame is shown, in seconds; players take next to nothing for a tenth."""
    found = []
    for number in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(number)
        if image.format != "GIF":
            image.load()  # what is no GIF says how long a frame is shown only then
        milliseconds = Fraction(image.info.get("duration") or 0).limit_denominator(1000)
        found.append(milliseconds / 1000 if milliseconds > 10 else Fraction(1, 10))
    return found


def _animated(image: Image.Image, delays: list[Fraction], background: Colour) -> Iterator[tuple[Fraction, Pixels]]:
    """Yield the time and the pixels of each frame."""
    time = Fraction(0)
    for number, delay in enumerate(delays):
        image.seek(number)
        yield time, _coloured(image, background)
        time += delay


def _coloured(image: Image.Image, background: Colour) -> Pixels:
    """Return RGB pixels, without transparency."""
    if image.mode.startswith("I"):  # 16 bits
        return np.repeat((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)[..., None], 3, -1)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    return np.array(image.convert("RGB"))


def _reason(source: Path | bytes, error: Exception) -> str:
    if isinstance(source, Path) and not source.exists():
        return "there is no such file"
    if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
        return "it is empty"
    text = " ".join(str(error).split())
    # Pillow's own text names an object in memory, which helps nobody.
    return "it is no picture" if "cannot identify image file" in text else text or type(error).__name__
