"""The classifier behind agreement and Fréchet distance: it tells motion from looks, and says how far to trust it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError
from suffuse_video.data import Shapes
from suffuse_video.metrics import Auto, Features
from torch import Tensor
from torch.utils.data import Dataset


def dots(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips of a white dot that moves left (class 0) or right (class 1): single frames do not tell which."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    x = torch.zeros(count, 3, 6, 12, 12)
    for i in range(count):
        start, row = torch.randint(0, 12, (2,), generator=random).tolist()
        for t in range(6):
            x[i, :, t, row, (start + t * (1 if labels[i] else -1)) % 12] = 1
    return x, labels


class _Fixed(Dataset[Any]):
    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "cond": {"label": int(self.labels[i])}, "index": i}


class Dots(Data):
    def setup(self) -> None:
        self.train, self.val = _Fixed(*dots(400, 0)), _Fixed(*dots(100, 1))
        self.spec = Spec(labels=("left", "right"), about={"frames": 6, "height": 12, "width": 12, "fps": 8.0})


@pytest.fixture(scope="module")
def data() -> Dots:
    found = Dots()
    found.setup()
    return found


def test_motion_is_told(data: Dots):
    x, labels = dots(80, 2)
    metric = Features(train_steps=80)
    figures = metric(x, {"label": labels}, data)
    assert figures["agreement_real"] > 0.9 and figures["agreement"] > 0.9
    backwards = metric(x.flip(2), {"label": labels}, data)
    assert backwards["agreement"] < 0.2 and backwards["agreement_real"] == figures["agreement_real"]


def test_distances(data: Dots):
    x, labels = dots(80, 2)
    metric = Features(train_steps=20)
    real = metric(x, {"label": labels}, data)
    noisy = metric((x + 0.3 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
                   {"label": labels}, data)  # fmt: skip
    assert real["frechet"] < 3 * real["frechet_real"] and noisy["frechet"] > 3 * real["frechet"]
    unknown = metric(x, {"label": torch.full((80,), -1)}, data)
    assert "agreement" not in unknown and unknown["frechet"] == pytest.approx(real["frechet"], rel=1e-6)


def test_captions_serve_as_classes():
    shapes = Shapes(count=120)
    shapes.setup()
    batch = shapes.train.batch(list(range(30)))
    figures = Features(train_steps=20)(batch["x"], batch["cond"], shapes)
    assert 0 <= figures["agreement"] <= 1 and figures["frechet"] > 0


def test_auto(data: Dots):
    x, labels = dots(10, 3)
    assert set(Auto(train_steps=5)(x, {"label": labels}, data)) == {
        "agreement", "agreement_real", "frechet", "frechet_real",
    }  # fmt: skip
    shapes = Shapes(count=30)
    shapes.setup()
    batch = shapes.train.batch([0, 1, 2])
    assert "right_real" in Auto()(batch["x"], batch["cond"], shapes)


def test_bad_arguments(data: Dots):
    with pytest.raises(ConfigError, match=r"metrics.train_steps=0"):
        Features(train_steps=0)
    with pytest.raises(DataError, match="fewer than two samples"):
        Features()(torch.zeros(1, 3, 6, 12, 12), {"label": torch.zeros(1)}, data)
    one = Dots()
    one.setup()
    one.train.labels = torch.zeros(400, dtype=torch.long)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="the data has 1"):
        Features(train_steps=2)(dots(4, 0)[0], {"label": torch.zeros(4, dtype=torch.long)}, one)
