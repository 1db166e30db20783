"""Decode: from a file to samples of a data set's rate, channels, length and loudness.

The length is a whole number of blocks of 1,024 samples, so that every codec's frames and every network's levels divide
it. A longer sound gives one stretch of itself, read by seeking; a shorter one is followed by silence.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from suffuse.errors import ConfigError
from torch import Tensor

from suffuse_audio.dsp import loudness, resample
from suffuse_audio.files import Info, SoundError, info, load, mixed

__all__ = ["BLOCK", "Decoder", "chance"]

BLOCK = 1024
"""A clip is a whole number of so many samples."""
SILENT = 1e-4
"""Peak below which a sound is silence."""


def chance(*numbers: int) -> float:
    """Return a number in [0, 1) that is a function of some whole numbers."""
    words = struct.pack(f"<{len(numbers)}Q", *(n % 2**64 for n in numbers))
    return int.from_bytes(blake2b(words, digest_size=8).digest(), "big") / 2**64


@dataclass(frozen=True)
class Decoder:
    """Reads sounds of any rate and number of channels at one of each.

    Arguments:
        rate: Samples per second.
        seconds: Length; rounded up to a whole number of blocks.
        channels: 1 (mono) or 2 (stereo).
        normalise: ``none``; ``peak``, so that the greatest sample is `level`; or ``lufs``, so that the loudness is
            `lufs` where the peak allows it.
        level: Peak after normalising.
        lufs: Loudness in LUFS.
        silence: Refuse sounds that are silent.

    Raises:
        ConfigError: When an argument has no meaning.
    """

    rate: int = 16_000
    seconds: float = 2.048
    channels: int = 1
    normalise: str = "peak"
    level: float = 0.9
    lufs: float = -18.0
    silence: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (("rate", self.rate, 1000), ("seconds", self.seconds, 0.01)):
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise ConfigError(f"data.{name}={value} must be a number of at least {least:g}")
        if self.channels not in (1, 2):
            raise ConfigError(f"data.channels={self.channels} must be 1 (mono) or 2 (stereo)")
        if self.normalise not in ("none", "peak", "lufs"):
            raise ConfigError(f"data.normalise={self.normalise} is none of 'none', 'peak', 'lufs'")
        if not 0 < self.level <= 1:
            raise ConfigError(f"data.level={self.level} must be above 0 and at most 1")

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return math.ceil(round(self.seconds * self.rate, 6) / BLOCK) * BLOCK

    def head(self, source: Path | bytes) -> Info:
        """Return what the head of a file says; see `suffuse_audio.files.info`."""
        return info(source)

    def whole(self, source: Path | bytes) -> Tensor:
        """Return a whole file, (channels, n), normalised.

        Raises:
            SoundError: When it cannot be used.
        """
        x, rate = load(source)
        return self._levelled(resample(mixed(x, self.channels), rate, self.rate))

    def stretch(self, source: Path | bytes, place: float) -> Tensor:
        """Return (channels, samples) of a file, from the share `place` in [0, 1) of what it could start at.

        Raises:
            SoundError: When it cannot be used.
        """
        return self.fitted(self.part(source, place))

    def part(self, source: Path | bytes, place: float) -> Tensor:
        """Return what `stretch` does without the silence behind: (channels, n), n at most `samples`."""
        head = info(source)
        # A little more on either side, which resampling needs, is cut away again.
        need = math.ceil(self.samples * head.rate / self.rate)
        margin = 0 if head.rate == self.rate else 64
        start = round(place * max(0, head.frames - need))
        first = max(0, start - margin)
        x, rate = load(source, first, start - first + need + margin)
        y = resample(mixed(x, self.channels), rate, self.rate)
        skip = round((start - first) * self.rate / rate)
        return self._levelled(y[:, skip : skip + self.samples])

    def cropped(self, x: Tensor, place: float = 0.0) -> Tensor:
        """Return a stretch of samples (channels, n), at most `samples` of them."""
        start = round(place * max(0, x.shape[1] - self.samples))
        return x[:, start : start + self.samples]

    def fitted(self, x: Tensor, place: float = 0.0) -> Tensor:
        """Return (channels, samples) of samples (channels, n): a stretch of them, or silence behind."""
        x = self.cropped(x, place)
        return torch.nn.functional.pad(x, (0, self.samples - x.shape[1]))

    def _levelled(self, x: Tensor) -> Tensor:
        peak = float(x.abs().max()) if x.numel() else 0.0
        if peak < SILENT:
            if self.silence:
                return x
            raise SoundError("it is silent")
        if self.normalise == "none":
            return x.clamp(-1, 1)
        gain = self.level / peak
        if self.normalise == "lufs":
            found = loudness(x, self.rate)
            if math.isfinite(found):
                gain = min(gain, 10 ** ((self.lufs - found) / 20))
        return x * gain
