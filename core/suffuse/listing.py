"""Listing: which files a folder holds, with the class and the caption of each.

Two layouts, both those of the "imagefolder" and "audiofolder" of Hugging Face datasets: ``metadata.csv`` or
``metadata.jsonl`` with ``file_name`` and, where there are some, ``label`` and ``text``; or one subfolder per class. The
folder may hold its splits as ``train/`` and ``val/`` (or ``validation/``, ``valid/``, ``test/``).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from suffuse.errors import DataError, suggest

__all__ = ["Columns", "Record", "Source", "check_columns", "class_names", "held_out", "splits"]

Splits = dict[str, list["Record"]]
VAL = ("val", "validation", "valid", "test")


@dataclass(frozen=True)
class Record:
    """One file.

    Arguments:
        path: Where it lies.
        key: Its path relative to the folder, with ``/``; the split is a function of it.
        label: Name of its class, or None.
        text: Its caption, or nothing.
        texts: All of its captions, the one above first.
        rewritten: Captions that a model wrote.
        hint: A picture that belongs to it, as an outline or a depth map, or None.
    """

    path: Path
    key: str
    label: str | None = None
    text: str = ""
    texts: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    hint: Path | None = None


@dataclass(frozen=True)
class Source:
    """What is decoded to an item, and what is known of it.

    Arguments:
        source: A path, or the bytes of a file.
        name: How it is called in messages.
        label: Its class, -1 for none.
        text: Its caption.
    """

    source: Path | bytes
    name: str
    label: int = -1
    text: str = ""


@dataclass(frozen=True)
class Columns:
    """Which columns of a metadata file are read.

    Arguments:
        text: Of captions, one or several; by default ``text``, or else ``caption``. In JSON a row may hold a list.
        rewritten: Of captions that a model wrote.
        hint: Of the file names of pictures that belong to the items.
    """

    text: str | Sequence[str] | None = None
    rewritten: str | Sequence[str] | None = None
    hint: str | None = None

    def captions(self, row: Mapping[Any, Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the original and the rewritten captions of a row; `where` names it in messages."""
        own = self.text
        if own is None:
            own = "text" if "text" in row or "caption" not in row else "caption"
        else:
            check_columns(own, row, where, "data.text")
        if self.rewritten is not None:
            check_columns(self.rewritten, row, where, "data.rewritten")
        return _texts(row, own), _texts(row, self.rewritten or ())


def check_columns(wanted: str | Sequence[str], row: Collection[Any], where: str, key: str) -> None:
    """Raise `DataError` when a column that `key` names is not there."""
    for name in _several(wanted):
        if name not in row:
            shown = ", ".join(str(column) for column in row)
            raise DataError(f"{key}={name}: {where} has no such column (it has: {shown}){suggest(name, map(str, row))}")


