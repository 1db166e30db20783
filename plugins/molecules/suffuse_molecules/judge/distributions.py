"""Distributions: how far the samples' bond lengths, angles, torsions, sizes, elements and rings are from the data's.

The distance is that of Wasserstein, W1: for one dimension the area between the two distribution functions, in the unit
of the quantity (Angstrom, degrees, atoms). Lengths and angles are compared type by type, weighted by the data's counts,
so that a wrong mixture of types does not hide behind right lengths.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolTransforms
from scipy.stats import wasserstein_distance

__all__ = ["compare", "measured", "total_variation"]

FEWEST = 10
"""Types with fewer cases in the data are left out."""

Measured = Mapping[str, Mapping[str, Sequence[float]]]

_TORSION = Chem.MolFromSmarts("[!#1]~[!#1;!D1]-;!@[!#1;!D1]~[!#1]")


def measured(mols: Iterable[Chem.Mol]) -> Measured:
    """Return ``bond`` lengths, ``angle`` and ``torsion`` degrees of sane molecules, by type.

    Torsions are those about single bonds that are in no ring, between heavy atoms, folded to 0 to 180 degrees.
    """
    found: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in ("bond", "angle", "torsion")}
    for mol in mols:
        pos = mol.GetConformer()
        for bond in mol.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            name = _name(mol, (i, j), str(bond.GetBondType()))
            found["bond"][name].append(rdMolTransforms.GetBondLength(pos, i, j))
        for center in mol.GetAtoms():
            near = [atom.GetIdx() for atom in center.GetNeighbors()]
            for a in range(len(near)):
                for b in range(a):
                    name = _name(mol, (near[a], near[b]), center.GetSymbol() + str(center.GetHybridization()))
                    degrees = rdMolTransforms.GetAngleDeg(pos, near[a], center.GetIdx(), near[b])
                    found["angle"][name].append(degrees)
        for i, j, k, end in mol.GetSubstructMatches(_TORSION):
            name = _name(mol, (j, k), "torsion")
            found["torsion"][name].append(abs(rdMolTransforms.GetDihedralDeg(pos, i, j, k, end)))
    return found


def _name(mol: Chem.Mol, ends: tuple[int, int], middle: str) -> str:
    first, last = sorted(mol.GetAtomWithIdx(i).GetSymbol() for i in ends)
    return f"{first}-{middle}-{last}"


def compare(samples: Measured, data: Measured) -> dict[str, float]:
    """Return W1 of each kind, the mean over the data's types by their counts; a type the samples lack is left out."""
    found = {}
    for kind in data:
        rows = []
        for name, values in data[kind].items():
            mine = [value for value in samples[kind].get(name, ()) if np.isfinite(value)]
            if len(values) >= FEWEST and mine:
                rows.append((len(values), float(wasserstein_distance(mine, values))))
        weights = np.array([count for count, _ in rows], float)
        found[kind] = float((weights * [d for _, d in rows]).sum() / weights.sum()) if rows else float("nan")
    return found


def total_variation(samples: Iterable[object], data: Iterable[object]) -> float:
    """Return half the L1 distance of two distributions over things (elements, ring counts), in [0, 1]."""
    mine, theirs = Counter(samples), Counter(data)
    if not mine or not theirs:
        return float("nan")
    p, q = sum(mine.values()), sum(theirs.values())
    return 0.5 * sum(abs(mine[key] / p - theirs[key] / q) for key in mine | theirs)
