"""SDF: molecules written with every hydrogen, bonds, charges and tags; also those that are wrong, as they are."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase

from suffuse_molecules.judge.strict import FARTHEST
from suffuse_molecules.record import Record, to_mol

__all__ = ["block", "write_sdf"]


def write_sdf(
    path: Path, mols: Sequence[Chem.Mol | None], records: Sequence[Record], tags: Sequence[Mapping[str, Any]]
) -> Path:
    """Write one record per molecule under another name, then put the file in place.

    Arguments:
        path: The file.
        mols: Sane molecules with hydrogens; None where a record is none, which is then written unsanitised.
        records: The atoms as they came.
        tags: SD tags of each; None, NaN and empty values are left out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as stream:
        for mol, record, of in zip(mols, records, tags, strict=True):
            stream.write(block(mol, record, of))
    temporary.replace(path)
    return path


def block(mol: Chem.Mol | None, record: Record, tags: Mapping[str, Any]) -> str:
    """Return one SDF record.

    Stereo of a sane molecule is assigned from its coordinates and said by the tag ``isomeric_smiles``. Coordinates that
    fit no column, as those that are not finite, are written as 0 or at the column's limit, so that others can read it.
    """
    out = io.StringIO()
    with rdBase.BlockLogs():
        written = Chem.Mol(mol) if mol is not None else Chem.Mol(to_mol(_bounded(record)))
        if mol is not None:
            Chem.AssignStereochemistryFrom3D(written)
            tags = {**tags, "isomeric_smiles": Chem.MolToSmiles(Chem.RemoveHs(written))}
        else:
            written.UpdatePropertyCache(strict=False)
        for name in list(written.GetPropNames(includePrivate=False, includeComputed=False)):
            written.ClearProp(name)
        for name, value in tags.items():
            if value is not None and value != "" and value == value:
                written.SetProp(name, f"{value:.6g}" if isinstance(value, float) else str(value))
        if "index" in tags:
            written.SetProp("_Name", str(tags["index"]))
        writer = Chem.SDWriter(out)
        writer.SetKekulize(mol is not None)
        writer.write(written)
        writer.close()
    return out.getvalue()


def _bounded(record: Record) -> Record:
    pos = np.nan_to_num(record.pos, posinf=FARTHEST, neginf=-FARTHEST).clip(-FARTHEST, FARTHEST)
    return replace(record, pos=pos.astype(np.float32))
