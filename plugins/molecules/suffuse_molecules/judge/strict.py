"""Strict: a molecule as a chemist understands it, with nothing forgiven.

It must pass RDKit's sanitisation without hydrogens that are not there, be one fragment, have no radicals, and, with its
bonds kekulised, every atom's valence, a sum of whole orders, must be one that its element has at its charge. Aromatic
bonds count as the singles and doubles they stand for: as 1.5 a ring carbon with a hydrogen too few would pass, and as
1, which is what 1.5 becomes in a tensor of whole numbers, a methyl radical would. Coordinates are not looked at, but
they must be numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase

from suffuse_molecules.record import Record, to_mol

__all__ = ["FARTHEST", "VALENCES", "Verdict", "completed", "offenders", "strict"]

VALENCES: dict[tuple[int, int], tuple[int, ...]] = {
    (1, 0): (1,), (5, 0): (3,), (5, -1): (4,), (6, 0): (4,), (6, 1): (3,), (6, -1): (3,), (7, 0): (3,), (7, 1): (4,),
    (7, -1): (2,), (8, 0): (2,), (8, 1): (3,), (8, -1): (1,), (9, 0): (1,), (14, 0): (4,), (15, 0): (3, 5),
    (15, 1): (4,), (16, 0): (2, 4, 6), (16, 1): (3, 5), (16, -1): (1,), (17, 0): (1,),
    (17, 1): (2,), (34, 0): (2, 4, 6), (35, 0): (1,), (35, 1): (2,), (53, 0): (1, 3, 5), (53, 1): (2,),
}  # fmt: skip
"""Valences by (atomic number, formal charge)."""
FARTHEST = 9_999.0
"""Angstrom: a coordinate beyond it fits no column of an SDF."""


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a molecule.

    Arguments:
        valid: It is right.
        reason: Why not; empty for a valid one.
        mol: The sanitised molecule with all hydrogens, or None when there is none.
        fragments: Number of connected parts.
        radicals: Unpaired electrons; -1 where they cannot be counted.
    """

    valid: bool
    reason: str
    mol: Chem.Mol | None
    fragments: int
    radicals: int


def strict(record: Record, implicit: bool = False) -> Verdict:
    """Return the strict verdict of a record.

    Arguments:
        record: Atoms, charges, bonds and coordinates.
        implicit: The record is of heavy atoms only: RDKit first completes hydrogens, and the whole is judged.
    """
    mol: Chem.Mol = to_mol(record, implicit)
    fragments = len(Chem.GetMolFrags(mol))
    if len(record) == 0:
        return Verdict(False, "no atoms", None, 0, 0)
    if not (np.abs(record.pos) <= FARTHEST).all():  # NaN compares as false
        return Verdict(False, "coordinates that are not finite", None, fragments, -1)
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(mol)
        except (ValueError, RuntimeError) as error:
            return Verdict(False, _overfull(record) or _why(error), None, fragments, -1)
        if implicit:
            mol = completed(mol)
    radicals = sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
    if fragments > 1:
        return Verdict(False, f"{fragments} fragments", mol, fragments, radicals)
    if radicals:
        return Verdict(False, f"{radicals} unpaired electron{'s' * (radicals > 1)}", mol, fragments, radicals)
    wrong = _wrong_valence(mol)
    return Verdict(not wrong, wrong, mol, fragments, radicals)


def completed(mol: Chem.Mol) -> Chem.Mol:
    """Return a sanitised molecule with its hydrogens as atoms, placed where there are coordinates."""
    return Chem.AddHs(mol, addCoords=bool(mol.GetNumConformers()))


def offenders(record: Record, mol: Chem.Mol | None) -> list[int]:
    """Return the atoms at fault: those with unpaired electrons or, where RDKit refused, with too many bonds."""
    if mol is not None:
        return [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetNumRadicalElectrons()]
    return [i for i, (z, charge, valence) in enumerate(_valences(record)) if valence > max(_allowed(z, charge))]


def _valences(record: Record) -> list[tuple[int, int, int]]:
    """Return atomic number, charge and sum of bond orders of every atom."""
    sums = record.matrix().sum(1, dtype=int)
    return list(zip(record.z.tolist(), record.charge.tolist(), sums.tolist(), strict=True))


def _allowed(z: int, charge: int) -> tuple[int, ...]:
    return VALENCES.get((z, charge), (0,))


def _overfull(record: Record) -> str:
    """Return the first atom with more bonds than any valence of it allows, or nothing."""
    for i, (z, charge, valence) in enumerate(_valences(record)):
        if valence > max(_allowed(z, charge)):
            return _said(i, z, charge, valence)
    return ""


def _said(i: int, z: int, charge: int, valence: int) -> str:
    symbol = Chem.GetPeriodicTable().GetElementSymbol(z)
    what = f"valence {valence}" if (z, charge) in VALENCES else "no known valence"
    return f"{what} of {symbol}{i}" + (f" with charge {charge:+d}" if charge else "")


def _why(error: Exception) -> str:
    """Return RDKit's reason in few words."""
    kind = type(error).__name__
    return "cannot be kekulised" if "Kekulize" in kind else kind.removesuffix("Exception")


def _wrong_valence(mol: Chem.Mol) -> str:
    """Return the first atom whose valence is not in the table, or nothing."""
    copy = Chem.Mol(mol)
    try:
        Chem.Kekulize(copy, clearAromaticFlags=True)
    except (ValueError, RuntimeError):
        return "cannot be kekulised"
    for atom in copy.GetAtoms():
        valence = sum(int(bond.GetBondTypeAsDouble()) for bond in atom.GetBonds()) + atom.GetTotalNumHs()
        z, charge = atom.GetAtomicNum(), atom.GetFormalCharge()
        if valence not in VALENCES.get((z, charge), ()):
            return _said(atom.GetIdx(), z, charge, valence)
    return ""
