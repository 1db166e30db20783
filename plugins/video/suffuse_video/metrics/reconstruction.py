"""Reconstruction: how well clips come back from an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from suffuse.data import Data
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Reconstruction", "ssim"]


class Reconstruction:
    """``psnr``, ``ssim`` and ``flicker``, means over held-out clips.

    ``psnr`` is 10 log10(1 / mean square error) of a clip in decibels, ``ssim`` the structural similarity of its frames,
    and ``flicker`` the mean absolute change of the error from each frame to the next, in units of the range: nothing
    for an error that stands still.
    """

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of reconstructions of held-out clips, evenly spaced."""
        items = data.sample(len(samples), held_out=True)
        x = torch.stack([item["x"] for item in items]).float().to(samples.device)
        y = samples.float()
        error = (y - x).double()
        psnr = -10 * error.square().flatten(1).mean(1).clamp(min=1e-10).log10()
        flicker = error.diff(dim=2).abs().mean() if x.shape[2] > 1 else torch.zeros(())
        similar = ssim(*(part.transpose(1, 2).flatten(0, 1) for part in (y, x)))
        return {"psnr": float(psnr.mean()), "ssim": float(similar.mean()), "flicker": float(flicker)}


def ssim(y: Tensor, x: Tensor) -> Tensor:
    """Return the structural similarity of pictures (B, C, H, W) in [0, 1], one number each.

    Gaussian windows of 11 pixels and the deviation 1.5, smaller for smaller pictures, at every place where one fits
    ("Image Quality Assessment: From Error Visibility to Structural Similarity", Wang et al. 2004, eq. 13).
    """
    size = min(11, *x.shape[-2:])
    at = torch.arange(size, device=x.device, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-at.square() / (2 * 1.5**2))
    window = (line / line.sum()).outer(line / line.sum())[None, None]

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(z.flatten(0, 1)[:, None], window).unflatten(0, z.shape[:2])

    x, y = x.double(), y.double()
    a, b = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - a * a, mean(y * y) - b * b, mean(x * y) - a * b
    near, alike = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2), (2 * cov + 0.03**2) / (var_x + var_y + 0.03**2)
    return (near * alike).flatten(1).mean(1)
