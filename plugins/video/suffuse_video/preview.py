"""Preview: clips as MP4 and GIF files, as one sheet of filmstrips with captions, and as W&B videos."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from suffuse.errors import ConfigError, check_whole, suggest
from torch import Tensor

from suffuse_video.placing import placed
from suffuse_video.ragged import alone, each
from suffuse_video.writing import enlarged, frames_of, write_gif, write_mp4, write_png

__all__ = ["Filmstrip"]

FORMATS = ("mp4", "gif")
GAP, TEXT, LINES = 4, 12, 3
"""Pixels between strips, height of the captions' letters, and most lines of a caption."""
FRAME, LARGEST = 48, 160
"""Longer side in pixels that a frame on the sheet has at least, and at most."""


class Filmstrip:
    """Writes and shows clips.

    Arguments:
        format: What is written of every clip: ``mp4``, ``gif``, or both.
        frames: Most frames of a clip on the sheet, evenly spaced with the first and the last.
        most: Most clips on the sheet.
        about: Facts of the data: ``fps``.

    Raises:
        ConfigError: For another format, and numbers below 1.
    """

    def __init__(
        self, format: str | Sequence[str] = FORMATS, frames: int = 12, most: int = 48,
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.format = (format,) if isinstance(format, str) else tuple(format)
        for name in self.format or ("",):
            if name not in FORMATS:
                raise ConfigError(f"preview.format={name}: no such format{suggest(name, FORMATS, listing='formats')}")
        for key, value in (("frames", frames), ("most", most)):
            check_whole(f"preview.{key}", value)
        self._shown: tempfile.TemporaryDirectory[str] | None = None
        self.frames, self.most, self.fps = frames, most, float((about or {}).get("fps", 8.0))

    def save(self, x: Any, stem: Path) -> Path:
        """Write one clip (3, T, H, W) in [0, 1] to `stem` plus ``.mp4`` and ``.gif``; return the first of them."""
        return self._save(alone(x), stem)

    def write(self, xs: Any, rows: Sequence[dict[str, Any]], out: Path) -> None:
        """Write the files of all samples and add ``file``, ``frames``, ``fps`` and ``seconds`` to their rows.

        Title and comment of an MP4 say caption, seed, sampler and checkpoint.
        """
        for x, row in zip(each(xs), rows, strict=True):
            said = [f"seed {row['seed']}"] if "seed" in row else []
            note = ", ".join(said + [str(row[key]) for key in ("sampler", "checkpoint") if key in row])
            path = self._save(x, out / f"{row['index']:05d}", title=row["caption"], comment=note)
            row["file"] = path.name
            row |= {"frames": x.shape[1], "fps": self.fps, "seconds": round(x.shape[1] / self.fps, 4)}

    def overview(self, xs: Any, captions: Sequence[str], path: Path) -> Path:
        """Write one PNG with a strip of frames per clip (B, 3, T, H, W) below its caption; return `path`.

        Raises:
            ValueError: When there are no clips, or not one caption each.
        """
        xs = each(xs)
        if not len(xs) or len(xs) != len(captions):
            raise ValueError(f"{len(xs)} clips and {len(captions)} captions make no sheet")
        strips = [self._strip(x) for x in xs[: self.most]]
        width, height = max(s.width for s in strips), max(s.height for s in strips)
        font = _font()
        said = [_wrapped(caption, font, width) for caption in captions[: self.most]]
        line = round(1.25 * TEXT)
        height += line * max(len(lines) for lines in said)
        # About as wide as high, since a strip is long.
        columns = max(1, min(len(strips), round(math.sqrt(len(strips) * height / width))))
        rows = -(-len(strips) // columns)
        size = (columns * (width + 3 * GAP) - GAP, rows * (height + 2 * GAP) + GAP)
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        for i, (strip, lines) in enumerate(zip(strips, said, strict=True)):
            left, bottom = GAP + i % columns * (width + 3 * GAP), (i // columns + 1) * (height + 2 * GAP)
            top = bottom - strip.height - line * len(lines)
            for number, text in enumerate(lines):
                draw.text((left, top + number * line), text, fill="black", font=font)
            sheet.paste(strip, (left, bottom - strip.height))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        sheet.save(temporary, format="PNG")
        temporary.replace(path)
        return path

    def media(self, xs: Any, captions: Sequence[str]) -> list[Any]:
        """Return one ``wandb.Video`` per clip."""
        import wandb  # takes a second that runs without W&B need not wait

        found = []
        # W&B copies a file when it is logged: what was shown last time is no longer needed.
        self._shown = tempfile.TemporaryDirectory(prefix="suffuse-video-")
        for number, (x, caption) in enumerate(zip(each(xs), captions, strict=True)):
            file = write_mp4(_clip(x), Path(self._shown.name) / f"{number:05d}.mp4", self.fps)
            found.append(wandb.Video(str(file), caption=caption, format="mp4"))
        return found

    def _save(self, x: Tensor, stem: Path, title: str = "", comment: str = "") -> Path:
        x = _clip(x)
        stem.parent.mkdir(parents=True, exist_ok=True)
        paths = []
        if "mp4" in self.format:
            paths.append(write_mp4(x, stem.with_name(f"{stem.name}.mp4"), self.fps, title=title, comment=comment))
        if "gif" in self.format:
            paths.append(write_gif(x, stem.with_name(f"{stem.name}.gif"), self.fps, comment=title))
        if x.shape[1] == 1:
            write_png(x[:, 0], stem.with_name(f"{stem.name}.png"))
        return paths[0]

    def _strip(self, x: Tensor) -> Image.Image:
        """Return frames of a clip side by side, small ones enlarged without smoothing, large ones reduced."""
        frames = frames_of(_clip(x))
        count = min(self.frames, len(frames))
        chosen = frames[np.round(np.linspace(0, len(frames) - 1, count)).astype(int)]
        side = max(chosen.shape[1:3])
        if side > LARGEST:
            size = tuple(max(1, n * LARGEST // side) for n in chosen.shape[1:3])
            chosen = np.stack([placed(frame, (size[0], size[1]), "stretch") for frame in chosen])
        chosen = enlarged(chosen, FRAME)
        # A line of white between frames shows where one ends.
        padded = np.pad(chosen, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
        return Image.fromarray(np.concatenate(list(padded), 1)[:, :-1])


def _clip(x: Tensor) -> Tensor:
    """Return a clip on the host; of one channel, grey.

    Raises:
        ConfigError: When it is none.
    """
    if x.ndim != 4 or x.shape[0] not in (1, 3):
        raise ConfigError(f"preview: a sample of shape {tuple(x.shape)} is no clip; it needs (3, frames, H, W)")
    x = x.detach().float().cpu().nan_to_num().clamp(0, 1)
    return x.expand(3, -1, -1, -1) if x.shape[0] == 1 else x


def _font() -> Any:
    try:
        return ImageFont.load_default(TEXT)
    except (ImportError, OSError):  # a Pillow without FreeType has one size only
        return ImageFont.load_default()


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Return a caption in lines that are at most `width` pixels wide; what needs more than `LINES` is cut."""
    # The built-in bitmap font of a Pillow without FreeType knows Latin-1 only.
    text = text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) == LINES:
            lines[-1] = _cut(longer, font, width)
            break
        else:
            lines.append(_cut(word, font, width))
    return lines


def _cut(text: str, font: Any, width: int) -> str:
    """Return a text, cut so that it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}..") > width:
        text = text[:-1]
    return f"{text}.."
