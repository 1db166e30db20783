"""Digits: 1,797 handwritten digits of 8 x 8 pixels and 17 grey levels, shipped inside scikit-learn.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI repository, 1998), its test part.
Every fifth picture of each class is held out: a split that depends on nothing, so figures of any two runs compare.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from suffuse.data import Data, Spec

from suffuse_image.data.pictures import Pictures

__all__ = ["Digits", "held_out"]


def held_out(labels: torch.Tensor, every: int = 5) -> torch.Tensor:
    """Return a mask, shape (N,), of each class's pictures number `every`, 2 `every`, … in order."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in set(labels.tolist()):
        mask[(labels == label).nonzero()[every - 1 :: every]] = True
    return mask


class Digits(Data):
    """The digits of scikit-learn: 1,442 for training, 355 held out, shape (1, 8, 8), 10 classes; no download.

    Arguments:
        batch_size: Items per device and micro-batch.
        workers: Processes that read.
        seed: Seed of the order.
    """

    def setup(self) -> None:
        """Read the pictures."""
        if hasattr(self, "train"):
            return
        table = load_digits()
        pixels = torch.from_numpy(table.images).to(torch.uint8)[:, None]
        labels = torch.from_numpy(table.target).long()
        val = held_out(labels)
        self.spec = Spec(labels=tuple(str(digit) for digit in range(10)), about={"size": [8, 8], "channels": 1})
        self.train = Pictures(pixels[~val], labels[~val], levels=16)
        self.val = Pictures(pixels[val], labels[val], levels=16)
