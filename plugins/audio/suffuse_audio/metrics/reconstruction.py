"""Reconstruction: how well sounds come back from an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from suffuse.data import Data, spaced
from torch import Tensor

from suffuse_audio.loss import MultiResolutionSTFT

__all__ = ["Reconstruction"]


class Reconstruction:
    """``si_sdr``, ``log_spectral`` and ``stft``, means over held-out sounds.

    ``si_sdr`` is the scale-invariant signal-to-distortion ratio in decibels ("SDR - half-baked or well done?", Le Roux
    et al. 2019, eq. 5), ``log_spectral`` the root mean square difference of log magnitudes in decibels, down to 60
    below full scale, and ``stft`` the distance of `suffuse_audio.loss`.
    """

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of reconstructions of held-out sounds, evenly spaced."""
        val: Any = data.val
        x = torch.stack([val[i]["x"] for i in spaced(len(val), len(samples))]).float().to(samples.device)
        y = samples.float()
        a, b = x.flatten(1), y.flatten(1)
        target = a * (a * b).sum(1, keepdim=True) / a.square().sum(1, keepdim=True).clamp(min=1e-12)
        away = (b - target).square().sum(1).clamp(min=1e-12)
        ratio = 10 * (target.square().sum(1).clamp(min=1e-12) / away).log10()
        logs = [20 * _magnitudes(part).clamp(min=1e-3).log10() for part in (x, y)]
        apart = (logs[0] - logs[1]).square().flatten(1).mean(1).sqrt()
        return {
            "si_sdr": float(ratio.mean()),
            "log_spectral": float(apart.mean()),
            "stft": float(MultiResolutionSTFT()(y, x).mean()),
        }


def _magnitudes(x: Tensor) -> Tensor:
    window = torch.hann_window(512, device=x.device)
    spectrum = torch.stft(x.flatten(0, 1), 512, 128, window=window, pad_mode="constant", return_complex=True)
    return spectrum.abs().unflatten(0, (len(x), -1)) * (2 / float(window.sum()))