def _texts(row: Mapping[Any, Any], columns: str | Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name in _several(columns):
        value = row.get(name)
        found += [str(text) for text in (value if isinstance(value, list) else [value]) if text is not None]
    return tuple(text.strip() for text in found if text.strip())


def _several(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def splits(
    root: Path, suffixes: Collection[str], what: str = "images", such: str = ".png or .jpg", folders: bool = False,
    columns: Columns | None = None,
) -> Splits:  # fmt: skip
    """Return the records of ``train`` and ``val``, or of ``all`` when the folder itself makes no difference.

    Arguments:
        root: The folder.
        suffixes: Lower-case endings of the files that count, where no metadata names them.
        what: What they are, for messages.
        such: Examples of their endings.
        folders: Metadata may name folders as well as files.
        columns: Which columns of metadata are read.

    Raises:
        DataError: When the folder is missing or holds none, or its metadata cannot be used.
    """
    if not root.is_dir():
        raise DataError(f"data.path={root}: no such folder; set data.path to one with {what}")
    if _metadata(root) is not None:
        found = _by_first_part(_records(root, suffixes, folders, columns))
    else:
        names = {child.name for child in _children(root) if child.is_dir()}
        val = next((name for name in VAL if name in names), None)
        if "train" in names and names <= {"train", *VAL}:
            found = {"train": _records(root / "train", suffixes, folders, columns)}
            found |= {"val": _records(root / val, suffixes, folders, columns)} if val else {}
        else:
            found = {"all": _records(root, suffixes, folders, columns)}
    for name, records in found.items():
        if not records:
            where = root if name == "all" else root / name
            raise DataError(f"data.path={root}: no {what} in {where}; it needs files like {such}")
    return found if "val" in found else {"all": next(iter(found.values()))}


def held_out(records: list[Record], fraction: float, what: str = "image") -> set[str]:
    """Return the keys held out: those whose hash falls below `fraction`, and at least one, but not all.

    The hash sees the key alone, so a file stays in its split when others come and go.

    Raises:
        DataError: When there are not two to part.
    """
    keys = sorted({record.key for record in records}, key=_hash)
    if len(keys) < 2:
        raise DataError(f"data.path: one {what} cannot be split into training and held-out ones; add more {what}s")
    count = sum(_hash(key) < fraction for key in keys)
    return set(keys[: min(max(count, 1), len(keys) - 1)])


def class_names(records: list[Record]) -> tuple[str, ...]:
    """Return the names of the classes in order, whole numbers by value; empty when there are fewer than two."""
    names = {record.label for record in records if record.label is not None}
    if len(names) < 2:
        return ()
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _hash(key: str) -> float:
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") / 2**64


def _by_first_part(records: list[Record]) -> dict[str, list[Record]]:
    """Part the records of one metadata file by the folder they lie in, when those are the folders of splits."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(PurePosixPath(record.key).parts[0], []).append(record)
    val = next((name for name in VAL if name in parts), None)
    if val is not None and "train" in parts and parts.keys() <= {"train", *VAL}:
        return {"train": parts["train"], "val": parts[val]}
    return {"all": records}


def _records(root: Path, suffixes: Collection[str], folders: bool, columns: Columns | None) -> list[Record]:
    """Return the records of one folder without splits, in the order of the metadata or of the paths."""
    metadata = _metadata(root)
    if metadata is not None:
        return _described(root, metadata, folders, columns or Columns())
    if columns is not None and columns != Columns():
        raise DataError(f"data.text and the like name columns, but {root} has no metadata.csv or metadata.jsonl")
    found = []
    for path in _files(root, set()):
        if path.suffix.lower() in suffixes:
            parts = path.relative_to(root).parts
            found.append(Record(path, "/".join(parts), label=parts[0] if len(parts) > 1 else None))
    return found


def _children(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted, without what systems hide there."""
    return sorted(child for child in folder.iterdir() if not child.name.startswith((".", "__MACOSX")))


def _files(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the files below a folder in the order of their paths; links are followed, circles are not."""
    resolved = folder.resolve()
    if resolved in seen:
        return
    for child in _children(folder):
        if child.is_dir():
            yield from _files(child, seen | {resolved})
        elif child.is_file():
            yield child


def _metadata(root: Path) -> Path | None:
    return next((p for p in (root / "metadata.csv", root / "metadata.jsonl") if p.is_file()), None)


def _described(root: Path, metadata: Path, folders: bool, columns: Columns) -> list[Record]:
    """Return the records of a metadata file; every file it names must exist inside the folder."""
    records, missing = [], []
    for line, row in _rows(metadata):
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            shown = ", ".join(map(str, row))
            raise DataError(f"data.path: {metadata} line {line} has no file_name (it has: {shown}); add that column")
        key = PurePosixPath(name.replace("\\", "/"))
        if key.is_absolute() or ".." in key.parts:
            raise DataError(f"data.path: {metadata} line {line} names {name}, outside the folder; use a path inside it")
        path = root / key
        if not path.is_file() and not (folders and path.is_dir()):
            missing.append(f"{name} (line {line})")
        texts, rewritten = columns.captions(row, f"{metadata} line {line}")
        label = row.get("label")
        named = None if label is None or str(label) == "" else str(label)
        hint = _hint(root, row, columns, f"{metadata} line {line}")
        records.append(Record(path, str(key), named, (texts or ("",))[0], texts, rewritten, hint))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        shown = f"{', '.join(missing[:3])}{more}"
        raise DataError(f"data.path: {metadata} names files that do not exist: {shown}; add them or remove the rows")
    return records


def _hint(root: Path, row: Mapping[Any, Any], columns: Columns, where: str) -> Path | None:
    """Return the picture that belongs to an item, where a column names one."""
    if columns.hint is None:
        return None
    check_columns(columns.hint, row, where, "data.hint.column")
    key = PurePosixPath(str(row[columns.hint]).replace("\\", "/"))
    if key.is_absolute() or ".." in key.parts:
        raise DataError(f"data.hint.column={columns.hint}: {where} names {key}, outside the folder; move it inside")
    path = root / key
    if not path.is_file():
        raise DataError(f"data.hint.column={columns.hint}: {where} names {row[columns.hint]}, which does not exist")
    return path


def _rows(metadata: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Yield the rows of a CSV or JSON-lines file with their line numbers."""
    try:
        # utf-8-sig: spreadsheets put a byte-order mark in front of the first column's name.
        with metadata.open(encoding="utf-8-sig", newline="") as lines:
            if metadata.suffix == ".csv":
                reader = csv.DictReader(lines)
                for row in reader:
                    yield reader.line_num, row
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"data.path: {metadata} line {number} is not a JSON object; write one per line")
                    yield number, row
    except (ValueError, csv.Error) as error:
        kind = metadata.suffix[1:].upper()
        raise DataError(f"data.path: cannot read {metadata} ({error}); save it as {kind} in UTF-8") from error
