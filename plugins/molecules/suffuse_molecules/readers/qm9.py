"""QM9: the raw files of "Quantum chemistry structures and properties of 134 kilo molecules", Ramakrishnan et al. 2014.

A file of n atoms has n, the tag and 15 properties, n lines of element, coordinates and partial charge, the frequencies,
the SMILES of GDB-17 and of the relaxed geometry, and both InChI. Powers are written ``1.5*^-6``. Energies are in
Hartree there and in eV here.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase
from suffuse.errors import ConfigError, DataError

from suffuse_molecules.readers.collect import Skip
from suffuse_molecules.readers.xyz import perceive
from suffuse_molecules.record import Record, from_mol

__all__ = ["EV", "PROPERTIES", "read_qm9"]

EV = 27.211386245988
"""Electronvolts in a Hartree (CODATA 2018)."""

PROPERTIES = (
    "rot_a", "rot_b", "rot_c", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u", "h", "g", "cv",
)  # fmt: skip
"""Names of the 15 numbers, in their order."""

ENERGIES = ("homo", "lumo", "gap", "zpve", "u0", "u", "h", "g")

ATOMIC = {"u0": {"H": -0.500273, "C": -37.846772, "N": -54.583861, "O": -75.064579, "F": -99.718730}}
"""Energies of free atoms in Hartree (the data set's own table), for energies of atomisation."""


def read_qm9(where: str | Path) -> Iterator[Record | Skip]:
    """Yield the molecules of a folder of ``dsgdb9nsd_*.xyz`` files, or of ``dsgdb9nsd.xyz.tar.bz2`` as it is.

    Ids in ``uncharacterized.txt`` beside them are left out, as are molecules whose bonds, perceived from the geometry,
    are not those of its SMILES.

    Raises:
        ConfigError: Without a path.
        DataError: When there is nothing there.
    """
    if where is None:
        raise ConfigError("data.path is not set; give the folder of dsgdb9nsd_*.xyz or dsgdb9nsd.xyz.tar.bz2")
    path = Path(where).expanduser()
    folder = path if path.is_dir() else path.parent
    dropped = _uncharacterized(folder / "uncharacterized.txt")
    for name, text in _texts(path):
        number = int(found[1]) if (found := re.search(r"_(\d+)\.xyz$", name)) else 0
        if number in dropped:
            yield Skip(name, "uncharacterized")
            continue
        try:
            yield _molecule(text)
        except DataError as error:
            yield Skip(name, str(error))
        except (ValueError, IndexError):
            yield Skip(name, "not a file of QM9")


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        found = sorted(path.rglob("*.xyz"))
        for file in found:
            yield file.name, file.read_text()
        if found:
            return
        archives = sorted(path.glob("*.tar.bz2"))
        if not archives:
            raise DataError(f"data.path={path}: no dsgdb9nsd_*.xyz there, and no .tar.bz2 of them")
        path = archives[0]
    if not path.is_file():
        raise DataError(f"data.path={path}: no such file or folder")
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.endswith(".xyz") else None
                if stream is not None:
                    yield Path(member.name).name, stream.read().decode()
    except tarfile.TarError as error:
        raise DataError(f"data.path={path}: no tar archive: {error}") from error


def _uncharacterized(path: Path) -> set[int]:
    """Return the ids of the list, whose lines begin with them."""
    if not path.is_file():
        return set()
    found = (re.match(r"\s*(\d+)\s+\S", line) for line in path.read_text().splitlines())
    return {int(match[1]) for match in found if match}


def _molecule(text: str) -> Record:
    lines = text.splitlines()
    count = int(lines[0])
    values = [float(value.replace("*^", "e")) for value in lines[1].split()[2:17]]
    if len(values) != len(PROPERTIES):
        raise DataError("not a file of QM9")
    props = {name: value * EV if name in ENERGIES else value for name, value in zip(PROPERTIES, values, strict=True)}
    rows = [line.split() for line in lines[2 : 2 + count]]
    symbols = [row[0] for row in rows]
    pos = np.array([[float(value.replace("*^", "e")) for value in row[1:4]] for row in rows])
    props["u0_atom"] = props["u0"] - EV * sum(ATOMIC["u0"][symbol] for symbol in symbols)
    smiles = lines[3 + count].split()
    mol = perceive(symbols, pos)
    with rdBase.BlockLogs():
        found, wanted = (_plain(one) for one in (mol, Chem.MolFromSmiles(smiles[-1])))
    if found != wanted:
        raise DataError("perceived bonds are not those of its SMILES")
    return from_mol(mol, props=props)


def _plain(mol: Chem.Mol | None) -> str:
    if mol is None:
        return "no molecule"
    text: str = Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)
    return text
