"""CIFAR-10: 50,000 + 10,000 colour pictures of 32 x 32 pixels in 10 classes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). The files are pickles, which
torchvision opens only after it has compared their checksums with those of the original release.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from suffuse.data import Data, Spec
from suffuse.errors import DataError

from suffuse_image.data.mnist import fetch
from suffuse_image.data.pictures import Pictures

__all__ = ["CIFAR10"]

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10(Data):
    """Natural pictures, shape (3, 32, 32); the real test set is held out.

    Arguments:
        root: Folder with ``cifar-10-batches-py/``.
        download: Fetch the files into `root` when they are not there.
        flip: Mirror half of the training pictures.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        DataError: When files are missing or damaged.
    """

    def __init__(self, root: str = "data", download: bool = False, flip: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.download, self.flip = Path(root), download, flip

    def setup(self) -> None:
        """Read both splits into memory."""
        if hasattr(self, "train"):
            return
        if self.download:
            fetch("CIFAR10", self.root)
        self.spec = Spec(labels=LABELS, about={"size": [32, 32], "channels": 3})
        self.train, self.val = self._split(True), self._split(False)

    def _split(self, train: bool) -> Pictures:
        from torchvision import datasets  # type: ignore[import-untyped]  # heavy, and needed here only

        try:
            source = datasets.CIFAR10(str(self.root), train=train)
        except RuntimeError as error:
            folder = self.root / datasets.CIFAR10.base_folder
            raise DataError(
                f"data.root={self.root}: CIFAR-10 is missing or damaged in {folder}; put the files of "
                "cifar-10-python.tar.gz there or set data.download=true"
            ) from error
        pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        return Pictures(pixels, torch.tensor(source.targets), flip=self.flip and train, seed=self.seed)
