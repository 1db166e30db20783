"""What the default run reaches, on a whole training: minutes, so it is slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from suffuse.testing import command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default run."""
    folder = tmp_path_factory.mktemp("shapes")
    done = command(folder, "train", "modality=shapes", "name=q", "every.preview=0", "trainer=cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "outputs" / "shapes" / "q"


def test_the_default_run_shows_what_is_asked(run: Path):
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["right_colour"] >= 0.98 and figures["right_form"] >= 0.95 and figures["right_one"] >= 0.7
    assert figures["right"] >= 0.5 and figures["right_held_out"] >= 0.45
    assert figures["right_swapped"] < 0.06 and figures["right_real"] >= 0.97
    assert figures["residual"] <= 2.2 * figures["residual_real"]
