"""Molecules that are right, and a small data set."""

from __future__ import annotations

import pytest
from suffuse_molecules.embed import embed_smiles
from suffuse_molecules.record import Record
from suffuse_molecules.sets import Mini


@pytest.fixture
def made():
    """Return the record of a SMILES with all hydrogens and a conformation."""

    def make(smiles: str) -> Record:
        found = embed_smiles(smiles)
        assert isinstance(found, Record), found
        return found

    return make


@pytest.fixture(scope="module")
def data() -> Mini:
    """Return molecules of four heavy atoms at most, with two conditions."""
    made = Mini(heavy=4, conditions=["logp", "mw"], batch_size=8)
    made.setup()
    return made
