"""What the default run reaches, on a whole training: minutes, so it is slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "video_rollout.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default run."""
    folder = tmp_path_factory.mktemp("video")
    done = subprocess.run(
        [sys.executable, "-m", "suffuse", "train", "modality=video", "name=q", "every.preview=0"], cwd=folder,
        capture_output=True, text=True, check=False, env={**os.environ, "WANDB_MODE": "offline"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "outputs" / "video" / "q"


def measured(run: Path, *words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), str(run), "--json", "--num", "100", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_default_run_shows_what_is_asked(run: Path):
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["right"] >= 0.88 and figures["right_held_out"] >= 0.82 and figures["right_swapped"] < 0.03
    assert figures["right_real"] == 1 and figures["grain"] < 0.025


def test_image_to_video(run: Path):
    figures = measured(run, "--given", "1")
    assert figures["kept_min"] > 60 and figures["whole"] >= 0.8


def test_rollout(run: Path):
    assert measured(run, "--frames", "32")["whole"] >= 0.35
