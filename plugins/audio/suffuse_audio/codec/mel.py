r"""Mel: the logarithm of the mel spectrogram, one picture per channel. What the ear needs, without its phase.

s = log10(max(mel |STFT|, 10^(f / 20))) standardised with the data's mean and deviation, f the floor in decibels. The
way back is a guess: mel bins to a spectrogram by least squares, its phase by Griffin and Lim's iteration ("Signal
Estimation from Modified Short-Time Fourier Transform", 1984; with momentum, Perraudin et al. 2013), or by a vocoder.
The log-spectral distance of the round trip is what `tests` state. The state is (B, C, bins, N / hop).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from suffuse.errors import ConfigError
from torch import Tensor

from suffuse_audio import dsp
from suffuse_audio.codec.base import AudioCodec, counts
from suffuse_audio.codec.griffin_lim import griffin_lim

__all__ = ["Mel", "inverse_mel"]


class Mel(AudioCodec):
    """Log-mel spectrogram.

    Arguments:
        size: Samples of a window.
        hop: Samples between windows; the length must be a multiple.
        bins: Mel bins.
        floor: Decibels below full scale under which everything is silence.
        iterations: Of Griffin and Lim.
        vocoder: Called with mel amplitudes (B, C, bins, frames); returns samples (B, C, n). Takes the place of Griffin
            and Lim.
        options: Arguments of `AudioCodec`.

    Raises:
        ConfigError: For sizes that do not fit together.
    """

    tolerance = float("inf")
    decibels = 4.0

    def __init__(
        self, size: int = 512, hop: int = 128, bins: int = 64, floor: float = -80.0, iterations: int = 60,
        vocoder: Callable[[Tensor], Tensor] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        counts(size=size, hop=hop, bins=bins, iterations=iterations)
        if hop > size // 2:
            raise ConfigError(f"codec.hop={hop} must be at most half of codec.size={size}")
        if self.samples % hop:
            raise ConfigError(f"codec.hop={hop} does not divide the {self.samples} samples of a sound")
        self.size, self.hop, self.bins, self.floor = size, hop, bins, floor
        self.iterations, self.vocoder = iterations, vocoder
        self.frame, self.overlap = hop, (size - hop) // 2
        self._mean, self._scale = float(self.stats.get("mean", -2.0)), float(self.stats.get("scale", 1.0))

    def amplitudes(self, x: Tensor) -> Tensor:
        """Return mel amplitudes (B, C, bins, frames) of samples (B, C, N)."""
        found: Tensor = dsp.mel(self.rate, self.size, self.hop, self.bins, 1.0).to(x.device)(x.float())
        return found[..., : x.shape[-1] // self.hop]

    @property
    def least(self) -> int:
        """A window, beyond whose half the ends are mirrored."""
        return self.size

    def statistics(self, x: Tensor) -> Mapping[str, Any]:
        """Return mean and deviation of the logarithm."""
        log = self._log(x).double()
        return {"mean": round(log.mean().item(), 6), "scale": round(max(log.std().item(), 1e-6), 6)}

    def analyse(self, x: Tensor) -> Tensor:
        """Return the standardised log-mel spectrogram (B, C, bins, N / hop)."""
        return (self._log(x) - self._mean) / self._scale

    def synthesise(self, state: Tensor) -> Tensor:
        """Return samples (B, C, N) that have about this spectrogram."""
        log = state.float() * self._scale + self._mean
        amplitudes = 10 ** log.clamp(max=4.0)
        # The floor stands for silence.
        amplitudes = torch.where(log <= self.floor / 20 + 1e-3, torch.zeros_like(amplitudes), amplitudes)
        samples = state.shape[-1] * self.hop
        if self.vocoder is not None:
            return self.vocoder(amplitudes)[..., :samples]
        spectrum = inverse_mel(amplitudes, self.rate, self.size)
        return griffin_lim(spectrum, self.size, self.hop, self.iterations, samples)

    def _log(self, x: Tensor) -> Tensor:
        return self.amplitudes(x).clamp(min=10 ** (self.floor / 20)).log10()


def inverse_mel(amplitudes: Tensor, rate: int, size: int) -> Tensor:
    """Return spectrograms (..., size / 2 + 1, frames) that have these mel amplitudes, at least 0.

    Least squares by multiplicative updates ("Learning the parts of objects by non-negative matrix factorization", Lee
    and Seung 1999), from the transpose: twenty steps, no solver.
    """
    bank = dsp.mel(rate, size, size // 4, amplitudes.shape[-2], 1.0).mel_scale.fb.to(amplitudes)  # (bins of f, mel)
    s = (bank @ amplitudes).clamp(min=1e-9)
    wanted = bank @ amplitudes
    for _ in range(20):
        s = s * wanted / (bank @ (bank.T @ s)).clamp(min=1e-12)
    return s
