"""Record: one molecule as arrays, and the way to RDKit and back.

Bonds are kekulised: orders are 0, 1, 2 and 3, never 1.5, so that a valence is a sum of whole numbers. Hydrogens are
atoms like others; a record without them (`heavy`) leaves their number to RDKit's valence model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Geometry import Point3D
from suffuse.errors import DataError

__all__ = ["ORDERS", "Record", "from_mol", "heavy", "to_mol"]

ORDERS = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
"""Bond types of the whole orders 1, 2, 3."""


@dataclass(frozen=True)
class Record:
    """One molecule with one conformation.

    Arguments:
        pos: Coordinates in Angstrom, float32, shape (n, 3).
        z: Atomic numbers, uint8, shape (n,).
        charge: Formal charges, int8, shape (n,).
        bonds: Rows (i, j, order) with i < j, sorted, order 1 to 3, int16, shape (m, 3).
        props: Named numbers that came with the molecule, NaN where one is missing.
        name: The source's own name of it.
    """

    pos: NDArray[np.float32]
    z: NDArray[np.uint8]
    charge: NDArray[np.int8]
    bonds: NDArray[np.int16]
    props: Mapping[str, float] = field(default_factory=dict)
    name: str = ""

    def __len__(self) -> int:
        return len(self.z)

    def matrix(self) -> NDArray[np.uint8]:
        """Return the symmetric matrix of bond orders, uint8, shape (n, n)."""
        found = np.zeros((len(self.z), len(self.z)), np.uint8)
        i, j, order = self.bonds.T
        found[i, j] = found[j, i] = order
        return found


def from_mol(mol: Chem.Mol, conformer: int = -1, props: Mapping[str, float] | None = None) -> Record:
    """Return the record of a sanitised molecule as it is: hydrogens that are no atoms of it are not added.

    Arguments:
        mol: Has a conformation unless `conformer` is None.
        conformer: Which one.
        props: Named numbers.

    Raises:
        DataError: When a bond has no whole order, or a coordinate is not finite.
    """
    kekule = Chem.Mol(mol)
    try:
        Chem.Kekulize(kekule, clearAromaticFlags=True)
    except Chem.KekulizeException as error:
        raise DataError(f"cannot be kekulised: {error}") from None
    bonds = []
    for bond in kekule.GetBonds():
        order = bond.GetBondTypeAsDouble()
        if order not in (1.0, 2.0, 3.0):
            raise DataError(f"a bond of type {bond.GetBondType()} has no whole order from 1 to 3")
        i, j = sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        bonds.append((i, j, int(order)))
    pos = np.asarray(mol.GetConformer(conformer).GetPositions(), np.float32).reshape(-1, 3)
    if not np.isfinite(pos).all():
        raise DataError("a coordinate is NaN or infinite")
    return Record(
        pos,
        np.array([atom.GetAtomicNum() for atom in kekule.GetAtoms()], np.uint8),
        np.array([atom.GetFormalCharge() for atom in kekule.GetAtoms()], np.int8),
        np.array(sorted(bonds), np.int16).reshape(-1, 3),
        dict(props or {}),
        mol.GetProp("_Name") if mol.HasProp("_Name") else "",
    )


def to_mol(record: Record, implicit: bool = False) -> Chem.RWMol:
    """Return the molecule of a record, not sanitised, with its conformation.

    Arguments:
        record: Any arrays, also those that are no molecule.
        implicit: RDKit may complete hydrogens. Without it every atom says that it has none, so a missing hydrogen is a
            radical and not forgiven.
    """
    mol = Chem.RWMol()
    for z, charge in zip(record.z.tolist(), record.charge.tolist(), strict=True):
        atom = Chem.Atom(z)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(not implicit)
        mol.AddAtom(atom)
    for i, j, order in record.bonds.tolist():
        mol.AddBond(i, j, ORDERS[order - 1])
    conformer = Chem.Conformer(len(record))
    for i, (x, y, z) in enumerate(record.pos.astype(float).tolist()):
        conformer.SetAtomPosition(i, Point3D(x, y, z))
    mol.AddConformer(conformer, assignId=True)
    if record.name:
        mol.SetProp("_Name", record.name)
    return mol


def heavy(record: Record) -> Record:
    """Return the record without its hydrogens.

    Raises:
        DataError: When nothing is left, or a hydrogen is not bound once to a heavy atom (H2, hydride bridges, protons),
            which RDKit would not restore.
    """
    keep = record.z != 1
    matrix = record.matrix()
    lost = matrix[~keep]
    if not keep.any():
        raise DataError("has no heavy atom")
    if (lost[:, ~keep] > 0).any() or (lost.sum(1) != 1).any() or (record.charge[~keep] != 0).any():
        raise DataError("a hydrogen of it is not one bond of a heavy atom; use hydrogens=explicit")
    place = np.cumsum(keep) - 1
    inside = record.bonds[keep[record.bonds[:, 0]] & keep[record.bonds[:, 1]]]
    bonds = np.column_stack([place[inside[:, 0]], place[inside[:, 1]], inside[:, 2]]).astype(np.int16).reshape(-1, 3)
    return Record(record.pos[keep], record.z[keep], record.charge[keep], bonds, record.props, record.name)
