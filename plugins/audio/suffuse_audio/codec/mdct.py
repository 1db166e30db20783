r"""Mdct: the modified discrete cosine transform, critically sampled, orthonormal, and its own inverse's transpose.

X_k[i] = sqrt(2 / M) sum_n w_n x[iM + n] cos(pi / M (n + 1/2 + M/2) (k + 1/2)),  w_n = sin(pi (n + 1/2) / 2M),

n = 0 … 2M - 1, k = 0 … M - 1: "Analysis/Synthesis Filter Bank Design Based on Time Domain Aliasing Cancellation",
Princen and Bradley 1986. The sound is taken as a loop, so N samples are N / M frames of M numbers, nothing is lost at
the ends, there is no phase to guess and no vocoder. The state is (B, C M, N / M): a column per frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from suffuse.errors import ConfigError
from torch import Tensor

from suffuse_audio.codec.base import AudioCodec

__all__ = ["Mdct"]


class Mdct(AudioCodec):
    """MDCT coefficients, each bin divided by its own standard deviation in the data.

    Arguments:
        size: M, coefficients per frame.
        power: Coefficients c become sign(c) |c|^power: below 1 quiet ones count more. Exactly undone.
        floor: Bins quieter than this share of the average are not raised further.
        options: Arguments of `AudioCodec`.

    Raises:
        ConfigError: For a size below 2 or odd, a power outside (0, 1], or a length that it does not divide.
    """

    def __init__(self, size: int = 128, power: float = 1.0, floor: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        if size < 2 or size % 2:
            raise ConfigError(f"codec.size={size} must be even and at least 2")
        if not 0 < power <= 1:
            raise ConfigError(f"codec.power={power} must be above 0 and at most 1")
        if self.samples % size:
            raise ConfigError(f"codec.size={size} does not divide the {self.samples} samples of a sound")
        self.size, self.power, self.floor = size, power, floor
        self.frame, self.overlap = size, size // 2
        n, k = torch.arange(2 * size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
        window = torch.sin(torch.pi * (n + 0.5) / (2 * size))
        basis = (2 / size) ** 0.5 * torch.cos(torch.pi / size * (n[:, None] + 0.5 + size / 2) * (k + 0.5))
        self._basis = (window[:, None] * basis).float()
        scale = self.stats.get("scale")
        self._scale = torch.ones(size) if scale is None else torch.tensor(scale)

    def transform(self, x: Tensor) -> Tensor:
        """Return the coefficients (B, C, M, N / M) of samples (B, C, N)."""
        half, size = self.size // 2, self.size
        if x.shape[-1] % size:
            raise ConfigError(f"codec.size={size} does not divide the {x.shape[-1]} samples of a sound")
        # A frame is centred on its own M samples, so that time in the state is time in the sound.
        looped = torch.cat([x[..., -half:], x, x[..., :half]], -1)
        return (looped.unfold(-1, 2 * size, size) @ self._basis.to(x)).transpose(-1, -2)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Return the samples of coefficients."""
        half = self.size // 2
        parts = coefficients.transpose(-1, -2) @ self._basis.to(coefficients).T
        early, late = parts[..., : self.size], parts[..., self.size :]
        # The late half of a frame lies over the early half of the next; the last one's over the first one's.
        y = (early + late.roll(1, -2)).flatten(-2)
        return y.roll(-half, -1)

    def statistics(self, x: Tensor) -> Mapping[str, Any]:
        """Return the standard deviation of every bin."""
        spread = self.transform(x.float()).double().square().mean((0, 1, 3)).sqrt()
        spread = spread.clamp(min=float(spread.mean()) * self.floor).clamp(min=1e-6)
        return {"scale": [round(value, 7) for value in spread.tolist()]}

    def analyse(self, x: Tensor) -> Tensor:
        """Return scaled coefficients (B, C M, N / M)."""
        c = self.transform(x.float()) / self._scale.to(x.device)[:, None]
        if self.power != 1:
            c = c.sign() * c.abs() ** self.power
        return c.flatten(1, 2)

    def synthesise(self, state: Tensor) -> Tensor:
        """Return samples (B, C, N)."""
        c = state.float().unflatten(1, (self.channels, self.size))
        if self.power != 1:
            c = c.sign() * c.abs() ** (1 / self.power)
        return self.inverse(c * self._scale.to(c.device)[:, None])
