"""Files: sound files in and out, through soundfile alone.

WAV, FLAC, OGG and MP3 of any rate and width. Samples are float32 in [-1, 1] of shape (channels, N). A stretch of a long
file is read by seeking. Resampling is torchaudio's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from suffuse.errors import ConfigError, DataError
from torch import Tensor

from suffuse_audio.dsp import resample

__all__ = ["MOST_CHANNELS", "Info", "SoundError", "info", "load", "mixed", "read", "suffixes", "write"]

MOST_CHANNELS = 16
"""Files with more channels are refused: they are measurements, not sounds."""


class SoundError(Exception):
    """A file that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Info:
    """What the head of a file says.

    Arguments:
        rate: Samples per second.
        channels: Number of channels.
        frames: Samples per channel.
    """

    rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.rate


def suffixes() -> frozenset[str]:
    """Return the endings of files that can be read, in lower case."""
    return frozenset(
        {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".w64", ".au", ".caf"}
    )


def info(source: Path | bytes) -> Info:
    """Return what the head of a file says.

    Raises:
        SoundError: When it is no sound file, is empty, or has a rate or a number of channels that cannot be.
    """
    import soundfile

    try:
        with soundfile.SoundFile(_opened(source)) as file:
            found = Info(int(file.samplerate), int(file.channels), int(file.frames))
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise SoundError(_reason(source, error)) from error
    if found.rate < 1:
        raise SoundError(f"its sample rate is {found.rate}")
    if not 1 <= found.channels <= MOST_CHANNELS:
        raise SoundError(f"it has {found.channels} channels, at most {MOST_CHANNELS} are read")
    if found.frames < 1:
        raise SoundError("it has no samples")
    return found


def load(source: Path | bytes, start: int = 0, frames: int = -1) -> tuple[Tensor, int]:
    """Return samples (channels, n) as they are stored, and the rate.

    Arguments:
        source: A path, or the bytes of a file.
        start: First sample.
        frames: How many, -1 for all; fewer where the file ends.

    Raises:
        SoundError: When it cannot be decoded, or holds a NaN.
    """
    import soundfile

    head = info(source)
    try:
        with soundfile.SoundFile(_opened(source)) as file:
            if start:
                file.seek(min(start, head.frames))
            x = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise SoundError(_reason(source, error)) from error
    wanted = head.frames - start if frames < 0 else min(frames, head.frames - start)
    # Lossy formats may be a block off; a file that was cut is far shorter than its head says.
    if len(x) < wanted - 4096 or (not len(x) and wanted > 0):
        raise SoundError(f"it is truncated: {len(x)} of {wanted} samples")
    if not np.isfinite(x).all():
        raise SoundError("it holds NaN or infinite samples")
    return torch.from_numpy(np.ascontiguousarray(x.T)), head.rate


def mixed(x: Tensor, channels: int) -> Tensor:
    """Return (channels, n): mono is the mean, stereo from mono the same twice, from more the first two."""
    if len(x) == channels:
        return x
    if channels == 1:
        return x.mean(0, keepdim=True)
    return x.expand(channels, -1) if len(x) == 1 else x[:channels]


def read(path: str, rate: int, channels: int, key: str) -> Tensor:
    """Return a whole file at another rate and number of channels, (channels, n).

    Raises:
        ConfigError: When there is no such file, naming `key`.
        DataError: When it cannot be read.
    """
    where = Path(path).expanduser()
    if not where.is_file():
        raise ConfigError(f"{key}={path}: no such file")
    try:
        x, found = load(where)
    except SoundError as error:
        raise DataError(f"{key}={path}: {error}") from error
    return resample(mixed(x, channels), found, rate)


def write(path: Path, x: Tensor, rate: int, **tags: str) -> Path:
    """Write samples (channels, n) as 16-bit WAV or FLAC by the path's ending, clipped to [-1, 1]; return the path.

    The file appears whole or not at all.

    Arguments:
        path: Where.
        x: Samples.
        rate: Samples per second.
        tags: Text fields such as ``title`` and ``comment``.
    """
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    samples = x.detach().float().nan_to_num().clamp(-1, 1).cpu().T.contiguous().numpy()
    with soundfile.SoundFile(
        temporary, "w", samplerate=rate, channels=samples.shape[1], subtype="PCM_16", format=path.suffix[1:].upper()
    ) as file:
        for name, value in tags.items():
            if value:  # FLAC refuses empty ones
                setattr(file, name, value)
        file.write(samples)
    temporary.replace(path)
    return path


def _opened(source: Path | bytes) -> Any:
    return BytesIO(source) if isinstance(source, bytes) else os.fspath(source)


def _reason(source: Path | bytes, error: Exception) -> str:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size if source.is_file() else 0
    if not size:
        return "it is empty"
    text = " ".join(str(error).split())
    return text.rpartition(": ")[2] or type(error).__name__
