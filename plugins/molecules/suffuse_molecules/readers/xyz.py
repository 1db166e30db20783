"""XYZ: elements and coordinates; bonds are perceived."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds
from rdkit.Geometry import Point3D
from suffuse.errors import DataError

from suffuse_molecules.readers.collect import Skip, files
from suffuse_molecules.record import Record, from_mol

__all__ = ["Frame", "frames", "perceive", "read_xyz"]

Frame = tuple[str, list[str], NDArray[np.float64], str]
"""Place, symbols, coordinates (n, 3) in Angstrom, and the comment line."""


def read_xyz(where: str | Path | Sequence[str | Path], charge: int = 0) -> Iterator[Record | Skip]:
    """Yield every frame of XYZ files, also extended ones, with bonds perceived from the distances.

    Arguments:
        where: A file, a folder, a pattern or a list of them.
        charge: Net charge of every molecule, where its comment line does not say ``charge=…``.
    """
    for file in files(where, (".xyz", ".extxyz")):
        for found in frames(file):
            if isinstance(found, Skip):
                yield found
                continue
            place, symbols, pos, comment = found
            numbers = _numbers(comment)
            try:
                mol = perceive(symbols, pos, int(numbers.get("charge", charge)))
                yield from_mol(mol, props={k: v for k, v in numbers.items() if k != "charge"})
            except DataError as error:
                yield Skip(place, str(error))


def frames(file: Path) -> Iterator[Frame | Skip]:
    """Yield the frames of a file; what follows a broken count is given up, since frames cannot be told apart."""
    lines = file.read_text(errors="replace").splitlines()
    start, number = 0, 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        number += 1
        place = f"{file.name}: line {start + 1}"
        count = lines[start].strip()
        if not count.isdigit() or start + 2 + int(count) > len(lines):
            yield Skip(place, "broken frame")
            return
        rows = [line.split() for line in lines[start + 2 : start + 2 + int(count)]]
        comment = lines[start + 1]
        start += 2 + int(count)
        try:
            first, at = _columns(comment)
            symbols = [row[first] for row in rows]
            pos = np.array([[float(v.replace("*^", "e")) for v in row[at : at + 3]] for row in rows]).reshape(-1, 3)
        except (ValueError, IndexError):
            yield Skip(place, "broken coordinates")
            continue
        yield place, symbols, pos, comment


def _columns(comment: str) -> tuple[int, int]:
    """Return the columns of the symbol and of the first coordinate, as an extended comment line says."""
    found = re.search(r"Properties=(\S+)", comment)
    if not found:
        return 0, 1
    parts, place, where = found[1].split(":"), 0, {}
    for name, _, width in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        where[name] = place
        place += int(width)
    return where.get("species", 0), where.get("pos", 1)


def _numbers(comment: str) -> dict[str, float]:
    """Return the ``key=number`` pairs of a comment line."""
    pairs = re.findall(r"(\w+)=\"?([-+]?\d[\d.eE+-]*)\"?(?=\s|$)", comment)
    found = {}
    for name, value in pairs:
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found


def perceive(symbols: Sequence[str], pos: NDArray[np.float64], charge: int = 0) -> Chem.Mol:
    """Return the molecule whose bonds follow from its distances, by RDKit's DetermineBonds.

    Raises:
        DataError: With the reason why there is none.
    """
    if not np.isfinite(pos).all():
        raise DataError("NaN or infinite coordinates")
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(symbols))
    for i, (symbol, (x, y, z)) in enumerate(zip(symbols, pos.tolist(), strict=True)):
        try:
            mol.AddAtom(Chem.Atom(symbol.capitalize()) if not symbol.isdigit() else Chem.Atom(int(symbol)))
        except RuntimeError:
            raise DataError(f"{symbol!r} is no element") from None
        conformer.SetAtomPosition(i, Point3D(x, y, z))
    mol.AddConformer(conformer, assignId=True)
    with rdBase.BlockLogs():
        try:
            rdDetermineBonds.DetermineBonds(mol, charge=charge, allowChargedFragments=True, embedChiral=False)
            Chem.SanitizeMol(mol)
        except (ValueError, RuntimeError):
            raise DataError("no bonds fit the distances and the charge") from None
    return mol
