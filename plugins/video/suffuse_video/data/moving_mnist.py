"""Moving MNIST: handwritten digits that bounce off the walls of a dark square, drawn when a clip is asked for.

Source: N. Srivastava, E. Mansimov, R. Salakhutdinov, "Unsupervised Learning of Video Representations using LSTMs"
(2015). Clip i is a function of i alone: which digits of MNIST, where they start, and in which direction they go, each
at a constant speed; at a wall the component towards it changes its sign. Places are whole pixels, and of overlapping
digits the brighter pixel shows. The digits of the held-out clips are those of MNIST's own test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from suffuse import idx
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError
from suffuse.text import encoded
from torch.utils.data import Dataset

from suffuse_video.data.decode import Shape, whole
from suffuse_video.data.folder import facts

__all__ = ["Bouncing", "MovingMNIST", "caption"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 28


class MovingMNIST(Data):
    """Clips of bouncing digits, float32 (3, frames, size, size), with captions as "a three and a seven".

    Arguments:
        root: Folder with ``MNIST/raw/*-ubyte`` or ``*-ubyte.gz``, the layout of torchvision; it may also hold ``raw/``
            or the files themselves.
        count: Training clips.
        val_count: Held-out clips.
        frames: Frames of a clip.
        size: Side in pixels, at least that of a digit, 28.
        digits: How many digits.
        speed: Pixels per frame of every digit.
        fps: Frames per second, for the files.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: For numbers out of range.
        DataError: In `setup`, when files are missing or damaged.
    """

    def __init__(
        self, root: str = "data", count: int = 10_000, val_count: int = 500, frames: int = 16, size: int = 64,
        digits: int = 2, speed: float = 3.0, fps: float = 8.0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        self.root, self.count = Path(root).expanduser(), whole(count, "data.count")
        self.val_count, self.digits = whole(val_count, "data.val_count"), whole(digits, "data.digits")
        self.shape = Shape(whole(frames, "data.frames"), *[whole(size, "data.size", SIDE)] * 2)
        for name, value in (("speed", speed), ("fps", fps)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1000:
                raise ConfigError(f"data.{name}={value} must be a number above 0 and below 1000")
        self.speed, self.fps = float(speed), float(fps)

    def setup(self) -> None:
        """Read MNIST; clips are drawn when they are asked for."""
        if hasattr(self, "train"):
            return
        folder = self._folder()
        train, val = self._digits(folder, "train"), self._digits(folder, "t10k")
        self.train = Bouncing(*train, self.count, self.shape, self.digits, self.speed)
        self.val = Bouncing(*val, self.val_count, self.shape, self.digits, self.speed, first=10**9)
        texts = sorted({self.train.caption(i) for i in range(min(self.count, 500))})
        self.spec = Spec(about=facts(self.shape, self.fps, texts))

    def _folder(self) -> Path:
        names = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
        for folder in (self.root / "MNIST" / "raw", self.root / "raw", self.root):
            if all(idx.find(folder, name) for name in names):
                return folder
        where = self.root / "MNIST" / "raw"
        raise DataError(
            f"data.root={self.root}: no MNIST files in {where}; put train-images-idx3-ubyte.gz, "
            "train-labels-idx1-ubyte.gz and the two of t10k there"
        )

    def _digits(self, folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        images = idx.find(folder, f"{part}-images-idx3-ubyte")
        labels = idx.find(folder, f"{part}-labels-idx1-ubyte")
        assert images is not None and labels is not None  # `_folder` found all four
        x, y = idx.read(images, 3).numpy(), idx.read(labels, 1).numpy()
        if len(x) != len(y) or x.shape[1:] != (SIDE, SIDE) or (len(y) and y.max() > 9) or not len(y):
            raise DataError(f"data.root: {images} and {labels.name} do not belong together; fetch both again")
        return x, y


class Bouncing(Dataset[dict[str, Any]]):
    """Clips number `first`, `first` + 1, …

    Arguments:
        images: uint8 (N, 28, 28).
        labels: uint8 (N,).
        count: How many clips.
        shape: Of a clip.
        digits: Digits of a clip.
        speed: Pixels per frame.
        first: Number of the first clip.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.uint8], count: int, shape: Shape, digits: int, speed: float,
        first: int = 0,
    ) -> None:  # fmt: skip
        self.images, self.labels, self.count, self.shape = images, labels, count, shape
        self.digits, self.speed, self.first = digits, speed, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of {self.count}")
        chosen, paths = self._story(index)
        frames = np.zeros(self.shape, np.uint8)
        for digit, path in zip(chosen, paths, strict=True):
            for frame, (top, left) in zip(frames, path, strict=True):
                part = frame[top : top + SIDE, left : left + SIDE]
                np.maximum(part, self.images[digit], out=part)
        x = torch.from_numpy(frames).float().div(255).expand(3, *self.shape).clone()
        return {"x": x, "cond": {"text": encoded(self.caption(index))}, "index": index}

    def caption(self, index: int) -> str:
        """Return the caption of a clip."""
        return caption([int(self.labels[digit]) for digit in self._story(index)[0]])

    def _story(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which digits, and their top left corners at each frame, (digits, frames, 2)."""
        random = np.random.default_rng([self.first + index, 53])
        chosen = random.integers(len(self.images), size=self.digits)
        free = self.shape.height - SIDE
        start = random.uniform(0, free, (self.digits, 1, 2))
        angle = random.uniform(0, 2 * np.pi, (self.digits, 1))
        step = self.speed * np.stack([np.sin(angle), np.cos(angle)], -1)
        along = start + step * np.arange(self.shape.frames)[:, None]
        # A path that is folded at the walls bounces.
        folded = free - np.abs(along % (2 * free) - free) if free else np.zeros_like(along)
        return chosen, np.rint(folded).astype(np.int64)


def caption(digits: Sequence[int]) -> str:
    """Return what is seen, smaller digits first: "a three and a seven", "two ones", "an eight"."""
    named = []
    for digit in sorted(set(digits)):
        number = list(digits).count(digit)
        plural = WORDS[digit] + ("es" if WORDS[digit].endswith(("x", "o")) else "s")
        article = "an" if digit == 8 else "a"
        named.append(f"{article} {WORDS[digit]}" if number == 1 else f"{_number(number)} {plural}")
    return " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))


def _number(value: int) -> str:
    return WORDS[value] if value < len(WORDS) else str(value)
