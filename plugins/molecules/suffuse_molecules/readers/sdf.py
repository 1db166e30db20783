"""SDF: molecules with coordinates, bonds and tags, of any vendor."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

from rdkit import Chem, rdBase
from suffuse.errors import DataError

from suffuse_molecules.readers.collect import Skip, files
from suffuse_molecules.record import Record, from_mol

__all__ = ["prepared", "raw_molecules", "read_sdf", "tags"]

ENDINGS = (".sdf", ".sd", ".mol", ".sdf.gz", ".sd.gz", ".mol.gz")


def read_sdf(where: str | Path | Sequence[str | Path], keep_largest: bool = False) -> Iterator[Record | Skip]:
    """Yield every record of SDF files (V2000 or V3000, gzipped or not).

    Hydrogens that are missing are added with coordinates; tags that are numbers become properties.

    Arguments:
        where: A file, a folder, a pattern or a list of them.
        keep_largest: Of several fragments keep the largest instead of leaving the record out.
    """
    for file in files(where, ENDINGS):
        for number, mol in raw_molecules(file):
            place = f"{file.name}: record {number}"
            if mol is None:
                yield Skip(place, "broken record")
                continue
            try:
                yield from_mol(prepared(mol, keep_largest), props=tags(mol))
            except DataError as error:
                yield Skip(place, str(error))


def raw_molecules(file: Path) -> Iterator[tuple[int, Chem.Mol | None]]:
    """Yield the number and the molecule, not sanitised, of every record; None for a broken one.

    Records are cut here at their ends: RDKit's reader of streams loses what follows a broken one.
    """
    for number, text in enumerate(_records(file), 1):
        with rdBase.BlockLogs():
            supplier = Chem.SDMolSupplier()
            supplier.SetData(text, sanitize=False, removeHs=False)
            try:
                mol = supplier[0]
            except (OSError, RuntimeError, ValueError, IndexError):
                mol = None
        yield number, mol


def _records(file: Path) -> Iterator[str]:
    """Yield the text of every record.

    Raises:
        DataError: When the file cannot be read.
    """
    zipped = file.name.lower().endswith(".gz")
    lines: list[str] = []
    try:
        with gzip.open(file, "rt", errors="replace") if zipped else file.open(errors="replace") as stream:
            for line in stream:
                lines.append(line)
                if line.startswith("$$$$"):
                    yield "".join(lines)
                    lines = []
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if any(line.strip() for line in lines):
        yield "".join(lines)


def prepared(mol: Chem.Mol, keep_largest: bool = False) -> Chem.Mol:
    """Return the sanitised molecule with all its hydrogens.

    Raises:
        DataError: With the reason why it cannot be used.
    """
    if mol.GetNumAtoms() == 0:
        raise DataError("no atoms")
    if not mol.GetNumConformers() or not _three_dimensional(mol):
        raise DataError("no 3D coordinates")
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(mol)
        except (ValueError, RuntimeError) as error:
            raise DataError(f"not sane: {type(error).__name__}") from None
        parts = Chem.GetMolFrags(mol, asMols=True)
        if len(parts) > 1:
            if not keep_largest:
                raise DataError("several fragments")
            mol = max(parts, key=lambda part: part.GetNumHeavyAtoms())
        return Chem.AddHs(mol, addCoords=True)


def _three_dimensional(mol: Chem.Mol) -> bool:
    """Return whether the coordinates are in space: some vendors mark flat records as 3D."""
    pos = mol.GetConformer().GetPositions()
    if mol.GetConformer().Is3D() and (len(pos) <= 4 or abs(pos[:, 2]).max() > 1e-3):
        return True
    return bool(abs(pos[:, 2]).max() > 1e-3)


def tags(mol: Chem.Mol) -> dict[str, float]:
    """Return the tags of a record that are numbers."""
    found = {}
    for name, value in mol.GetPropsAsDict().items():
        with contextlib.suppress(TypeError, ValueError):
            found[name] = float(value)
    return found
