"""HuggingFace: any image data set that the ``datasets`` library reads, by its name on the hub or by a local path.

A path may be a folder written by ``save_to_disk`` or whatever else ``load_dataset`` takes. Which columns hold picture,
class and caption is read off the features of the data set unless it is said. The library decodes nothing: the stored
bytes go through the same `Decoder` as files do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from suffuse.captions import Captions
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError
from suffuse.tables import Part, columns, load, parts, stored

from suffuse_image.data.decode import Decoder
from suffuse_image.data.folder import about, check_fraction
from suffuse_image.data.pictures import Pictures
from suffuse_image.data.reading import Reader
from suffuse_image.hints import Hint

__all__ = ["HuggingFace"]

TEXTS = ("text", "caption", "captions")


class HuggingFace(Data):
    """A data set of the ``datasets`` library, shape (channels, height, width).

    Arguments:
        path: Name on the hub, or a local path.
        subset: Name of the configuration, where the data set has several.
        split: Split to train on.
        val_split: Split to hold out; by default the first of validation, valid, val, test that there is, else rows
            whose hashed number falls below `val_fraction`.
        image: Column of the pictures; by default the first with the feature Image.
        label: Column of the classes; by default the first with the feature ClassLabel.
        text: Column of the captions; by default ``text`` or ``caption``. A cell may hold a list.
        rewritten: Column of captions that a model wrote.
        captions: How one of several captions is chosen, see `suffuse.captions.Captions`.
        size: See `Folder`, as for `fit`, `channels`, `background`, `flip`, `val_fraction`, `cache` and `max_bad`.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning, or the library is not installed.
        DataError: In `setup`, when the data set, a split or a column cannot be used.
    """

    def __init__(
        self, path: str | None = None, subset: str | None = None, split: str = "train", val_split: str | None = None,
        image: str | None = None, label: str | None = None, text: str | None = None, size: int | Sequence[int] = 64,
        fit: str = "crop", channels: int = 3, background: str = "white", flip: bool = False,
        val_fraction: float = 0.1, cache: bool = True, max_bad: float = 0.01, rewritten: str | None = None,
        captions: Mapping[str, Any] | None = None, hint: Hint | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to a name on the Hugging Face hub or to a folder")
        self.path, self.subset, self.split, self.val_split = path, subset, split, val_split
        self.columns = {"image": image, "label": label, "text": text, "rewritten": rewritten}
        self.captions, self.hint = dict(captions or {}), hint
        self.flip, self.val_fraction = flip, check_fraction(val_fraction)
        self.reader = Reader(Decoder(size, channels, fit, background), cache, max_bad)

    def setup(self) -> None:
        """Load the table and decode what is kept in memory."""
        if hasattr(self, "train"):
            return
        tables = load(self.path, self.subset, "data=image/hf", "suffuse-image[hf]")
        train, val = parts(tables, self.path, self.split, self.val_split, self.val_fraction)
        features = train.table.features
        found = columns(features, self.columns, "image", "Image", TEXTS) | {"rewritten": self.columns["rewritten"]}
        names = getattr(features.get(found["label"]), "names", None) if found["label"] else None
        self.spec = Spec(labels=tuple(names or ()))
        self.train = self._read(train, found, self.flip)
        self.val = self._read(val, found, False)
        self.spec = replace(self.spec, about=about(self.reader.decoder.shape, self.val, self.hint))

    def _read(self, part: Part, columns: dict[str, str | None], flip: bool) -> Pictures:
        table, rows = part.table, part.rows

        def values(role: str) -> list[Any]:
            column = columns[role]
            if column is None:
                return []
            whole = table.select_columns([column])[:][column]
            return [whole[i] for i in rows]

        labels = [-1 if v is None else int(v) for v in values("label")] if self.spec.labels else None
        sources = _Rows(table, str(columns["image"]), rows)
        names = [f"row {i}" for i in rows]
        own, more = ([_listed(v) for v in values(role)] for role in ("text", "rewritten"))
        texts = Captions(own or [()] * len(rows), more, seed=self.seed, **self.captions) if own or more else None
        return self.reader.read(sources, names, labels, texts, flip=flip, seed=self.seed, hint=self.hint)


def _listed(cell: Any) -> list[str]:
    """Return the captions in a cell: none, one or a list."""
    found = cell if isinstance(cell, list) else [cell]
    return [str(text) for text in found if text is not None and str(text).strip()]


class _Rows:
    """The stored pictures of some rows of a table, as bytes or as paths."""

    def __init__(self, table: Any, column: str, rows: Sequence[int]) -> None:
        from datasets import Image  # type: ignore[import-not-found, import-untyped]

        self.table = table.select_columns([column]).cast_column(column, Image(decode=False))
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Path | bytes:
        return stored(self.table[self.rows[index]][self.column])
