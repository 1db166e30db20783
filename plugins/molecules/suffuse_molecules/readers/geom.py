"""GEOM: the pickles of drug-like conformers that MiDi's authors made, read without running what is in them.

"GEOM, energy-annotated molecular conformations …", Axelrod and Gómez-Bombarelli 2022; the pickles hold lists of
(SMILES, [RDKit molecules]). A pickle can call any function: this reader builds RDKit molecules and plain containers and
refuses everything else.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rdkit import Chem
from suffuse.errors import DataError

from suffuse_molecules.readers.collect import Skip, files
from suffuse_molecules.readers.sdf import prepared
from suffuse_molecules.record import Record, from_mol

__all__ = ["read_geom"]

ALLOWED = {
    ("rdkit.Chem.rdchem", "Mol"), ("rdkit.Chem", "Mol"), ("collections", "OrderedDict"), ("collections", "defaultdict"),
    ("builtins", "list"), ("builtins", "dict"), ("builtins", "set"), ("builtins", "tuple"),
}  # fmt: skip
"""What a pickle may name."""


class _Safe(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_geom(where: str | Path | Sequence[str | Path], conformers: int = 1) -> Iterator[Record | Skip]:
    """Yield the first conformers of every molecule of ``*_data.pickle`` files.

    Arguments:
        where: A file, a folder, a pattern or a list of them.
        conformers: Most conformers of a molecule.

    Raises:
        DataError: For a pickle that asks for anything but molecules and containers.
    """
    for file in files(where, (".pickle", ".pkl")):
        try:
            with file.open("rb") as stream:
                entries = _Safe(stream).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError) as error:
            raise DataError(f"{file}: refused: {error}; only lists of (SMILES, [RDKit molecules]) are read") from error
        if not isinstance(entries, Sequence):
            raise DataError(f"{file}: holds a {type(entries).__name__}, not a list of (SMILES, [RDKit molecules])")
        for number, entry in enumerate(entries):
            yield from _molecules(f"{file.name}: entry {number}", entry, conformers)


def _molecules(place: str, entry: Any, conformers: int) -> Iterator[Record | Skip]:
    if not (isinstance(entry, Sequence) and len(entry) == 2 and isinstance(entry[1], Sequence)):
        yield Skip(place, "not a pair of SMILES and molecules")
        return
    for mol in list(entry[1])[:conformers]:
        if not isinstance(mol, Chem.Mol):
            yield Skip(place, "not a molecule")
            continue
        try:
            yield from_mol(prepared(mol))
        except DataError as error:
            yield Skip(place, str(error))
