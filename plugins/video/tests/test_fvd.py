"""Fréchet video distance, with a tiny VideoMAE model that the test makes: what is counted, not what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from suffuse.errors import ConfigError, DataError
from suffuse_video.data import Shapes
from suffuse_video.metrics import Fvd

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random VideoMAE model of 8 features that sees 4 frames of 16 by 16."""
    from transformers import VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel

    path = tmp_path_factory.mktemp("mae")
    torch.default_generator.manual_seed(0)
    VideoMAEModel(VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=8, initializer_range=0.5,
    )).save_pretrained(path)  # fmt: skip
    VideoMAEImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data() -> Shapes:
    made = Shapes(count=80, size=16)
    made.setup()
    return made


def clips(data: Shapes, count: int = 80) -> torch.Tensor:
    return torch.stack([data.train[i]["x"] for i in range(count)])


def test_near_what_is_like_it_and_far_from_noise(mae: Path, data: Shapes):
    fvd = Fvd(str(mae), batch=7)
    like = fvd(clips(data)[:40], {}, data)
    noise = fvd(torch.rand(40, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0)), {}, data)
    assert noise["fvd"] > 5 * like["fvd"] > 0 and noise["fvd_real"] == like["fvd_real"] and like["fvd_num"] == 40
    still = clips(data)[:40, :, :1].expand(-1, -1, 8, -1, -1)
    assert fvd(still, {}, data)["fvd"] > 1.2 * like["fvd"]  # looks alone are not all


def test_it_is_the_distance_of_the_models_own_features(mae: Path, data: Shapes):
    from transformers import VideoMAEModel

    model = VideoMAEModel.from_pretrained(mae).eval()
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)

    def features(x: torch.Tensor) -> np.ndarray:
        seen = x[:, :, [0, 2, 5, 7]].transpose(1, 2)
        with torch.no_grad():
            return model(pixel_values=(seen - mean) / std).last_hidden_state.mean(1).double().numpy()

    samples = torch.flip(clips(data)[:40], (2,))
    a, b = features(samples), features(clips(data))
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(np.real(linalg.sqrtm(one @ two)))
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one) + np.trace(two) - 2 * cross
    assert a.shape == (40, 8)
    assert Fvd(str(mae))(samples, {}, data)["fvd"] == pytest.approx(wanted, rel=1e-3)


def test_clips_of_any_shape_and_of_lengths_of_their_own(mae: Path, data: Shapes):
    fvd = Fvd(str(mae), reference=20)
    x = clips(data)[:6]
    short = fvd.model([clip[:, :3] for clip in x])
    padded = {"x": x, "mask": (torch.arange(8) < 3).expand(6, -1)}
    other = Fvd(str(mae), reference=20)(padded, {}, data)
    assert other == fvd([clip[:, :3] for clip in x], {}, data) and short.shape == (6, 8)
    assert fvd.model([torch.rand(3, 1, 20, 36)]).isfinite().all()
    with pytest.raises(DataError, match="1 clips are too few"):
        fvd(x[:1], {}, data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "path is not set; give a folder with a VideoMAE model"), ({"path": "none"}, "none: no such folder"),
        ({"batch": 0, "path": "x"}, "batch=0"), ({"reference": 1, "path": "x"}, "reference=1"),
    ],
)  # fmt: skip
def test_what_it_refuses(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        Fvd(**options)
