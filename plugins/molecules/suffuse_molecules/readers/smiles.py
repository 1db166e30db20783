"""SMILES: graphs in a table, embedded into space."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from suffuse.errors import ConfigError, DataError, suggest

from suffuse_molecules.embed import embed_many
from suffuse_molecules.readers.collect import Skip, files
from suffuse_molecules.record import Record

__all__ = ["read_rows", "read_smiles"]

ENDINGS = (".smi", ".smiles", ".csv", ".tsv", ".txt", ".smi.gz", ".csv.gz", ".tsv.gz")

Row = tuple[str, str, dict[str, float]]


def read_smiles(
    where: str | Path | Sequence[str | Path], column: str | None = None, workers: int = 1, limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Record | Skip]:  # fmt: skip
    """Yield every row, embedded by ETKDG and a force field.

    Arguments:
        where: A file, a folder, a pattern or a list of them: SMI (SMILES, then a name) or a table with a header.
        column: Name of the SMILES' column; by default the one called ``smiles``, whatever its case.
        workers: Processes.
        limit: Only the first so many rows.
        progress: Called with the number of rows done.

    Raises:
        ConfigError: For a column that is not there.
    """
    rows = [row for file in files(where, ENDINGS) for row in read_rows(file, column)][:limit]
    embedded = embed_many([smiles for _, smiles, _ in rows], workers, progress)
    for (place, _, props), found in zip(rows, embedded, strict=True):
        yield Skip(place, found) if isinstance(found, str) else replace(found, props=props)


def read_rows(file: Path, column: str | None = None) -> list[Row]:
    """Return place, SMILES and numbers of every row of a file."""
    kind = file.name.lower().removesuffix(".gz")
    try:
        with gzip.open(file, "rt") if file.name.lower().endswith(".gz") else file.open(newline="") as stream:
            if kind.endswith((".csv", ".tsv")):
                return _table(stream, file, column, "\t" if kind.endswith(".tsv") else ",")
            return [
                (f"{file.name}: line {number}", line.split()[0], {})
                for number, line in enumerate(stream, 1)
                if line.strip()
            ]
    except (UnicodeDecodeError, OSError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as text: {error}") from error


def _table(stream: TextIO, file: Path, column: str | None, comma: str) -> list[Row]:
    reader = csv.DictReader(stream, delimiter=comma)
    header = list(reader.fieldnames or [])
    by_name = {name.strip().lower(): name for name in header}
    chosen = by_name.get((column or "smiles").lower())
    if chosen is None:
        listed = suggest(column or "smiles", header, listing="columns")
        raise ConfigError(f"data.column={column or 'smiles'}: {file.name} has no such column{listed}")
    rows: list[Row] = []
    for row in reader:
        numbers = {name: _number(row.get(name)) for name in header if name != chosen}
        rows.append((f"{file.name}: line {reader.line_num}", (row.get(chosen) or "").strip(), numbers))
    # A column in which nothing is a number is text, and no property.
    text = {name for name in header if name != chosen and all(row[2][name] != row[2][name] for row in rows)}
    return [(place, smiles, {k: v for k, v in numbers.items() if k not in text}) for place, smiles, numbers in rows]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
