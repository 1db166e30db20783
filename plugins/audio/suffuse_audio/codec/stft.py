r"""Stft: the short-time Fourier transform with compressed magnitudes, exactly invertible.

X[k, i] = sum_n w_n x[i H + n] exp(-2 pi i k n / N), stored as |X|^p exp(i arg X) divided by its deviation; the root of
a Hann window at both ends, which overlap to a constant for N / H a multiple of 2. The sound is taken as a loop. The
bins at 0 and at half the rate are real, so they share one complex place: N / 2 bins. The state is (B, 2 C, N / 2,
frames): real and imaginary parts as the channels of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from suffuse.errors import ConfigError
from torch import Tensor

from suffuse_audio.codec.base import AudioCodec

__all__ = ["Stft"]


class Stft(AudioCodec):
    """Complex spectrogram.

    Arguments:
        size: N, samples of a window.
        hop: H, samples between windows; it divides half of `size`.
        power: p, compression of magnitudes, in (0, 1].
        options: Arguments of `AudioCodec`.

    Raises:
        ConfigError: For sizes that do not fit together.
    """

    def __init__(self, size: int = 256, hop: int = 128, power: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        if size < 4 or hop < 1 or size % (2 * hop):
            raise ConfigError(f"codec.size={size} must be a multiple of twice codec.hop={hop}")
        if not 0 < power <= 1:
            raise ConfigError(f"codec.power={power} must be above 0 and at most 1")
        if self.samples % hop:
            raise ConfigError(f"codec.hop={hop} does not divide the {self.samples} samples of a sound")
        self.size, self.hop, self.power = size, hop, power
        self.frame, self.overlap = hop, (size - hop) // 2
        self._window = torch.hann_window(size, dtype=torch.float64).sqrt().float()
        self._scale = float(self.stats.get("scale", 1.0))

    def statistics(self, x: Tensor) -> Mapping[str, Any]:
        """Return the deviation of the compressed spectrogram."""
        return {"scale": round(max(self._compressed(x.float()).double().std().item(), 1e-6), 7)}

    def analyse(self, x: Tensor) -> Tensor:
        """Return the compressed spectrogram (B, 2 C, N / 2, frames)."""
        return self._compressed(x.float()) / self._scale

    def synthesise(self, state: Tensor) -> Tensor:
        """Return samples (B, C, N)."""
        c = (state.float() * self._scale).unflatten(1, (self.channels, 2))
        size = torch.linalg.vector_norm(c, dim=2, keepdim=True)
        # The packed place is two real numbers, each with a magnitude of its own.
        first = c[:, :, :, :1].sign() * c[:, :, :, :1].abs() ** (1 / self.power)
        c = torch.cat([first, (c * size ** (1 / self.power - 1))[:, :, :, 1:]], 3)
        spectrum = torch.complex(c[:, :, 0], c[:, :, 1])
        ends = c[:, :, :, 0]
        zero, half = (torch.complex(part, torch.zeros_like(part))[:, :, None] for part in ends.unbind(2))
        spectrum = torch.cat([zero, spectrum[:, :, 1:], half], 2)
        parts = torch.fft.irfft(spectrum, n=self.size, dim=2) * self._window.to(c)[:, None]
        return self._added(parts)

    def _compressed(self, x: Tensor) -> Tensor:
        before = self.overlap
        looped = torch.cat([x[..., x.shape[-1] - before :], x, x[..., : self.size - self.hop - before]], -1)
        frames = looped.unfold(-1, self.size, self.hop) * self._window.to(x)
        spectrum = torch.fft.rfft(frames, dim=-1).transpose(-1, -2)
        c = torch.view_as_real(spectrum).movedim(-1, 2)
        ends = torch.stack([c[:, :, 0, 0], c[:, :, 0, -1]], 2)[:, :, :, None]
        ends = ends.sign() * ends.abs() ** self.power
        size = torch.linalg.vector_norm(c[:, :, :, 1:-1], dim=2, keepdim=True)
        rest = c[:, :, :, 1:-1] * size.clamp(min=1e-20) ** (self.power - 1)
        return torch.cat([ends, rest], 3).flatten(1, 2)

    def _added(self, parts: Tensor) -> Tensor:
        """Return the overlapping frames (B, C, size, frames) laid over one another in a loop."""
        share = self.size // self.hop
        pieces = parts.transpose(-1, -2).unflatten(-1, (share, self.hop))
        total = sum((pieces[..., j, :].roll(j, -2) for j in range(share)), torch.zeros_like(pieces[..., 0, :]))
        return total.flatten(-2).roll(-self.overlap, -1) / (share / 2)
