"""What the text to image run reaches, on a whole training: half an hour, so it is slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from suffuse.testing import command

pytestmark = pytest.mark.slow


def test_the_embedded_captions_are_followed(tmp_path: Path):
    words = ["modality=image", "experiment=image/shapes_text", "name=q", "every.preview=0", "every.validate=0"]
    done = command(tmp_path, "train", *words)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "outputs" / "image" / "q" / "metrics.json").read_text())
    assert figures["right_real"] == 1 and figures["right_size"] >= 0.93 and figures["right_place"] >= 0.93
    assert figures["right_one"] >= 0.5 and figures["held_out_one"] >= 0.2 and figures["right_pair"] >= 0.08
    assert max(figures[f"swapped_{kind}"] for kind in ("one", "several", "pair")) < 0.06
