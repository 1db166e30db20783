"""MNIST and its drop-in replacement Fashion-MNIST: 60,000 + 10,000 grey pictures of 28 x 28 pixels, 10 classes.

Sources: Y. LeCun et al., "Gradient-based learning applied to document recognition" (1998); H. Xiao et al.,
"Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms" (2017). torchvision downloads; the
files are read here, since it wants them unpacked and a gzipped folder is as good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from suffuse import idx
from suffuse.data import Data, Spec
from suffuse.errors import DataError

from suffuse_image.data.pictures import Pictures

__all__ = ["MNIST", "FashionMNIST", "fetch"]

FILES = {"train": "train", "val": "t10k"}


class MNIST(Data):
    """Handwritten digits, shape (1, 28, 28); the real test set is held out.

    Arguments:
        root: Folder with ``MNIST/raw/*-ubyte`` or ``*-ubyte.gz``, the layout of torchvision; it may also
            hold ``raw/`` or the files themselves.
        download: Fetch the files into `root` when they are not there.
        flip: Mirror half of the training pictures.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        DataError: When files are missing or damaged.
    """

    name: ClassVar[str] = "MNIST"
    labels: ClassVar[tuple[str, ...]] = tuple("0123456789")

    def __init__(self, root: str = "data", download: bool = False, flip: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.download, self.flip = Path(root), download, flip

    def setup(self) -> None:
        """Read both splits into memory."""
        if hasattr(self, "train"):
            return
        folder = self._folder()
        if folder is None and self.download:
            fetch(self.name, self.root)
            folder = self._folder()
        if folder is None:
            raise DataError(
                f"data.root={self.root}: no {self.name} files in {self.root / self.name / 'raw'}; "
                "put them there or set data.download=true"
            )
        self.spec = Spec(labels=self.labels, about={"size": [28, 28], "channels": 1})
        self.train = self._split(folder, "train")
        self.val = self._split(folder, "val")

    def _folder(self) -> Path | None:
        names = [f"{part}-{what}-ubyte" for part in FILES.values() for what in ("images-idx3", "labels-idx1")]
        for folder in (self.root / self.name / "raw", self.root / "raw", self.root):
            if all(idx.find(folder, name) for name in names):
                return folder
        return None

    def _split(self, folder: Path, split: str) -> Pictures:
        images = idx.find(folder, f"{FILES[split]}-images-idx3-ubyte")
        labels = idx.find(folder, f"{FILES[split]}-labels-idx1-ubyte")
        assert images is not None and labels is not None  # `_folder` found all four
        x, y = idx.read(images, 3), idx.read(labels, 1)
        if len(x) != len(y) or (len(y) and int(y.max()) >= len(self.labels)):
            raise DataError(f"data.root: {images} and {labels.name} do not belong together; fetch both again")
        return Pictures(x[:, None], y.long(), flip=self.flip and split == "train", seed=self.seed)


class FashionMNIST(MNIST):
    """Pieces of clothing, shape (1, 28, 28); the real test set is held out. Arguments and errors as `MNIST`."""

    name: ClassVar[str] = "FashionMNIST"
    labels: ClassVar[tuple[str, ...]] = (
        "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    )  # fmt: skip


def fetch(name: str, root: Path) -> None:
    """Download a data set of torchvision into `root`.

    Raises:
        DataError: When nothing could be fetched or written.
    """
    from torchvision import datasets  # type: ignore[import-untyped]  # heavy, and needed for a download only

    try:
        getattr(datasets, name)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"data.download=true: cannot fetch {name} into data.root={root}: {text}") from error
