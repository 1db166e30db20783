"""What the default runs reach, measured by a judge that saw real digits only. Minutes each: `pytest -m slow`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SHARED = Path(__file__).parents[2] / "shared" / "data"


def drawn(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the drawn pictures as integers, and the class each was asked for."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    pictures = np.stack([np.asarray(Image.open(folder / row["file"]), dtype=np.float64) for row in rows])
    return pictures, np.array([row["condition"]["label"] for row in rows])


def test_digits_are_what_was_asked_for(command, tmp_path: Path) -> None:
    """At least 95 % of 500 samples at 20 steps, by a support-vector machine trained on real digits."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    assert command("train", "modality=image", "name=d", timeout=1200, OMP_NUM_THREADS="2").returncode == 0
    result = command("sample", "ckpt=outputs/image/d", "num=500", "sampler.steps=20", "out=x", timeout=600)
    assert result.returncode == 0, result.stderr
    pictures, labels = drawn(tmp_path / "x")
    real, classes = load_digits(return_X_y=True)
    judge = SVC(gamma=0.001).fit(real[::2], classes[::2])
    assert judge.score(real[1::2], classes[1::2]) > 0.97
    share = (judge.predict(pictures.reshape(500, -1) / 255 * 16) == labels).mean()
    print(f"share of 500 samples that are the asked digit: {share:.3f}")
    assert share >= 0.95


def test_mnist_within_twenty_minutes(command, tmp_path: Path) -> None:
    """At least 97 % by a convolutional network trained on real MNIST, which the run's metrics also use."""
    if not (SHARED / "MNIST").is_dir():
        pytest.skip(f"needs MNIST in {SHARED}")
    words = ["modality=image", "data=image/mnist", f"data.root={SHARED}", "name=m"]
    result = command("train", *words, timeout=3000, OMP_NUM_THREADS="2")
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "outputs/image/m/metrics.json").read_text())
    print(figures)
    assert figures["agreement_real"] >= 0.985
    assert figures["agreement"] >= 0.97
    assert figures["timing"]["train_seconds"] <= 20 * 60
