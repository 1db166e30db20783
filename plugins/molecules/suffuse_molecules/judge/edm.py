"""EDM's rule: bonds by a table of distances, valences without charges.

"Equivariant Diffusion for Molecule Generation in 3D", Hoogeboom et al. 2022, section 5.1 and appendix: two atoms are
bonded by the highest order whose tabulated length, plus a margin of 10, 5 or 3 pm, their distance does not reach; an
atom is stable when its orders sum to its one valence, a molecule when all its atoms are. It is valid when RDKit makes a
SMILES of its largest fragment. Kept as it is, with its faults, for comparison with papers: hydrogens that are missing
and second fragments are forgiven, charges are not known, and noise of 0.05 Angstrom breaks nine molecules of ten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from suffuse_molecules.record import Record

__all__ = ["EDMVerdict", "edm", "orders"]

MARGINS = (10, 5, 3)
"""Picometres, for single, double and triple bonds."""

_PAIRS: tuple[dict[str, int], ...] = (
    {
        "H-H": 74, "H-C": 109, "H-N": 101, "H-O": 96, "H-F": 92, "C-C": 154, "C-N": 147, "C-O": 143, "C-F": 135,
        "N-N": 145, "N-O": 140, "N-F": 136, "O-O": 148, "O-F": 142, "F-F": 142, "H-B": 119, "H-Si": 148, "H-P": 144,
        "H-S": 134, "H-Cl": 127, "H-Br": 141, "H-I": 161, "C-Si": 185, "C-P": 184, "C-S": 182, "C-Cl": 177,
        "C-Br": 194, "C-I": 214, "N-Cl": 175, "N-Br": 214, "N-S": 168, "N-P": 177, "N-I": 222, "O-S": 151, "O-P": 163,
        "O-Si": 163, "O-Cl": 164, "O-Br": 172, "O-I": 194, "F-S": 158, "F-Si": 160, "F-Cl": 166, "F-Br": 178,
        "F-P": 156, "F-I": 187, "S-S": 204, "S-Cl": 207, "S-Br": 225, "S-Si": 200, "S-P": 210, "S-I": 234,
        "Cl-Cl": 199, "Cl-I": 232, "Cl-Si": 202, "Cl-P": 203, "Cl-Br": 214, "Br-Br": 228, "Br-I": 248, "Br-Si": 215,
        "Br-P": 222, "I-I": 266, "I-Si": 243, "I-P": 243, "Si-Si": 233, "Si-P": 235, "P-P": 221, "B-Cl": 175,
    },
    {
        "C-C": 134, "C-N": 129, "C-O": 120, "C-S": 160, "N-N": 125, "N-O": 121, "O-O": 121, "O-P": 150, "P-S": 186,
    },
    {"C-C": 120, "C-N": 116, "C-O": 113, "N-N": 110},
)  # fmt: skip

VALENCE: dict[str, tuple[int, ...]] = {
    "H": (1,), "C": (4,), "N": (3,), "O": (2,), "F": (1,), "B": (3,), "Si": (4,), "P": (3, 5), "S": (4,), "Cl": (1,),
    "Br": (1,), "I": (1,),
}  # fmt: skip


def _table() -> NDArray[np.float64]:
    """Return the longest distance of each order by atomic numbers, shape (3, 54, 54), in Angstrom; 0 for none."""
    table = np.zeros((3, 54, 54))
    periodic = Chem.GetPeriodicTable()
    for order, (pairs, margin) in enumerate(zip(_PAIRS, MARGINS, strict=True)):
        for pair, length in pairs.items():
            i, j = (periodic.GetAtomicNumber(symbol) for symbol in pair.split("-"))
            table[order, i, j] = table[order, j, i] = (length + margin) / 100
    return table


_TABLE = _table()
_VALENCE = {Chem.GetPeriodicTable().GetAtomicNumber(symbol): allowed for symbol, allowed in VALENCE.items()}


@dataclass(frozen=True)
class EDMVerdict:
    """What the rule says.

    Arguments:
        atoms: Number of atoms.
        stable_atoms: Those of right valence.
        smiles: SMILES of the largest fragment; empty when RDKit makes none.
    """

    atoms: int
    stable_atoms: int
    smiles: str

    @property
    def stable(self) -> bool:
        """Whether all atoms are stable."""
        return self.atoms > 0 and self.stable_atoms == self.atoms

    @property
    def valid(self) -> bool:
        """Whether there is a SMILES."""
        return bool(self.smiles)


def orders(z: NDArray[np.integer], pos: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the bond orders of the table, shape (n, n).

    An order counts only where the lower ones do too, as in the rule's own chain of comparisons.
    """
    pos = pos.astype(np.float64)
    distance = np.linalg.norm(pos[:, None] - pos[None], axis=-1)
    known = np.where(z < 54, z, 0).astype(int)
    below = distance[None] < _TABLE[:, known[:, None], known[None]]
    found: NDArray[np.int64] = np.cumprod(below, 0).sum(0)
    np.fill_diagonal(found, 0)
    return found


def edm(record: Record) -> EDMVerdict:
    """Return the verdict; the record's own bonds and charges are not looked at."""
    order = orders(record.z, record.pos)
    valence = order.sum(1)
    good = sum(int(v) in _VALENCE.get(int(z), ()) for v, z in zip(valence, record.z, strict=True))
    return EDMVerdict(len(record), good, _smiles(record.z, order))


def _smiles(z: NDArray[np.integer], order: NDArray[np.int64]) -> str:
    mol = Chem.RWMol()
    for number in z.tolist():
        mol.AddAtom(Chem.Atom(number))
    for i, j in zip(*np.nonzero(np.triu(order)), strict=True):
        kind = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)[order[i, j] - 1]
        mol.AddBond(int(i), int(j), kind)
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(mol)
            parts = Chem.GetMolFrags(mol, asMols=True)
            largest = max(parts, key=lambda part: part.GetNumAtoms(), default=mol)
            text: str = Chem.MolToSmiles(Chem.RemoveHs(largest), isomericSmiles=False)
        except (ValueError, RuntimeError):
            return ""
    return text
