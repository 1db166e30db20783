"""Augment: variations of a sound that leave what is said of it true.

Every draw is a function of seed, epoch and item, so a resumed run hears the same variations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import torch
from suffuse.errors import ConfigError, suggest
from suffuse.noise import KeyedNoise, mix
from torch import Tensor

from suffuse_audio.dsp import resample

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment:
    """What is varied, and how far.

    Arguments:
        gain: Decibels up and down.
        speed: Share by which a sound is faster or slower, pitch and all; in steps of a hundredth, by resampling.
        shift: Seconds by which it starts later or earlier; silence follows.
        polarity: Turn half of the sounds upside down.
        noise: Decibels below the sound's own level at which white noise is added; None for none.

    Raises:
        ConfigError: For a value without meaning; in `of`, for a name that is none of these.
    """

    gain: float = 0.0
    speed: float = 0.0
    shift: float = 0.0
    polarity: bool = False
    noise: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("gain", 40.0), ("speed", 0.5), ("shift", math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise ConfigError(f"data.augment.{name}={value} must be a number from 0 to {most:g}")
        if self.noise is not None and (isinstance(self.noise, bool) or not isinstance(self.noise, int | float)):
            raise ConfigError(f"data.augment.noise={self.noise} must be a number of decibels or null")

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Augment | None:
        """Return the variations of a config, None for none."""
        if not given:
            return None
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(f"data.augment.{name}: no such variation{suggest(name, known, listing='variations')}")
        return cls(**given)

    def __call__(self, x: Tensor, rate: int, seed: int, epoch: int, index: int) -> Tensor:
        """Return a variation of a clip (C, N), of its shape; a peak above 1 is brought down to 1."""
        noise = KeyedNoise(torch.tensor([mix(seed, epoch, index) % 2**62]))
        u = noise.uniform(torch.empty(1, 8), 0)[0].tolist()
        size = x.shape[1]
        if self.speed:
            # Whole hundredths keep the resampling filter short.
            factor = Fraction(round(100 * (1 + self.speed * (2 * u[0] - 1))), 100)
            x = resample(x, factor.numerator, factor.denominator)
            x = torch.nn.functional.pad(x[:, :size], (0, max(0, size - x.shape[1])))
        if self.shift:
            by = round(self.shift * rate * (2 * u[1] - 1))
            moved = torch.zeros_like(x)
            part = x[:, : size - by] if by >= 0 else x[:, -by:]
            moved[:, max(0, by) : max(0, by) + part.shape[1]] = part
            x = moved
        if self.gain:
            x = x * 10 ** (self.gain * (2 * u[2] - 1) / 20)
        if self.polarity and u[3] < 0.5:
            x = -x
        if self.noise is not None:
            level = float(x.square().mean().sqrt()) * 10 ** (self.noise / 20)
            x = x + level * noise.normal(x[None], 1)[0]
        return x / max(1.0, float(x.abs().max()))
