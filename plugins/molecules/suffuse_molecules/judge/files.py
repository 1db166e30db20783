"""Files: anyone's molecules as they are, to be judged: nothing is repaired, and what cannot be read has a reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rdkit import Chem, rdBase
from suffuse.errors import DataError

from suffuse_molecules.readers.sdf import raw_molecules
from suffuse_molecules.readers.smiles import read_rows
from suffuse_molecules.record import Record, from_mol

__all__ = ["Contents", "read"]

FLAT = 1e-3
"""Angstrom out of the plane below which coordinates are those of a drawing."""


@dataclass(frozen=True)
class Contents:
    """What is in a file.

    Arguments:
        records: One per entry, None where it could not be read.
        reasons: Why, by index.
        flat: There are no coordinates in space.
        whole: Every hydrogen is known, also those that are not written, as in SMILES.
    """

    records: list[Record | None]
    reasons: Mapping[int, str] = field(default_factory=dict)
    flat: bool = False
    whole: bool = False


def read(path: Path, column: str | None = None) -> Contents:
    """Return what is in an SDF or a table of SMILES, gzipped or not.

    Arguments:
        path: The file; its ending says what it is.
        column: Name of the SMILES' column of a table; by default ``smiles``.

    Raises:
        ConfigError: For a column that is not there.
        DataError: For a file that is not there, cannot be read or holds nothing.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".sdf", ".sd", ".mol")):
        found = _sdf(path)
    elif name.endswith((".smi", ".smiles", ".csv", ".tsv", ".txt")):
        found = _smiles(path, column)
    else:
        raise DataError(f"{path}: neither SDF (.sdf, .mol) nor SMILES (.smi, .csv, .tsv); rename or convert it")
    if not found.records:
        raise DataError(f"{path}: no molecules in it")
    return found


def _sdf(path: Path) -> Contents:
    found: list[Record | None] = []
    reasons: dict[int, str] = {}
    spatial = False
    for number, mol in raw_molecules(path):
        try:
            if mol is None:
                raise DataError("broken record")
            if not mol.GetNumAtoms():
                raise DataError("no atoms")
            found.append(from_mol(_kekulised(mol)))
            spatial = spatial or _spatial(mol)
        except DataError as error:
            reasons[number - 1] = str(error)
            found.append(None)
    return Contents(found, reasons, flat=not spatial and len(reasons) < len(found))


def _kekulised(mol: Chem.Mol) -> Chem.Mol:
    """Return an unsanitised molecule with whole bond orders, where its file has aromatic ones."""
    if not any(bond.GetIsAromatic() or bond.GetBondTypeAsDouble() == 1.5 for bond in mol.GetBonds()):
        return mol
    with rdBase.BlockLogs():
        Chem.SanitizeMol(mol, catchErrors=True)
    return mol


def _spatial(mol: Chem.Mol) -> bool:
    """Return whether the coordinates are in space: some vendors mark drawings as such, but those lack hydrogens."""
    if abs(mol.GetConformer().GetPositions()[:, 2]).max() > FLAT:
        return True
    return mol.GetConformer().Is3D() and any(atom.GetAtomicNum() == 1 for atom in mol.GetAtoms())


def _smiles(path: Path, column: str | None) -> Contents:
    found: list[Record | None] = []
    reasons: dict[int, str] = {}
    for index, (_, smiles, _) in enumerate(read_rows(path, column)):
        try:
            found.append(from_mol(_graph(smiles)))
        except DataError as error:
            reasons[index] = str(error)
            found.append(None)
    return Contents(found, reasons, flat=True, whole=True)


def _graph(smiles: str) -> Chem.Mol:
    """Return the molecule of a SMILES with its hydrogens, all at the origin.

    Raises:
        DataError: With the reason why there is none.
    """
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles, sanitize=False)
        if mol is None or not mol.GetNumAtoms():
            raise DataError("unparsable SMILES")
        if problems := Chem.DetectChemistryProblems(mol):
            raise DataError(_problem(problems[0].Message()))
        Chem.SanitizeMol(mol)
        mol = Chem.AddHs(mol)
    mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()), assignId=True)
    return mol


def _problem(message: str) -> str:
    """Return RDKit's words on a graph in the judge's."""
    found = re.match(r"Explicit valence for atom # (\d+) (\w+), (\d+),", message)
    return f"valence {found[3]} of {found[2]}{found[1]}" if found else "cannot be kekulised"
