"""Griffin and Lim: samples from the magnitudes of a short-time Fourier transform.

Phases are made consistent by going to samples and back ("Signal Estimation from Modified Short-Time Fourier Transform",
Griffin and Lim 1984), with momentum ("A fast Griffin-Lim algorithm", Perraudin et al. 2013, algorithm 2). Everything is
deterministic: phases start where each bin's own tone would have them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["griffin_lim"]


def griffin_lim(spectrum: Tensor, size: int, hop: int, iterations: int, samples: int) -> Tensor:
    """Return samples (..., n) whose short-time Fourier transform has about these magnitudes, phases from zero noise.

    Arguments:
        spectrum: Magnitudes (..., size / 2 + 1, frames), centred frames.
        size: Samples of the Hann window.
        hop: Samples between windows.
        iterations: How often phases are made consistent.
        samples: Length n.
    """
    window = torch.hann_window(size, device=spectrum.device)
    shape, flat = spectrum.shape, spectrum.flatten(0, -3)
    flat = torch.cat([flat, flat[..., -1:]], -1)  # the frame centred on the end
    # Phases that advance as each bin's own tone would: a start that depends on no random numbers.
    k = torch.arange(flat.shape[-2], device=flat.device, dtype=torch.float32)[:, None]
    i = torch.arange(flat.shape[-1], device=flat.device, dtype=torch.float32)
    phase = torch.polar(torch.ones_like(flat), (2 * torch.pi * hop / size * k * i).remainder(2 * torch.pi) + k * k)
    before = torch.zeros_like(phase)
    for _ in range(iterations):
        y = torch.istft(flat * phase, size, hop, window=window, length=samples)
        again = torch.stft(y, size, hop, window=window, return_complex=True)[..., : flat.shape[-1]]
        moved = again - 0.99 / 1.99 * before
        phase, before = moved / moved.abs().clamp(min=1e-16), again
    y = torch.istft(flat * phase, size, hop, window=window, length=samples)
    return y.reshape(*shape[:-2], samples)
