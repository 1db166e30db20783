"""Where the optional real data lies."""

from __future__ import annotations

from pathlib import Path

import pytest

REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def real() -> Path:
    """The folder of real data sets; what needs it is skipped without it."""
    if not REAL.is_dir():
        pytest.skip(f"no real data in {REAL}")
    return REAL
