"""Reconstruction: how well pictures come back from an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from suffuse.data import Data
from suffuse.errors import DataError
from suffuse.frechet import frechet
from torch import Tensor

from suffuse_image.features import stack, train

__all__ = ["Reconstruction", "ssim"]


class Reconstruction:
    """Figures of reconstructions of held-out pictures.

    - ``psnr``: 10 log10(1 / mean square error) of a picture in decibels, the mean.
    - ``ssim``: structural similarity, the mean.
    - ``rfid``: Fréchet distance of the reconstructions to the pictures themselves, in the features of a network trained
      on the run's classes, or an untrained one without classes; it compares runs on the same data.
    - ``rfid_real``: the same distance between two halves of the held-out pictures, of half as many.

    Arguments:
        train_steps: Steps of the network.
        seed: Its seed.
    """

    def __init__(self, train_steps: int = 300, seed: int = 0) -> None:
        self.train_steps, self.seed = train_steps, seed

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of reconstructions (N, C, H, W) of held-out pictures, evenly spaced."""
        items = data.sample(len(samples), held_out=True)
        if len(items) < 2:
            raise DataError("metrics: fewer than two held-out pictures; add data")
        x, y = torch.stack([item["x"] for item in items]).float(), samples.float().cpu()
        error = (y - x).double().square().flatten(1).mean(1)
        found = {"psnr": float((-10 * error.clamp(min=1e-10).log10()).mean()), "ssim": ssim(y, x)}
        shown = data.sample(2000)
        labels = torch.tensor([int(item["cond"].get("label", -1)) for item in shown])
        known = len(data.spec.labels) > 1 and bool((labels >= 0).any())
        pictures = stack(lambda i: shown[i]["x"], len(shown))
        net = train(pictures, labels if known else None, len(data.spec.labels), self.train_steps, self.seed)
        own, back = (net.read(stack(z.__getitem__, len(z)))[0] for z in (x, y))
        return found | {"rfid": frechet(back, own), "rfid_real": frechet(own[::2], own[1::2])}


def ssim(y: Tensor, x: Tensor) -> float:
    """Return the mean structural similarity of pictures (B, C, H, W) in [0, 1].

    "Image Quality Assessment: From Error Visibility to Structural Similarity", Wang et al. 2004, eq. 13; the window's
    deviation is 1.5 pixels, less for pictures of fewer than 11.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    sigma = min(1.5, (min(x.shape[-2:]) - 1) / 7)
    value = structural_similarity_index_measure(y.double(), x.double(), sigma=sigma, data_range=1.0)
    assert isinstance(value, Tensor)
    return float(value)
