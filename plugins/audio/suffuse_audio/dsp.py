"""Dsp: torchaudio behind a guard, and the few transforms that the package uses of it.

torchaudio's last release imports only beside a torch built for the same CUDA; where it does not, the message says what
to install. Nothing imports it before it is used.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from suffuse.errors import SuffuseError
from torch import Tensor

__all__ = ["loudness", "mel", "resample", "torchaudio"]


@functools.cache
def torchaudio() -> Any:
    """Return the module.

    Raises:
        SuffuseError: When it cannot be imported beside this torch.
    """
    try:
        import torchaudio.functional
        import torchaudio.transforms
    except (ImportError, OSError, RuntimeError) as error:  # each of the three was seen
        text = " ".join(str(error).split())[:120]
        raise SuffuseError(
            f"torchaudio does not import beside torch {torch.__version__} ({text}); install a pair that fits: "
            'pip install "torch>=2.12,<2.15" "torchaudio==2.11.*"'
        ) from error
    return torchaudio


def resample(x: Tensor, old: int, new: int) -> Tensor:
    """Return samples (..., n) at another rate, by windowed sinc interpolation."""
    if old == new:
        return x
    resampled: Tensor = torchaudio().functional.resample(x, old, new)
    return resampled


def loudness(x: Tensor, rate: int) -> float:
    """Return the loudness of samples (channels, n) in LUFS (ITU-R BS.1770-4); -inf for silence.

    What is shorter than one block of 0.4 s is repeated until it is one.
    """
    block = int(0.4 * rate) + 1
    if x.shape[-1] < block:
        x = x.repeat(1, -(-block // max(x.shape[-1], 1)))
    if not x.any():
        return float("-inf")
    found = float(torchaudio().functional.loudness(x, rate))
    return found if found == found else float("-inf")


@functools.cache
def mel(rate: int, size: int, hop: int, bins: int, power: float = 2.0) -> Any:
    """Return a transform of samples (..., n) to a mel spectrogram (..., bins, frames)."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bins that are empty at low rates
        return torchaudio().transforms.MelSpectrogram(
            sample_rate=rate, n_fft=size, hop_length=hop, n_mels=bins, power=power, norm="slaney", mel_scale="slaney"
        )
