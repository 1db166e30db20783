"""HuggingFace: any image data set that the ``datasets`` library reads, by its name on the hub or by a local path.

A path may be a folder written by ``save_to_disk`` or whatever else ``load_dataset`` takes. Which columns hold picture,
class and caption is read off the features of the data set unless it is said. The library decodes nothing: the stored
bytes go through the same `Decoder` as files do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError, suggest
from suffuse.listing import Record, held_out

from suffuse_image.data.decode import Decoder
from suffuse_image.data.folder import check_fraction
from suffuse_image.data.pictures import Pictures
from suffuse_image.data.reading import Reader

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
        text: Column of the captions; by default ``text`` or ``caption``.
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
        val_fraction: float = 0.1, cache: bool = True, max_bad: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to a name on the Hugging Face hub or to a folder")
        self.path, self.subset, self.split, self.val_split = path, subset, split, val_split
        self.columns = {"image": image, "label": label, "text": text}
        self.flip, self.val_fraction = flip, check_fraction(val_fraction)
        self.reader = Reader(Decoder(size, channels, fit, background), cache, max_bad)

    def setup(self) -> None:
        """Load the table and decode what is kept in memory."""
        if hasattr(self, "train"):
            return
        tables = _load(self.path, self.subset)
        train = _split(tables, self.split, "data.split", self.path)
        name = self.val_split or next((n for n in ("validation", "valid", "val", "test") if n in tables), None)
        if name is not None and name != self.split:
            val = _split(tables, name, "data.val_split", self.path)
            rows = [list(range(len(train))), list(range(len(val)))]
        else:
            held = held_out([Record(Path(), str(i)) for i in range(len(train))], self.val_fraction)
            val, rows = train, [_rows(len(train), held, inside) for inside in (False, True)]
        columns = self._found(train.features)
        names = getattr(train.features.get(columns["label"]), "names", None) if columns["label"] else None
        self.spec = Spec(labels=tuple(names or ()))
        self.train = self._read(train, rows[0], columns, self.flip)
        self.val = self._read(val, rows[1], columns, False)

    def _found(self, features: Any) -> dict[str, str | None]:
        """Return the column of each role; those that were named must exist and be of the right kind."""
        kind = {name: type(feature).__name__ for name, feature in features.items()}
        for role, name in self.columns.items():
            if name is not None and name not in kind:
                raise DataError(f"data.{role}={name}: no such column{suggest(name, kind, listing='columns')}")
        chosen = {
            "image": self.columns["image"] or next((n for n, k in kind.items() if k == "Image"), None),
            "label": self.columns["label"] or next((n for n, k in kind.items() if k == "ClassLabel"), None),
            "text": self.columns["text"] or next((n for n in TEXTS if n in kind), None),
        }
        if chosen["image"] is None or kind[chosen["image"]] != "Image":
            raise DataError(f"data.image={chosen['image']}: no column of images; columns: {', '.join(kind)}")
        if chosen["label"] is not None and kind[chosen["label"]] != "ClassLabel":
            raise DataError(f"data.label={chosen['label']}: its feature is {kind[chosen['label']]}, not ClassLabel")
        return chosen

    def _read(self, table: Any, rows: Sequence[int], columns: dict[str, str | None], flip: bool) -> Pictures:
        def values(role: str) -> list[Any]:
            column = columns[role]
            if column is None:
                return []
            whole = table.select_columns([column])[:][column]
            return [whole[i] for i in rows]

        labels = [-1 if v is None else int(v) for v in values("label")] if self.spec.labels else None
        sources = _Rows(table, str(columns["image"]), rows)
        names = [f"row {i}" for i in rows]
        texts = ["" if v is None else str(v) for v in values("text")]
        return self.reader.read(sources, names, labels, texts, flip=flip, seed=self.seed)


class _Rows:
    """The stored pictures of some rows of a table, as bytes or as paths."""

    def __init__(self, table: Any, column: str, rows: Sequence[int]) -> None:
        from datasets import Image  # type: ignore[import-not-found, import-untyped]

        self.table = table.select_columns([column]).cast_column(column, Image(decode=False))
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Path | bytes:
        cell = self.table[self.rows[index]][self.column] or {}
        stored: bytes | None = cell.get("bytes")
        return stored if stored is not None else Path(cell.get("path") or "")


def _load(path: str, subset: str | None) -> Any:
    """Return the splits of a data set by name.

    Raises:
        ConfigError: When the library is not installed.
        DataError: When it cannot load the data set.
    """
    try:
        import datasets  # type: ignore[import-not-found, import-untyped]
    except ImportError as error:
        raise ConfigError("data=image/hf needs the datasets library: pip install 'suffuse-image[hf]'") from error
    folder = Path(path)
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)
        if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
            return {"train": datasets.load_from_disk(path)}
        return datasets.load_dataset(path, subset)
    # The library and its file systems raise a dozen kinds for what a wrong name or a missing network causes.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise DataError(f"data.path={path}: the datasets library cannot load it ({text}); check the name") from error


def _rows(count: int, held: set[str], inside: bool) -> list[int]:
    return [i for i in range(count) if (str(i) in held) == inside]


def _split(tables: Any, name: str, key: str, path: str) -> Any:
    if name not in tables:
        raise DataError(f"{key}={name}: no such split in {path}{suggest(name, tables, listing='splits')}")
    return tables[name]
