"""Geometry: distances against the bounds that distance geometry knows, clashes, and strain.

RDKit's bounds matrix holds the shortest and longest distance of every pair that its bond lengths, angles and radii
allow. A geometry is plausible when bonds and 1-3 distances lie between 0.75 times the lower and 1.25 times the upper
bound and no other pair is closer than 0.7 times the lower one: the thresholds of "PoseBusters", Buttenschoen et al.
2024, table 1. Strain is what a local relaxation by MMFF94 gains, per heavy atom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

__all__ = ["Geometry", "geometry", "strain"]

BONDED = 0.25
CLASH = 0.7
RELAXATION = 1000
"""Most steps of the relaxation."""


@dataclass(frozen=True)
class Geometry:
    """How far distances are out of bounds.

    Arguments:
        worst_bond: Largest relative excess of a bond length over its bounds; 0 when all are inside.
        worst_angle: The same of 1-3 distances, which stand for angles.
        clash: Smallest distance of any other pair over its lower bound; below `CLASH` atoms clash.
    """

    worst_bond: float
    worst_angle: float
    clash: float

    @property
    def plausible(self) -> bool:
        """Whether everything is within the thresholds."""
        return self.worst_bond <= BONDED and self.worst_angle <= BONDED and self.clash >= CLASH


def geometry(mol: Chem.Mol) -> Geometry | None:
    """Return the geometry of a sanitised molecule with coordinates; None where RDKit knows no bounds."""
    count = mol.GetNumAtoms()
    if count == 1:
        return Geometry(0.0, 0.0, float("inf"))
    with rdBase.BlockLogs():
        try:
            bounds = rdDistGeom.GetMoleculeBoundsMatrix(mol)
        except (ValueError, RuntimeError):
            return None
    pos = mol.GetConformer().GetPositions()
    distance = np.linalg.norm(pos[:, None] - pos[None], axis=-1)
    apart = Chem.GetDistanceMatrix(mol)
    upper, lower = np.triu(bounds, 1), np.tril(bounds, -1).T
    i, j = np.triu_indices(count, 1)
    d, high, low, steps = distance[i, j], upper[i, j], lower[i, j], apart[i, j]
    excess = np.maximum(np.maximum(d / high - 1, 1 - d / low), 0)
    far = (d / low)[steps > 2]
    return Geometry(
        float(excess[steps == 1].max(initial=0)),
        float(excess[steps == 2].max(initial=0)),
        float(far.min(initial=np.inf)),
    )


def strain(mol: Chem.Mol) -> float:
    """Return the strain in kcal/mol per heavy atom; NaN without parameters or without convergence."""
    with rdBase.BlockLogs():
        copy = Chem.Mol(mol)
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(copy)
        if properties is None:
            return float("nan")
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(copy, properties)
        if field is None:
            return float("nan")
        field.Initialize()
        before = field.CalcEnergy()
        if field.Minimize(maxIts=RELAXATION) != 0:
            return float("nan")
        return float((before - field.CalcEnergy()) / max(copy.GetNumHeavyAtoms(), 1))
