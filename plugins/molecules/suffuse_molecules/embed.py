"""Embed: a conformation for a SMILES by distance geometry and a force field.

ETKDGv3 ("Improved Conformer Generation …", Wang et al. 2020) places all atoms, hydrogens too; MMFF94 ("Merck Molecular
Force Field", Halgren 1996) relaxes them, UFF where MMFF94 has no parameters. The seed is a hash of the canonical
SMILES, so a molecule's conformation does not depend on the others or on the order.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from suffuse_molecules.record import Record, from_mol

__all__ = ["embed_many", "embed_smiles", "seed_of"]

STEPS = 500
"""Most steps of the force field, several times over where it has not converged."""

FLAT = 0.25
"""Farthest that an atom of a double bond may lie from the plane of its neighbours, in Angstrom."""


def seed_of(smiles: str) -> int:
    """Return the seed of a SMILES, 31 bits."""
    return int.from_bytes(hashlib.blake2b(smiles.encode(), digest_size=4).digest(), "big") >> 1


def embed_smiles(smiles: str) -> Record | str:
    """Return the molecule with all hydrogens and one conformation, or the reason why there is none."""
    with rdBase.BlockLogs():  # the reason is returned
        return _embedded(smiles)


def _embedded(smiles: str) -> Record | str:
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return "unparsable SMILES"
    if mol.GetNumAtoms() == 0:
        return "no atoms"
    if len(Chem.GetMolFrags(mol)) > 1:
        return "several fragments"
    mol = Chem.AddHs(mol)
    how = rdDistGeom.ETKDGv3()
    how.randomSeed = seed_of(Chem.MolToSmiles(Chem.RemoveHs(mol)))  # type: ignore[assignment]
    how.maxIterations = 30  # type: ignore[assignment]
    if rdDistGeom.EmbedMolecule(mol, how) < 0:
        return "no conformation found"
    if why := _relax(mol):
        return why
    if not _flat(mol):
        return "a double bond is not flat"
    return from_mol(mol)


def _relax(mol: Chem.Mol) -> str | None:
    """Relax in place; return why that failed."""
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        left = rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=STEPS)
    elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        left = rdForceFieldHelpers.UFFOptimizeMolecule(mol, maxIters=STEPS)
    else:
        return "no force field knows it"
    return "force field did not converge" if left else None


def _flat(mol: Chem.Mol) -> bool:
    """Return whether every double bond with its four neighbours lies in a plane."""
    pos = mol.GetConformer().GetPositions()
    for bond in mol.GetBonds():
        if bond.GetBondType() != Chem.BondType.DOUBLE or bond.GetIsAromatic():
            continue
        ends = (bond.GetBeginAtom(), bond.GetEndAtom())
        atoms = sorted({near.GetIdx() for end in ends for near in end.GetNeighbors()} | {end.GetIdx() for end in ends})
        if len(atoms) == 6:
            x = pos[atoms] - pos[atoms].mean(0)
            if np.abs(x @ np.linalg.svd(x)[2][2]).max() > FLAT:
                return False
    return True


def embed_many(
    smiles: Iterable[str], workers: int = 1, progress: Callable[[int], None] | None = None
) -> Iterator[Record | str]:
    """Yield `embed_smiles` of each in order.

    Arguments:
        smiles: What to embed.
        workers: Processes; 1 embeds in this one.
        progress: Called with the number done.
    """
    if workers <= 1:
        yield from _counted(map(embed_smiles, smiles), progress)
        return
    # Forked children of a process that has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from _counted(pool.map(embed_smiles, smiles, chunksize=32), progress)


def _counted(found: Iterable[Record | str], progress: Callable[[int], None] | None) -> Iterator[Record | str]:
    for done, one in enumerate(found, 1):
        if progress is not None:
            progress(done)
        yield one
