"""Hinted: whether samples agree with the pictures they were drawn for, with ``conditioner=image``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from suffuse.data import Data
from suffuse.errors import DataError
from suffuse.text import captions_of
from torch import Tensor
from torch.nn import functional as F

from suffuse_image.attributes import Attributes
from suffuse_image.grammar import by_caption

__all__ = ["Hinted"]


class Hinted:
    """Figures of samples drawn for the hints of held-out pictures, evenly spaced, as a run draws them.

    - ``hint_psnr``: of the hints of samples against those asked for, in decibels, the mean.
    - ``hint_psnr_swapped``: the same against those of other samples; what a model blind to them would score.
    - ``psnr``: of samples against the pictures that the hints are of.
    - ``psnr_enlarged``: of the hints themselves, enlarged by bicubic interpolation, where they are smaller pictures.
    - those of `suffuse_image.attributes.Attributes`, for the embedded set's captions.

    Arguments:
        seed: Seed of the swapping.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.attributes = seed, Attributes(seed)

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of pictures (N, C, H, W) in [0, 1].

        Raises:
            DataError: For data without hints.
        """
        hint: Any = getattr(data, "hint", None)
        if hint is None:
            raise DataError("metrics=image/hinted needs data.hint; this data has none")
        items = data.sample(len(samples), held_out=True)
        x = samples[: len(items)].float().cpu()
        truth = torch.stack([item["x"] for item in items]).float()
        asked = (torch.stack([item["cond"]["image"] for item in items]).float() + 1) / 2
        found = {"psnr": _psnr(x, truth)}
        if getattr(hint, "column", None) is None:
            own = hint(x)
            order = torch.randperm(len(own), generator=torch.Generator().manual_seed(self.seed))
            found |= {"hint_psnr": _psnr(own, asked), "hint_psnr_swapped": _psnr(own, asked[order])}
        if asked.shape[1] == truth.shape[1] and asked.shape[2] < truth.shape[2]:
            enlarged = F.interpolate(asked, truth.shape[2:], mode="bicubic").clamp(0, 1)
            found["psnr_enlarged"] = _psnr(enlarged, truth)
        if "text" in cond and any(text in by_caption() for text in captions_of(cond["text"])):
            found |= self.attributes(samples, cond, data)
        return found


def _psnr(a: Tensor, b: Tensor) -> float:
    """Return the mean over pictures of 10 log10(1 / mean square error), at most 100."""
    error = (a - b).double().square().flatten(1).mean(1)
    return float((-10 * error.clamp(min=1e-10).log10()).mean())
