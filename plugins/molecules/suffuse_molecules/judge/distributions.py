"""Distributions: how far the samples' bond lengths, angles, torsions, sizes, elements and rings are from the data's.

The distance is that of Wasserstein, W1: for one dimension the area between the two distribution functions, in the unit
of the quantity (Angstrom, degrees, atoms). Lengths and angles are compared type by type, weighted by the data's counts,
so that a wrong mixture of types does not hide behind right lengths.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from scipy.stats import wasserstein_distance

__all__ = ["compare", "covered", "distances", "measured", "total_variation"]

FEWEST = 10
"""Types with fewer cases in the data are left out."""

UNITS = {"bond": "Angstrom", "angle": "degrees", "torsion": "degrees"}

Measured = Mapping[str, Mapping[str, Sequence[float]]]

_TORSION = Chem.MolFromSmarts("[!#1]~[!#1;!D1]-;!@[!#1;!D1]~[!#1]")


def measured(mols: Iterable[Chem.Mol]) -> Measured:
    """Return ``bond`` lengths, ``angle`` and ``torsion`` degrees of sane molecules, by type.

    Torsions are those about single bonds that are in no ring, between heavy atoms, folded to 0 to 180 degrees. Where
    atoms lie upon each other an angle is 0.
    """
    found: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in ("bond", "angle", "torsion")}
    for mol in mols:
        pos = np.asarray(mol.GetConformer().GetPositions())
        symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
        for kind, cases in (("bond", _bonds(mol)), ("angle", _angles(mol)), ("torsion", _torsions(mol))):
            if cases:
                where = pos[np.array([atoms for atoms, _ in cases])]
                for (atoms, middle), value in zip(cases, _VALUES[kind](where).tolist(), strict=True):
                    found[kind][_name(symbols, atoms, middle)].append(value)
    return found


Case = tuple[tuple[int, ...], str]
"""Atoms, and what stands between the symbols of the ends in the type's name."""


def _bonds(mol: Chem.Mol) -> list[Case]:
    return [((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()), str(bond.GetBondType())) for bond in mol.GetBonds()]


def _angles(mol: Chem.Mol) -> list[Case]:
    found: list[Case] = []
    for center in mol.GetAtoms():
        middle = center.GetSymbol() + str(center.GetHybridization())
        near = [atom.GetIdx() for atom in center.GetNeighbors()]
        found += [((a, center.GetIdx(), b), middle) for a, b in itertools.combinations(near, 2)]
    return found


def _torsions(mol: Chem.Mol) -> list[Case]:
    return [(atoms, "torsion") for atoms in mol.GetSubstructMatches(_TORSION)]


def _name(symbols: Sequence[str], atoms: Sequence[int], middle: str) -> str:
    # A torsion is known by the bond it is about, the others by their ends.
    ends = (atoms[1], atoms[2]) if len(atoms) == 4 else (atoms[0], atoms[-1])
    first, last = sorted(symbols[i] for i in ends)
    return f"{first}-{middle}-{last}"


def _lengths(x: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.linalg.norm(x[:, 1] - x[:, 0], axis=-1)
    return found


def _between(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the angle of vectors in degrees, 0 to 180."""
    found: NDArray[np.float64] = np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))
    return found


def _bends(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return _between(x[:, 0] - x[:, 1], x[:, 2] - x[:, 1])


def _twists(x: NDArray[np.float64]) -> NDArray[np.float64]:
    axis = x[:, 2] - x[:, 1]
    return _between(np.cross(x[:, 0] - x[:, 1], axis), np.cross(x[:, 3] - x[:, 2], axis))


_VALUES = {"bond": _lengths, "angle": _bends, "torsion": _twists}


def compare(samples: Measured, data: Measured) -> dict[str, float]:
    """Return W1 of each kind, the mean over the data's types by their counts; a type the samples lack is left out.

    NaN where they share no type. How much is left out is said by `covered`.
    """
    found = {}
    for kind in data:
        rows = [
            (len(values), float(wasserstein_distance(samples[kind][name], values)))
            for name, values in _frequent(data, kind).items()
            if samples[kind].get(name)
        ]
        weights = np.array([count for count, _ in rows], float)
        found[kind] = float((weights * [d for _, d in rows]).sum() / weights.sum()) if rows else float("nan")
    return found


def covered(samples: Measured, data: Measured) -> dict[str, float]:
    """Return by kind the share of the data's cases whose type the samples have: what `compare` is over."""
    found = {}
    for kind in data:
        counts = {name: len(values) for name, values in _frequent(data, kind).items()}
        shared = sum(count for name, count in counts.items() if samples[kind].get(name))
        found[kind] = shared / sum(counts.values()) if counts else float("nan")
    return found


def _frequent(data: Measured, kind: str) -> dict[str, Sequence[float]]:
    return {name: values for name, values in data[kind].items() if len(values) >= FEWEST}


def total_variation(samples: Iterable[object], data: Iterable[object]) -> float:
    """Return half the L1 distance of two distributions over things (elements, ring counts), in [0, 1]."""
    mine, theirs = Counter(samples), Counter(data)
    if not mine or not theirs:
        return float("nan")
    p, q = sum(mine.values()), sum(theirs.values())
    return 0.5 * sum(abs(mine[key] / p - theirs[key] / q) for key in mine | theirs)


def distances(
    samples: Sequence[Chem.Mol], data: Sequence[Chem.Mol], flat: bool = False
) -> dict[str, tuple[float, str]]:
    """Return ``w1_bond``, ``w1_angle``, ``w1_torsion``, ``tv_size``, ``tv_elements`` and ``tv_rings``, and what over.

    Sizes are in heavy atoms; rings are the sizes of all rings of a molecule.

    Arguments:
        samples: Sane molecules with hydrogens.
        data: The same of the reference; with none on either side nothing is returned.
        flat: One of them has no coordinates: no lengths, angles and torsions.
    """
    found: dict[str, tuple[float, str]] = {}
    if not samples or not data:
        return found
    if not flat:
        mine, theirs = measured(samples), measured(data)
        shares = covered(mine, theirs)
        for kind, value in compare(mine, theirs).items():
            share = f"{100 * shares[kind]:.1f} %" if shares[kind] == shares[kind] else "none"
            found[f"w1_{kind}"] = (value, f"valid; {UNITS[kind]}, types with {share} of the data's cases")
    for name, things in (("size", _heavy), ("elements", _symbols), ("rings", _rings)):
        found[f"tv_{name}"] = (total_variation(things(samples), things(data)), "valid; half the L1 distance")
    return found


def _heavy(mols: Sequence[Chem.Mol]) -> list[object]:
    return [mol.GetNumHeavyAtoms() for mol in mols]


def _symbols(mols: Sequence[Chem.Mol]) -> list[object]:
    return [atom.GetSymbol() for mol in mols for atom in mol.GetAtoms()]


def _rings(mols: Sequence[Chem.Mol]) -> list[object]:
    return [tuple(sorted(len(ring) for ring in mol.GetRingInfo().AtomRings())) for mol in mols]
