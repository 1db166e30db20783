"""How the tests run: two processes for whole folders, one thread each; and where the optional real data lies.

One thread, so that processes do not take the cores from each other, and so that no sum of floats depends on how many
cores there are. `-n 0` runs everything in one process, `-n 8` in eight.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when torch is imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

QUICK = "not slow and not gpu"
REAL = Path(__file__).parents[1] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Take two workers, where pytest-xdist is there, for the quick tests of folders when nothing else is asked."""
    option = config.option
    if hasattr(config, "workerinput") or "PYTEST_XDIST_WORKER" in os.environ:
        return  # a worker, or a run that a test has started
    if getattr(option, "numprocesses", 0) is not None or option.dist != "no" or option.usepdb or option.collectonly:
        return
    if option.markexpr == QUICK and option.capture != "no" and all(Path(word).is_dir() for word in config.args):
        # Half of what is left moves to a worker that is done: long files at the end do not wait for one process.
        option.numprocesses, option.dist = 2, "worksteal"


@pytest.fixture
def real() -> Path:
    """Return the folder of real data sets; what needs it is skipped without it."""
    if not REAL.is_dir():
        pytest.skip(f"no real data in {REAL}")
    return REAL
