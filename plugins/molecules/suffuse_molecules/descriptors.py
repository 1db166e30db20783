"""Descriptors: properties of molecules by name, computed from their graphs, or columns that came with the data.

Any descriptor of RDKit can be a condition: its name in lower case, or a short one (``logp``, ``mw``, ``tpsa`` …).
A column of the data has the first right to a name, since it was put there on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import Descriptors
from suffuse.errors import ConfigError, suggest

from suffuse_molecules.store import Store

__all__ = ["ALIASES", "compute", "describe", "resolve"]

ALIASES = {
    "logp": "MolLogP", "mw": "MolWt", "hbd": "NumHDonors", "hba": "NumHAcceptors", "rotatable": "NumRotatableBonds",
    "fsp3": "FractionCSP3", "rings": "RingCount", "aromatic_rings": "NumAromaticRings", "heavy_atoms": "HeavyAtomCount",
}  # fmt: skip
"""Short names of RDKit's descriptors; any other is its own name in lower case."""

_KNOWN: dict[str, Callable[[Chem.Mol], float]] = {name.lower(): function for name, function in Descriptors.descList}


def resolve(name: str) -> Callable[[Chem.Mol], float]:
    """Return the descriptor of a name, whatever its case.

    Raises:
        ConfigError: For an unknown name.
    """
    found = _KNOWN.get(ALIASES.get(name.lower(), name).lower())
    if found is None:
        raise ConfigError(f"no property {name!r}{suggest(name, [*ALIASES, *_KNOWN])}")
    return found


def describe(mol: Chem.Mol, names: Sequence[str]) -> list[float]:
    """Return the descriptors of a sanitised molecule; NaN where one cannot be computed."""
    found = []
    for name in names:
        try:
            value = float(resolve(name)(mol))
        except (ValueError, RuntimeError, ZeroDivisionError):
            value = float("nan")
        found.append(value if np.isfinite(value) else float("nan"))
    return found


def compute(store: Store, names: Sequence[str]) -> NDArray[np.float32]:
    """Return the properties of all molecules, float32, shape (M, K).

    Arguments:
        store: The molecules; its own columns have the first right to a name.
        names: Columns or descriptors.

    Raises:
        ConfigError: For a name that is neither.
    """
    columns = {name.lower(): k for k, name in enumerate(store.columns)}
    for name in names:
        if name.lower() not in columns:
            try:
                resolve(name)
            except ConfigError:
                hint = suggest(name, [*store.columns, *ALIASES, *_KNOWN])
                raise ConfigError(f"data.conditions: no column or descriptor {name!r}{hint}") from None
    found = np.full((len(store), len(names)), np.nan, np.float32)
    worked_out = [k for k, name in enumerate(names) if name.lower() not in columns]
    for k, name in enumerate(names):
        if k not in worked_out:
            found[:, k] = store.props[:, columns[name.lower()]]
    if worked_out:
        for row, smiles in enumerate(store.smiles):
            mol = Chem.MolFromSmiles(smiles)
            if mol is not None:
                found[row, worked_out] = describe(mol, [names[k] for k in worked_out])
    return found
