"""Readers: a user's files as records, and what was left out, where and why.

A reader yields a `Record` or a `Skip` for everything it finds, so that one broken entry costs itself alone. `collect`
applies the limits that are common to all and makes the store.
"""

from suffuse_molecules.readers.collect import Collected, Limits, Skip, collect
from suffuse_molecules.readers.geom import read_geom
from suffuse_molecules.readers.qm9 import read_qm9
from suffuse_molecules.readers.sdf import read_sdf
from suffuse_molecules.readers.smiles import read_smiles
from suffuse_molecules.readers.xyz import read_xyz

__all__ = [
    "Collected", "Limits", "Skip", "collect", "read_geom", "read_qm9", "read_sdf", "read_smiles", "read_xyz",
]  # fmt: skip
