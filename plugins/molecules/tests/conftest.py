"""Molecules that are right, and where the optional real data lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from suffuse_molecules.embed import embed_smiles
from suffuse_molecules.record import Record

REAL = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def real() -> Path:
    """The folder of real data sets; what needs it is skipped without it."""
    if not REAL.is_dir():
        pytest.skip(f"no real data in {REAL}")
    return REAL


@pytest.fixture
def made():
    """Return the record of a SMILES with all hydrogens and a conformation."""

    def make(smiles: str) -> Record:
        found = embed_smiles(smiles)
        assert isinstance(found, Record), found
        return found

    return make
