r"""Loss: how far two sounds are apart in their spectra, for training autoencoders.

Per resolution, with S and S' the magnitudes of the short-time Fourier transform,

    |S - S'|_F / |S|_F  +  mean |log S - log S'|,

spectral convergence and log magnitude ("Fast Spectrogram Inversion Using Multi-Head Convolutional Neural Networks",
Arik et al. 2018, eqs. 2 and 3; "Parallel WaveGAN", Yamamoto et al. 2020, eqs. 3 to 6), as auraloss has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from suffuse.errors import ConfigError
from suffuse.reconstruction import Term
from torch import Tensor

__all__ = ["MultiResolutionSTFT"]


class MultiResolutionSTFT(Term):
    """Mean of both distances over several window sizes.

    Arguments:
        sizes: Samples of the windows; hops are a quarter of them.
        floor: Magnitude below which nothing is told apart, of sounds with deviation 1.
        weight: See `suffuse.reconstruction.Term`.

    Raises:
        ConfigError: Without sizes, or for one that is no whole number of at least 16.
    """

    def __init__(self, sizes: Sequence[int] = (1024, 512, 128), floor: float = 1e-3, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 16 for n in sizes):
            raise ConfigError(f"objective.terms: sizes={list(sizes)} must be whole numbers of at least 16")
        self.sizes, self.floor = tuple(sizes), floor

    def forward(self, drawn: Tensor, x: Tensor) -> Tensor:
        """Return the distance of each row; both of shape (B, C, N), samples."""
        total = torch.zeros(len(x), device=x.device)
        for size in self.sizes:
            window = torch.hann_window(size, device=x.device)
            ours, theirs = (self._magnitudes(y, size, window) for y in (drawn, x))
            total = total + (theirs - ours).norm(dim=1) / theirs.norm(dim=1).clamp(min=self.floor)
            total = total + (theirs.log() - ours.log()).abs().mean(1)
        return total / len(self.sizes)

    def _magnitudes(self, y: Tensor, size: int, window: Tensor) -> Tensor:
        flat = y.float().flatten(0, 1)
        spectrum = torch.stft(flat, size, size // 4, window=window, pad_mode="constant", return_complex=True)
        # The square root has no gradient at zero; a magnitude of 1 is a full-scale partial.
        power = torch.view_as_real(spectrum).square().sum(-1) * (2 / float(window.sum())) ** 2
        return (power + self.floor**2).sqrt().unflatten(0, (len(y), -1)).flatten(1)
