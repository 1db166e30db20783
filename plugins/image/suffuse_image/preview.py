"""Preview: pictures as PNG files, as one sheet with captions, and as W&B images.

A pixel value x in [0, 1] is written as round(255 x). A file holds the sample at its own size; only the sheet and the
W&B images are enlarged, by an integer factor and without smoothing, so that every pixel stays what it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from suffuse.errors import ConfigError

__all__ = ["Images"]

READABLE = 64
"""Side in pixels below which a picture is enlarged for the sheet."""
LARGEST = 256
"""Side in pixels above which a picture is reduced for the sheet."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Images:
    """Writes and shows pictures.

    Arguments:
        scale: Integer factor of the sheet and of W&B images; by default the least that makes a side 64 pixels.
        columns: Pictures per row of the sheet; by default one column per caption where a few captions take turns, else
            the sheet comes out about twice as wide as it is high.

    Raises:
        ConfigError: When `scale` or `columns` is below 1.
    """

    def __init__(self, scale: int | None = None, columns: int | None = None) -> None:
        for name, value in (("scale", scale), ("columns", columns)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"preview.{name}={value} must be a whole number of at least 1, or null to choose")
        self.scale, self.columns = scale, columns

    def save(self, x: torch.Tensor, stem: Path) -> Path:
        """Write one picture (C, H, W) in [0, 1] at its own size to `stem` plus ``.png``; return that path."""
        return _write(_picture(x), stem.with_name(stem.name + ".png"))

    def overview(self, xs: torch.Tensor, captions: Sequence[str], path: Path) -> Path:
        """Write one PNG with all pictures (B, C, H, W), each above its caption; return `path`.

        Raises:
            ValueError: When there are no pictures, or not one caption each.
        """
        cells = [self._resized(_picture(x)) for x in xs]
        if not cells or len(cells) != len(captions):
            raise ValueError(f"{len(cells)} pictures and {len(captions)} captions make no sheet")
        width, height, gap = max(c.width for c in cells), max(c.height for c in cells), 4
        font = ImageFont.load_default()
        line = 14 if any(captions) else 0
        columns = self.columns or _turns(captions) or math.ceil(math.sqrt(2 * len(cells) * (height + line) / width))
        columns = min(columns, len(cells))
        rows = math.ceil(len(cells) / columns)
        mode = "RGBA" if cells[0].mode == "RGBA" else "RGB"
        size = (columns * (width + gap) + gap, rows * (height + line + gap) + gap)
        sheet = Image.new(mode, size, "white")
        draw = ImageDraw.Draw(sheet)
        for i, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
            left, top = gap + i % columns * (width + gap), gap + i // columns * (height + line + gap)
            sheet.paste(cell.convert(mode), (left, top))
            draw.text((left, top + height), _shortened(caption, draw, font, width), fill="black", font=font)
        return _write(sheet, path)

    def media(self, xs: torch.Tensor, captions: Sequence[str]) -> list[Any]:
        """Return one ``wandb.Image`` per picture (B, C, H, W)."""
        import wandb  # takes a second that runs without W&B need not wait

        pictures = [self._resized(_picture(x)) for x in xs]
        return [wandb.Image(picture, caption=caption) for picture, caption in zip(pictures, captions, strict=True)]

    def _resized(self, picture: Image.Image) -> Image.Image:
        """Return the picture at the size the sheet shows it at."""
        side = max(picture.size)
        scale = self.scale or max(1, math.ceil(READABLE / side))
        if scale > 1:
            size = (picture.width * scale, picture.height * scale)
            return picture.resize(size, Image.Resampling.NEAREST)
        if self.scale is None and side > LARGEST:
            size = (max(1, picture.width * LARGEST // side), max(1, picture.height * LARGEST // side))
            return picture.resize(size, Image.Resampling.LANCZOS)
        return picture


def _turns(captions: Sequence[str]) -> int | None:
    """Return how many captions take turns, when they do and make a row of a fair length."""
    kinds = len(set(captions))
    cycle = all(caption == captions[i % kinds] for i, caption in enumerate(captions))
    fair = 4 <= kinds <= 16 or (kinds > 1 and len(captions) <= 4 * kinds**2)
    return kinds if cycle and fair and len(captions) > kinds else None


def _picture(x: torch.Tensor) -> Image.Image:
    """Return (C, H, W) in [0, 1] as a Pillow image; what is not a number becomes black."""
    if x.ndim != 3 or len(x) not in MODES:
        raise ConfigError(f"preview: a sample of shape {tuple(x.shape)} is no picture; it needs (1, 3 or 4, H, W)")
    levels = (x.detach().float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    array = levels[0] if len(x) == 1 else levels.permute(1, 2, 0)
    return Image.fromarray(array.contiguous().numpy(), mode=MODES[len(x)])


def _shortened(text: str, draw: ImageDraw.ImageDraw, font: Any, width: int) -> str:
    """Return the first line of `text`, cut so that it is at most `width` pixels wide."""
    text = text.splitlines()[0] if text else ""
    # The built-in bitmap font of a Pillow without FreeType knows Latin-1 only.
    text = text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "..", font=font) > width:
        text = text[:-1]
    return text + ".."


def _write(picture: Image.Image, path: Path) -> Path:
    """Write a PNG under a hidden name first, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    picture.save(temporary, format="PNG")
    temporary.replace(path)
    return path
