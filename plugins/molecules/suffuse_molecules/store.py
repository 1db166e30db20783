"""Store: molecules of any sizes in flat arrays that are mapped from files, whatever they were read from.

A store is a directory of ``.npy`` files: ``pos`` (A, 3) float32 in Angstrom, ``z``, ``charge`` (A,), ``offsets``
(M + 1,), ``bonds`` (E, 3), ``bond_offsets`` (M + 1,), ``props`` (M, K) float32 with their names in ``store.json``, and
the canonical SMILES without hydrogens and stereo, one per line. Nothing is read before it is asked for, so a set may be
larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from suffuse.errors import DataError

from suffuse_molecules.record import Record, to_mol

__all__ = ["FORMAT", "Store", "cache_path", "canonical", "split_of", "write_store"]

FORMAT = 1
"""Version of the files; others are made anew."""

ARRAYS = ("pos", "z", "charge", "offsets", "bonds", "bond_offsets", "props")


@dataclass(frozen=True)
class Store:
    """Molecules with all their hydrogens, and what came with them.

    Arguments:
        pos: Angstrom, float32, shape (A, 3).
        z: Atomic numbers, uint8, shape (A,).
        charge: Formal charges, int8, shape (A,).
        offsets: Molecule m has the atoms offsets[m] to offsets[m + 1]; int64, shape (M + 1,).
        bonds: Rows (i, j, order), atoms counted within their molecule; int16, shape (E, 3).
        bond_offsets: As `offsets`, shape (M + 1,).
        props: Float32, shape (M, K), NaN where one is missing.
        columns: Names of the properties, K of them.
        smiles: Canonical SMILES without hydrogens and stereo.
    """

    pos: NDArray[np.float32]
    z: NDArray[np.uint8]
    charge: NDArray[np.int8]
    offsets: NDArray[np.int64]
    bonds: NDArray[np.int16]
    bond_offsets: NDArray[np.int64]
    props: NDArray[np.float32]
    columns: tuple[str, ...]
    smiles: Sequence[str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Record:
        first, last = self.offsets[index], self.offsets[index + 1]
        start, end = self.bond_offsets[index], self.bond_offsets[index + 1]
        props = dict(zip(self.columns, map(float, self.props[index]), strict=True))
        return Record(
            np.asarray(self.pos[first:last]), np.asarray(self.z[first:last]), np.asarray(self.charge[first:last]),
            np.asarray(self.bonds[start:end]), props, self.smiles[index],
        )  # fmt: skip

    @classmethod
    def of(cls, records: Iterable[Record], smiles: Iterable[str] | None = None) -> Store:
        """Return a store in memory of `records`; their SMILES are worked out unless given."""
        rows = list(records)
        columns = tuple(sorted({name for row in rows for name in row.props}))
        props = np.array([[row.props.get(name, np.nan) for name in columns] for row in rows], np.float32)
        return cls(
            np.concatenate([row.pos for row in rows] or [np.zeros((0, 3), np.float32)]).astype(np.float32),
            np.concatenate([row.z for row in rows] or [np.zeros(0, np.uint8)]).astype(np.uint8),
            np.concatenate([row.charge for row in rows] or [np.zeros(0, np.int8)]).astype(np.int8),
            np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
            np.concatenate([row.bonds for row in rows] or [np.zeros((0, 3), np.int16)]).astype(np.int16),
            np.concatenate([[0], np.cumsum([len(row.bonds) for row in rows])]).astype(np.int64),
            props.reshape(len(rows), len(columns)), columns,
            list(smiles) if smiles is not None else [canonical(row) for row in rows],
        )  # fmt: skip

    @classmethod
    def open(cls, path: Path) -> Store:
        """Return the store in a directory, its arrays mapped.

        Raises:
            DataError: When it is not whole.
        """
        try:
            about = json.loads((path / "store.json").read_text())
            arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
            smiles = (path / "smiles.txt").read_text().splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no store of molecules: {error}; remove it and it is made again") from error
        found = cls(**arrays, columns=tuple(about["columns"]), smiles=smiles)
        if about["format"] != FORMAT or len(smiles) != len(found):
            raise DataError(f"{path} is a store of another version; remove it and it is made again")
        return found

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Atoms of each molecule with its hydrogens, shape (M,)."""
        return np.diff(self.offsets)

    def subset(self, rows: Sequence[int]) -> Store:
        """Return the molecules `rows` in memory."""
        return Store.of([self[i] for i in rows], [self.smiles[i] for i in rows])


def write_store(path: Path, store: Store, report: Mapping[str, Any] | None = None) -> Store:
    """Write a store under another name, put it in place, and return it mapped.

    Arguments:
        path: Directory; another process may have made it meanwhile, whose work is then kept.
        store: What to write.
        report: Plain values kept beside, for example what was left out and why.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name in ARRAYS:
        np.save(temporary / f"{name}.npy", getattr(store, name))
    (temporary / "smiles.txt").write_text("".join(f"{smiles}\n" for smiles in store.smiles))
    about = {"format": FORMAT, "columns": list(store.columns), "report": dict(report or {})}
    (temporary / "store.json").write_text(json.dumps(about, indent=1) + "\n")
    try:
        temporary.rename(path)
    except OSError:
        shutil.rmtree(temporary)
    return Store.open(path)


def cache_path(kind: str, **what: Any) -> Path:
    """Return where a store made from `what` is kept: below ``SUFFUSE_CACHE``, or the user's cache directory."""
    root = Path(os.environ.get("SUFFUSE_CACHE") or Path.home() / ".cache" / "suffuse")
    text = json.dumps({"format": FORMAT, **what}, sort_keys=True, default=str)
    return root / "molecules" / f"{kind}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def canonical(record: Record) -> str:
    """Return the canonical SMILES without hydrogens and stereo; empty for what is no molecule."""
    mol = to_mol(record)
    if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return ""
    text: str = Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)
    return text


def split_of(smiles: str) -> str:
    """Return ``train`` (80 %), ``val`` or ``test`` (10 % each) by a hash of the canonical SMILES, the same anywhere."""
    bucket = int.from_bytes(hashlib.blake2b(smiles.encode(), digest_size=8, person=b"split").digest(), "big") % 10
    return "train" if bucket < 8 else ("val", "test")[bucket - 8]
