"""Writing: clips as MP4 (H.264, for every browser and player), as GIF and as PNG.

Small clips are enlarged by a whole factor without smoothing, so that every pixel stays what it was. H.264 with colours
at half the resolution needs even sides: what is odd is padded by repeating its edge. Files appear whole or not at all.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from suffuse_video.timeline import fraction

__all__ = ["enlarged", "frames_of", "write_gif", "write_mp4", "write_png"]

READABLE = 128
"""Longer side in pixels below which a clip is enlarged."""
OPTIONS = {"crf": "12", "preset": "medium", "x264-params": "chromaloc=1"}
"""A constant rate factor at which differences are below what is seen (0 is lossless, which browsers do not play), and
colours that lie in the middle of their four pixels, since they are the mean of them."""


def write_mp4(clip: Tensor, path: Path, fps: float, least: int = READABLE, **tags: str) -> Path:
    """Write a clip (3, T, H, W) in [0, 1] as MP4 and return the path.

    Arguments:
        clip: What is not a number becomes black.
        path: Where.
        fps: Frames per second.
        least: Longer side in pixels that the picture has at least, by a whole factor; 0 keeps its size.
        tags: Text fields such as ``title`` and ``comment``.
    """
    import av

    frames = _even(enlarged(frames_of(clip), least, even=True))
    temporary = _temporary(path)
    # The index in front lets a browser play while it loads.
    with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata.update({name: value for name, value in tags.items() if value})
        stream = container.add_stream("libx264", rate=fraction(fps), options=OPTIONS)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        context = stream.codec_context
        context.thread_count = 1  # the same bytes on every machine
        # Without a tag players guess the colours by the size of the picture.
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        context.color_range = 1
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(_yuv(array), format="yuv420p")
            frame.pts, frame.time_base = number, 1 / fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    temporary.replace(path)
    return path


def write_gif(
    clip: Tensor, path: Path, fps: float, loop: bool = True, least: int = READABLE, comment: str = ""
) -> Path:
    """Write a clip (3, T, H, W) in [0, 1] as GIF, of at most 256 colours, and return the path.

    GIF counts hundredths of a second: the frames' delays differ by one where the rate asks for it, so that the whole is
    as long as it should be. Equal frames in a row become one that is shown longer.

    Arguments:
        clip: See `write_mp4`.
        path: Where.
        fps: Frames per second; players show no more than 50.
        loop: Play for ever.
        least: See `write_mp4`.
        comment: Text field.
    """
    frames = frames_of(clip)
    # One palette for all frames: colours that stay do not flicker.
    sheet = Image.fromarray(frames.reshape(-1, frames.shape[2], 3))
    palette = sheet.quantize(256, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
    levels = np.asarray(sheet.quantize(palette=palette, dither=Image.Dither.NONE)).reshape(frames.shape[:3])
    pictures = []
    for level in enlarged(levels, least):
        picture = Image.fromarray(level)
        picture.putpalette(palette.getpalette() or [])
        pictures.append(picture)
    per = max(Fraction(100) / fraction(fps), Fraction(2))
    delays = [10 * (round((i + 1) * per) - round(i * per)) for i in range(len(pictures))]
    how = {"loop": 0} if loop else {}
    temporary = _temporary(path)
    pictures[0].save(
        temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=delays, optimize=False,
        comment=comment.encode()[:255], **how,
    )  # fmt: skip
    temporary.replace(path)
    return path


def write_png(frame: Tensor, path: Path) -> Path:
    """Write one frame (3, H, W) in [0, 1] at its own size and return the path."""
    temporary = _temporary(path)
    Image.fromarray(frames_of(frame[:, None])[0]).save(temporary, format="PNG")
    temporary.replace(path)
    return path


def frames_of(clip: Tensor) -> NDArray[np.uint8]:
    """Return a clip (3, T, H, W) in [0, 1] as uint8 (T, H, W, 3)."""
    levels = (clip.detach().float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return np.ascontiguousarray(levels.permute(1, 2, 3, 0).numpy())


def enlarged(frames: NDArray[np.uint8], least: int, even: bool = False) -> NDArray[np.uint8]:
    """Return frames (T, H, W, …) enlarged by the least whole factor, or even one, that makes a side `least` pixels."""
    factor = max(1, -(-least // max(frames.shape[1:3])))
    factor += even and factor > 1 and factor % 2
    return frames.repeat(factor, 1).repeat(factor, 2)


def _yuv(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame (H, W, 3) with even sides as the planes of yuv420p below one another, (3 H / 2, W).

    BT.709: Y = K·RGB, Cb = (B - Y) / 2 (1 - K_B), Cr = (R - Y) / 2 (1 - K_R), colours averaged over 2 x 2 pixels; Y
    counts from 16 to 235, Cb and Cr from 16 to 240. FFmpeg's own conversion takes one pixel of four for the colours.
    """
    rgb = frame.astype(np.float32) / 255
    red, green, blue = 0.2126, 0.7152, 0.0722
    y = rgb @ np.array([red, green, blue], np.float32)
    small = rgb.reshape(frame.shape[0] // 2, 2, frame.shape[1] // 2, 2, 3).mean((1, 3))
    mean = small @ np.array([red, green, blue], np.float32)
    cb, cr = (small[..., 2] - mean) / (2 * (1 - blue)), (small[..., 0] - mean) / (2 * (1 - red))
    planes = (16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr)
    return np.concatenate([p.round().astype(np.uint8).ravel() for p in planes]).reshape(-1, frame.shape[1])


def _even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return frames (T, H, W, 3) with even sides, the edges repeated."""
    more = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    return np.pad(frames, more, mode="edge")


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.tmp")
