"""Scaffold: parts of a molecule that a user gives in a file, as the tensors that a draw starts from.

Atoms of element ``*`` (attachment points, R-groups) are not kept; where a scaffold has any, only the atoms that bear
them may be bonded to what is generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from suffuse.errors import ConfigError, DataError
from torch import Tensor

from suffuse_molecules.record import Record, from_mol, heavy

__all__ = ["given_parts"]


def given_parts(where: str, mode: str, keep: str | None, num: int, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return ``given_*`` tensors of `num` rows; several molecules of a file take turns.

    Arguments:
        where: An SDF or mol file; for conformers also a SMILES.
        mode: ``scaffold``, ``conformer`` or ``relabel``.
        keep: SMARTS of what of a scaffold stays.
        num: Number of rows.
        about: The data's facts.

    Returns:
        ``given_pos`` (B, S, 3), ``given_z`` and ``given_charge`` (B, S), ``given_bond`` (B, S, S), what of it is fixed
        (``given_fixed_pos``, ``given_fixed_atom``, ``given_fixed_bond``), ``given_closed`` (B, S): may not be bonded to
        what is generated, and ``given_whole`` (B,): no atom is missing.

    Raises:
        ConfigError: When the file holds no molecule, one has no coordinates where they are needed, an element or size
            that the model does not know, or no match of `keep`.
    """
    key = f"condition.{mode}={where}"
    parts = [_part(mol, mode, keep, key, about) for mol in _molecules(where, mode, key)]
    most = max(about["sizes"]["values"])
    for record, _ in parts:
        if len(record) > most:
            raise ConfigError(f"{key}: it has {len(record)} atoms, the model knows molecules of at most {most}")
    width = max(len(record) for record, _ in parts)
    rows = [_tensors(*parts[i % len(parts)], mode, width) for i in range(num)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _molecules(where: str, mode: str, key: str) -> list[Chem.Mol]:
    path = Path(where).expanduser()
    if not path.is_file():
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(where) if mode == "conformer" and path.suffix not in (".sdf", ".mol") else None
        if mol is None:
            raise ConfigError(f"{key}: no such file" + (", and no SMILES" if mode == "conformer" else ""))
        return [mol]
    with rdBase.BlockLogs():  # what is wrong is said in one line of ours
        found = [mol for mol in Chem.SDMolSupplier(str(path), removeHs=False) if mol is not None]
    if not found:
        raise ConfigError(f"{key}: RDKit reads no molecule in it")
    return found


def _part(
    mol: Chem.Mol, mode: str, keep: str | None, key: str, about: Mapping[str, Any]
) -> tuple[Record, NDArray[np.bool_]]:
    """Return what is given, and which of its atoms may get no further bonds."""
    if mode != "conformer" and not (mol.GetNumConformers() and mol.GetConformer().Is3D()):
        raise ConfigError(f"{key}: it has no 3D coordinates")
    if mode == "conformer" and about["hydrogens"] == "explicit":
        mol = Chem.AddHs(mol)
    if not mol.GetNumConformers():
        mol = Chem.Mol(mol)
        mol.AddConformer(Chem.Conformer(mol.GetNumAtoms()), assignId=True)
    dummies = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() == 0]
    sites = {near.GetIdx() for i in dummies for near in mol.GetAtomWithIdx(i).GetNeighbors()}
    chosen = set(range(mol.GetNumAtoms())) - set(dummies)
    if keep is not None:
        pattern = Chem.MolFromSmarts(keep)
        if pattern is None:
            raise ConfigError(f"condition.keep={keep} is no SMARTS")
        match = mol.GetSubstructMatch(pattern)
        if not match:
            raise ConfigError(f"condition.keep={keep} matches nothing in {key.partition('=')[2]}")
        chosen &= set(match)
    try:
        record = from_mol(mol)
    except DataError as error:
        raise ConfigError(f"{key}: {error}") from error
    order = np.array(sorted(chosen))
    closed = np.array([bool(dummies) and int(i) not in sites for i in order])
    record = _only(record, order)
    if about["hydrogens"] == "implicit":
        closed = closed[record.z != 1]
        record = heavy(_restorable(record))
    known = set(about["elements"])
    if strange := sorted(set(record.z.tolist()) - known):
        symbol = Chem.GetPeriodicTable().GetElementSymbol(strange[0])
        raise ConfigError(f"{key}: it has {symbol}, which is not among the model's elements")
    if np.abs(record.charge.astype(int)).max(initial=0) > 1:
        raise ConfigError(f"{key}: a formal charge beyond -1 or +1")
    return record, closed


def _restorable(record: Record) -> Record:
    """Return the record without hydrogens that lost their atom: those are generated anew."""
    bound = np.isin(np.arange(len(record)), record.bonds[:, :2]) | (record.z != 1)
    return _only(record, np.flatnonzero(bound))


def _only(record: Record, order: NDArray[np.int64]) -> Record:
    """Return the record with the atoms `order` alone."""
    place = np.full(len(record), -1)
    place[order] = np.arange(len(order))
    bonds = record.bonds.astype(np.int64)
    inside = (place[bonds[:, 0]] >= 0) & (place[bonds[:, 1]] >= 0)
    ends = np.sort(np.stack([place[bonds[inside, 0]], place[bonds[inside, 1]]], 1), 1)
    moved = np.concatenate([ends, bonds[inside, 2:]], 1).astype(np.int16).reshape(-1, 3)
    return Record(record.pos[order], record.z[order], record.charge[order], moved, record.props, record.name)


def _tensors(record: Record, closed: NDArray[np.bool_], mode: str, width: int) -> dict[str, Tensor]:
    size = len(record)
    exists = torch.arange(width) < size
    pairs = exists[:, None] & exists & ~torch.eye(width, dtype=torch.bool)
    pad = (0, width - size)
    none, no_pair = torch.zeros(width, dtype=torch.bool), torch.zeros(width, width, dtype=torch.bool)
    bond = torch.zeros(width, width, dtype=torch.long)
    bond[:size, :size] = torch.from_numpy(record.matrix().astype(np.int64))
    shut = torch.nn.functional.pad(torch.from_numpy(closed), pad) if mode == "scaffold" else none
    return {
        "given_pos": torch.nn.functional.pad(torch.from_numpy(record.pos), (0, 0, *pad)),
        "given_z": torch.nn.functional.pad(torch.from_numpy(record.z.astype(np.int64)), pad),
        "given_charge": torch.nn.functional.pad(torch.from_numpy(record.charge.astype(np.int64)), pad),
        "given_bond": bond if mode != "relabel" else torch.zeros_like(bond),
        "given_fixed_pos": exists if mode != "conformer" else none,
        "given_fixed_atom": exists if mode != "relabel" else none,
        "given_fixed_bond": pairs if mode != "relabel" else no_pair,
        "given_closed": shut,
        "given_whole": torch.tensor(float(mode != "scaffold")),
    }
