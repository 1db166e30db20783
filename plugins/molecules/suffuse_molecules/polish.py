"""Polish: a relaxation of finished molecules by MMFF94, as a step of its own whose cost is reported.

A polished molecule is no sample of the model any more; figures are those of the raw ones, and how far each had to move
says how good it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers, rdMolAlign

from suffuse_molecules.judge.geometry import strain

__all__ = ["Polished", "polish"]

STEPS = 2000


@dataclass(frozen=True)
class Polished:
    """A relaxed molecule.

    Arguments:
        mol: The molecule with its new coordinates.
        rmsd: Of the heavy atoms to where they were, best aligned, in Angstrom.
        strain_before: Strain in kcal/mol per heavy atom, see `suffuse_molecules.judge.geometry`.
        strain_after: The same afterwards.
        converged: Whether the force field got to the end.
    """

    mol: Chem.Mol
    rmsd: float
    strain_before: float
    strain_after: float
    converged: bool


def polish(mol: Chem.Mol) -> Polished:
    """Return the molecule relaxed; as it was, with NaN, where MMFF94 has no parameters.

    Arguments:
        mol: Sane, with hydrogens and coordinates.
    """
    relaxed = Chem.Mol(mol)
    with rdBase.BlockLogs():
        if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(relaxed):
            return Polished(relaxed, math.nan, math.nan, math.nan, False)
        left = rdForceFieldHelpers.MMFFOptimizeMolecule(relaxed, maxIters=STEPS)
        heavy = [(atom.GetIdx(), atom.GetIdx()) for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
        moved = Chem.Mol(relaxed)
        rmsd = rdMolAlign.AlignMol(moved, mol, atomMap=heavy) if len(heavy) > 1 else 0.0
    return Polished(relaxed, float(rmsd), strain(mol), strain(relaxed), left == 0)
