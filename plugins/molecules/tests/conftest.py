"""Molecules that are right."""

from __future__ import annotations

import pytest
from suffuse_molecules.embed import embed_smiles
from suffuse_molecules.record import Record


@pytest.fixture
def made():
    """Return the record of a SMILES with all hydrogens and a conformation."""

    def make(smiles: str) -> Record:
        found = embed_smiles(smiles)
        assert isinstance(found, Record), found
        return found

    return make
