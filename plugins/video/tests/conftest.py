"""Small video files whose brightness says which frame it is."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4",
          ".ts": "libx264", ".mpg": "mpeg2video", ".gif": "gif", ".h264": "libx264"}  # fmt: skip
STEP = 4
"""Levels of brightness between a frame and the next."""


def film(
    path: Path, frames: int = 40, fps: float = 10, size: tuple[int, int] = (32, 48), gop: int = 12,
    times: Sequence[int] | None = None, colour: tuple[float, float, float] = (1, 1, 1), first: int = 5,
) -> Path:  # fmt: skip
    """Write a file; frame i is `colour` times the grey level STEP * (first + i), with a white top left quarter.

    Arguments:
        path: Its ending decides container and codec.
        frames: How many.
        fps: Frames per second.
        size: Height and width.
        gop: Frames from one key frame to the next.
        times: Milliseconds at which the frames are shown, for a varying rate.
        colour: Weight of red, green and blue.
        first: See above.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        how = {"libx264": {"crf": "6"}, "libvpx-vp9": {"lossless": "1"}}.get(CODECS[path.suffix], {})
        stream = container.add_stream(CODECS[path.suffix], rate=rate, options=how)
        stream.height, stream.width = size
        stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
        stream.codec_context.gop_size = gop
        # Threads of FFmpeg do not survive the fork of a loader's workers, which then wait for them.
        stream.codec_context.thread_count = 1
        if path.suffix in (".mpg", ".avi"):
            stream.codec_context.bit_rate = 4_000_000
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
            stream.codec_context.max_b_frames = 0
        for i in range(frames):
            array = np.empty((*size, 3), np.uint8)
            array[:] = np.round(STEP * (first + i) * np.array(colour))
            array[: size[0] // 2, : size[1] // 2] = 255
            frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=stream.pix_fmt, threads=1)
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(clip: torch.Tensor, first: int = 5, channel: int = 0) -> list[int]:
    """Return which frames of `film` a clip (3, T, H, W) consists of."""
    height, width = clip.shape[2:]
    level = clip[channel, :, height // 2 + 2 :, width // 2 + 2 :].mean((1, 2)) * 255
    return [round(float(v)) for v in level / STEP - first]
