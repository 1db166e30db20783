"""Folder: pictures of any size and format in a folder, with classes or captions where there are some.

The layouts are those of `suffuse_image.data.listing`. Without a ``val/`` folder of its own the held-out set is the
files whose hashed path falls below `val_fraction`: the same ones on every machine and for every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suffuse.data import Data, Spec
from suffuse.errors import ConfigError
from suffuse.listing import Record, class_names, held_out, splits

from suffuse_image.data.decode import Decoder, suffixes
from suffuse_image.data.pictures import Pictures
from suffuse_image.data.reading import Reader

__all__ = ["Folder", "check_fraction"]


class Folder(Data):
    """A folder of pictures, shape (channels, height, width).

    Arguments:
        path: The folder.
        size: Side, or [height, width], in pixels.
        fit: ``crop``, ``letterbox`` or ``stretch``, see `Decoder`.
        channels: 3 (RGB) or 1 (grey).
        background: Colour behind transparency and beside letterboxed pictures.
        flip: Mirror half of the training pictures, other ones in each epoch.
        val_fraction: Fraction held out when the folder has no ``val/``.
        cache: Decode once and keep the pictures in memory (up to 4 GiB), rather than whenever they are asked for.
        max_bad: Fraction of the files that may be damaged.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning.
        DataError: In `setup`, when the folder, its metadata or its files cannot be used.
    """

    def __init__(
        self, path: str | None = None, size: int | Sequence[int] = 64, fit: str = "crop", channels: int = 3,
        background: str = "white", flip: bool = False, val_fraction: float = 0.1, cache: bool = True,
        max_bad: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to a folder with images")
        self.path, self.flip, self.val_fraction = Path(path), flip, check_fraction(val_fraction)
        self.reader = Reader(Decoder(size, channels, fit, background), cache, max_bad)

    def setup(self) -> None:
        """List the folder and decode what is kept in memory."""
        if hasattr(self, "train"):
            return
        found = splits(self.path, suffixes())
        if "all" in found:
            held = held_out(found["all"], self.val_fraction)
            train, val = (_where(found["all"], held, inside) for inside in (False, True))
        else:
            train, val = found["train"], found["val"]
        self.spec = Spec(labels=class_names(train + val))
        self.train, self.val = self._read(train, self.flip), self._read(val, False)

    def _read(self, records: list[Record], flip: bool) -> Pictures:
        number = {name: i for i, name in enumerate(self.spec.labels)}
        labels = [number.get(r.label, -1) if r.label is not None else -1 for r in records] if number else None
        texts = [r.text for r in records] if any(r.text for r in records) else []
        paths, keys = [r.path for r in records], [r.key for r in records]
        return self.reader.read(paths, keys, labels, texts, flip=flip, seed=self.seed)


def check_fraction(fraction: float) -> float:
    """Return `fraction`, or raise `ConfigError` when it is not between 0 and 1."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ConfigError(f"data.val_fraction={fraction} must lie between 0 and 1, for example 0.1")
    return float(fraction)


def _where(records: list[Record], keys: set[str], inside: bool) -> list[Record]:
    return [record for record in records if (record.key in keys) == inside]
