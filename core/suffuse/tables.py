"""Tables: data sets of the Hugging Face ``datasets`` library, which modalities read by column.

The library decodes nothing here; a modality reads the stored bytes. Which column has which role is read off the
features unless it is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suffuse.errors import ConfigError, DataError, suggest
from suffuse.listing import Record, held_out

__all__ = ["Part", "columns", "load", "parts", "stored"]

VAL = ("validation", "valid", "val", "test")


@dataclass(frozen=True)
class Part:
    """Some rows of a table.

    Arguments:
        table: The table.
        rows: Which of its rows.
    """

    table: Any
    rows: Sequence[int]


def load(path: str, subset: str | None, need: str, extra: str) -> Any:
    """Return the splits of a data set by name.

    Arguments:
        path: Name on the hub, a folder written by ``save_to_disk``, or whatever ``load_dataset`` takes.
        subset: Name of the configuration, where the data set has several.
        need: What needs the library, for the message.
        extra: What installs it.

    Raises:
        ConfigError: When the library is not installed.
        DataError: When it cannot load the data set.
    """
    try:
        import datasets  # type: ignore[import-not-found, import-untyped]
    except ImportError as error:
        raise ConfigError(f"{need} needs the datasets library: pip install '{extra}'") from error
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


def parts(tables: Any, path: str, split: str, val_split: str | None, fraction: float) -> tuple[Part, Part]:
    """Return what is trained on and what is held out.

    Arguments:
        tables: As `load` returns them.
        path: For messages.
        split: Split to train on.
        val_split: Split to hold out; by default the first of validation, valid, val, test that there is, else rows
            whose hashed number falls below `fraction`.
        fraction: See `val_split`.

    Raises:
        DataError: For a split that there is not.
    """
    train = _split(tables, split, "data.split", path)
    name = val_split or next((name for name in VAL if name in tables), None)
    if name is not None and name != split:
        val = _split(tables, name, "data.val_split", path)
        return Part(train, range(len(train))), Part(val, range(len(val)))
    held = held_out([Record(Path(), str(i)) for i in range(len(train))], fraction, "row")
    rows = [[i for i in range(len(train)) if (str(i) in held) == inside] for inside in (False, True)]
    return Part(train, rows[0]), Part(train, rows[1])


def columns(
    features: Any, asked: Mapping[str, str | None], role: str, kind: str, texts: Sequence[str]
) -> dict[str, str | None]:
    """Return the column of each role of `asked`: `role`, ``label`` and ``text``.

    Arguments:
        features: Features of a table.
        asked: Names that were given; they must exist and be of the right kind.
        role: What the modality reads, such as ``image``.
        kind: Name of its feature, such as ``Image``.
        texts: Names that captions go by.

    Raises:
        DataError: For a column that there is not, or of another kind.
    """
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    for key, name in asked.items():
        if name is not None and name not in kinds:
            raise DataError(f"data.{key}={name}: no such column{suggest(name, kinds, listing='columns')}")
    chosen = {
        role: asked[role] or next((name for name, k in kinds.items() if k == kind), None),
        "label": asked["label"] or next((name for name, k in kinds.items() if k == "ClassLabel"), None),
        "text": asked["text"] or next((name for name in texts if name in kinds), None),
    }
    found, label = chosen[role], chosen["label"]
    if found is None or kinds[found] != kind:
        raise DataError(f"data.{role}={found}: no column of {role}s; columns: {', '.join(kinds)}")
    if label is not None and kinds[label] != "ClassLabel":
        raise DataError(f"data.label={label}: its feature is {kinds[label]}, not ClassLabel")
    return chosen


def stored(cell: Mapping[str, Any] | None) -> Path | bytes:
    """Return what a cell that is not decoded holds: bytes, or a path."""
    raw: bytes | None = (cell or {}).get("bytes")
    return raw if raw is not None else Path((cell or {}).get("path") or "")


def _split(tables: Any, name: str, key: str, path: str) -> Any:
    if name not in tables:
        raise DataError(f"{key}={name}: no such split in {path}{suggest(name, tables, listing='splits')}")
    return tables[name]
