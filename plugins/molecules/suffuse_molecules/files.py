"""Files: a user's own molecules as a data set, read once and kept in the cache."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from suffuse.errors import ConfigError, DataError
from suffuse.training.progress import say

from suffuse_molecules import readers
from suffuse_molecules.data import MoleculeData
from suffuse_molecules.readers.collect import ELEMENTS, Limits, Skip, collect
from suffuse_molecules.record import Record
from suffuse_molecules.store import Store, cache_path, write_store

__all__ = ["QM9", "SDF", "XYZ", "Geom", "Smiles"]

EVERY = 10.0
"""Seconds between lines of progress."""


class _Files(MoleculeData):
    """Base: reads `path` with one of `suffuse_molecules.readers`.

    Arguments:
        path: A file, a folder, a pattern or a list of them.
        elements: Symbols that are kept; molecules with others are left out and counted.
        largest: Most atoms of a molecule, hydrogens among them; larger ones are left out and counted.
        read: What the reader is told, kept in the key of the cache.
        options: See `MoleculeData`.

    Raises:
        ConfigError: Without a path.
        DataError: When nothing can be used.
    """

    def __init__(
        self, path: str | Sequence[str] | None, elements: Sequence[str] | None = None, largest: int | None = None,
        read: dict[str, Any] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if path is None:
            raise ConfigError("data.path is not set; give a file or folder as data.path=…")
        self.path: Any = path if isinstance(path, str | Path) else [str(one) for one in path]
        self.options = read or {}
        self.limits = Limits(tuple(elements or ELEMENTS), largest)

    @abstractmethod
    def read(self) -> Iterator[Record | Skip]:
        """Yield what is in the files."""

    def load(self) -> Store:
        """Return the store of the files, from the cache where they have not changed."""
        kind = type(self).__name__.lower()
        key = {"files": self._stamps(), "elements": self.limits.elements, "largest": self.limits.max_atoms}
        where = cache_path(kind, **key, **self.options)
        if where.is_dir():
            return Store.open(where)
        found = collect(_counted(self.read()), str(self.path), self.limits)
        say(f"{found.summary()}; kept in {where}")
        return write_store(where, found.store, {"skipped": dict(found.skipped), "examples": found.examples})

    def _stamps(self) -> list[tuple[str, int, int]]:
        """Return name, size and time of change of every file."""
        paths = [self.path] if isinstance(self.path, str | Path) else self.path
        found: list[tuple[str, int, int]] = []
        for one in paths:
            path = Path(one).expanduser()
            parent = path.parent if path.parent.is_dir() else Path()
            inside = path.rglob("*") if path.is_dir() else [path] if path.exists() else parent.glob(path.name)
            found += [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(inside) if f.is_file()]
        if not found:
            raise DataError(f"data.path={self.path}: no such file or folder")
        return found


def _counted(found: Iterator[Record | Skip]) -> Iterator[Record | Skip]:
    """Say now and then how many entries were read: nobody knows how many there are."""
    shown = time.monotonic()
    for number, entry in enumerate(found, 1):
        if time.monotonic() - shown > EVERY:
            shown = time.monotonic()
            say(f"read {number:,} entries")
        yield entry


class SDF(_Files):
    """SDF files of any vendor.

    Arguments:
        keep_largest: Of several fragments keep the largest.
        options: See the base.
    """

    def __init__(self, path: Any = None, keep_largest: bool = False, **options: Any) -> None:
        super().__init__(path, read={"keep_largest": keep_largest}, **options)

    def read(self) -> Iterator[Record | Skip]:
        """Yield what is in the files."""
        return readers.read_sdf(self.path, **self.options)


class Smiles(_Files):
    """Tables of SMILES, embedded by ETKDG and a force field in `workers` processes.

    Arguments:
        column: Name of the SMILES' column.
        limit: Only the first so many rows.
        options: See the base.
    """

    def __init__(self, path: Any = None, column: str | None = None, limit: int | None = None, **options: Any) -> None:
        super().__init__(path, read={"column": column, "limit": limit}, **options)

    def read(self) -> Iterator[Record | Skip]:
        """Yield what is in the files."""
        return readers.read_smiles(self.path, workers=max(1, self.workers), **self.options)


class XYZ(_Files):
    """XYZ files, whose bonds are perceived.

    Arguments:
        charge: Net charge, where a comment line does not say.
        options: See the base.
    """

    def __init__(self, path: Any = None, charge: int = 0, **options: Any) -> None:
        super().__init__(path, read={"charge": charge}, **options)

    def read(self) -> Iterator[Record | Skip]:
        """Yield what is in the files."""
        return readers.read_xyz(self.path, **self.options)


class QM9(_Files):
    """The raw files of QM9; its properties, energies in eV, can be conditions."""

    def __init__(self, path: Any = None, **options: Any) -> None:
        super().__init__(path, **options)

    def read(self) -> Iterator[Record | Skip]:
        """Yield what is in the files."""
        return readers.read_qm9(self.path[0] if isinstance(self.path, list) else self.path)


class Geom(_Files):
    """GEOM's pickles, through a reader that runs nothing in them.

    Arguments:
        conformers: Most conformers of a molecule.
        options: See the base.
    """

    def __init__(self, path: Any = None, conformers: int = 1, **options: Any) -> None:
        super().__init__(path, read={"conformers": conformers}, **options)

    def read(self) -> Iterator[Record | Skip]:
        """Yield what is in the files."""
        return readers.read_geom(self.path, **self.options)
