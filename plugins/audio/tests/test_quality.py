"""What the default runs reach, on whole trainings: minutes each, so all are slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def trained(folder: Path, *words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "suffuse", "train", "modality=audio", "name=q", "every.preview=0", *words], cwd=folder,
        capture_output=True, text=True, check=False, env={**os.environ, "WANDB_MODE": "offline"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "outputs" / "audio" / "q" / "metrics.json").read_text())


def test_the_default_run_draws_what_is_asked(tmp_path: Path):
    figures = trained(tmp_path, "metrics_num=300")
    assert figures["right"] >= 0.95 and figures["right_held_out"] >= 0.75 and figures["right_swapped"] < 0.05
    assert figures["right_real"] > 0.98 and figures["cents"] < 5 and figures["clean"] > 0.94


def test_spoken_digits(real: Path, tmp_path: Path):
    """About a quarter of an hour on two cores."""
    figures = trained(tmp_path, "experiment=audio/fsdd", f"data.path={real / 'fsdd' / 'recordings'}", "metrics_num=500")
    assert figures["agreement_real"] >= 0.95 and figures["agreement"] >= 0.87 and figures["frechet"] < 35
