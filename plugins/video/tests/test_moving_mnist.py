"""Moving MNIST: digits that bounce, on made-up digits and on the real ones."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from suffuse.errors import ConfigError, DataError
from suffuse.text import captions_of
from suffuse_video.data import MovingMNIST
from suffuse_video.data.moving_mnist import WORDS, caption


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten digits, each a square of brightness 20 (digit + 1) in the middle 8 x 8 of its picture."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        y = np.arange(count, dtype=np.uint8) % 10
        x = np.zeros((count, 28, 28), np.uint8)
        x[:, 10:18, 10:18] = (20 * (y + 1))[:, None, None]
        raw = bytes((0, 0, 8, 3)) + struct.pack(">3I", *x.shape) + x.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(raw))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1)) + struct.pack(">I", count) + y.tobytes())
    return tmp_path


def made(root: Path, **options: Any) -> MovingMNIST:
    data = MovingMNIST(root=str(root), **({"count": 30, "val_count": 10} | options))
    data.setup()
    return data


def path_of(x: torch.Tensor) -> np.ndarray:
    """Return the top left corner of what is bright in each frame, (T, 2)."""
    return np.array([np.argwhere(frame.numpy() > 0).min(0) for frame in x[0]])


def test_items(root: Path):
    data = made(root)
    item = data.train[3]
    assert item["x"].shape == (3, 16, 64, 64) and item["x"].dtype == torch.float32 and item["index"] == 3
    assert torch.equal(item["x"][0], item["x"][2]) and 0 < item["x"].max() <= 200 / 255 + 1e-6
    assert torch.equal(made(root, seed=9).train[3]["x"], item["x"])
    assert not torch.equal(data.train[4]["x"], item["x"]) and not torch.equal(data.val[3]["x"], item["x"])
    assert set(data.spec.about) == {"frames", "height", "width", "fps", "text", "prompts"} and data.spec.labels == ()
    assert (len(data.train), len(data.val)) == (30, 10)
    with pytest.raises(IndexError):
        data.train[30]


def test_captions_say_what_is_seen(root: Path):
    data = made(root)
    for i in range(30):
        text = captions_of(data.train[i]["cond"]["text"][None])[0]
        shown = {round(v * 255 / 20) - 1 for v in data.train[i]["x"].unique().tolist() if v}
        # One digit may lie on another in every frame.
        assert shown and all(WORDS[digit] in text for digit in shown)
    assert caption([7, 3]) == "a three and a seven" and caption([8]) == "an eight"
    assert caption([1, 1]) == "two ones" and caption([6, 0, 6]) == "a zero and two sixes"
    assert caption([2, 1, 0]) == "a zero, a one and a two" and caption([0, 0]) == "two zeroes"


@pytest.mark.parametrize("speed", [1.0, 3.0, 7.5])
def test_digits_move_straight_and_bounce(root: Path, speed: float):
    data = made(root, digits=1, frames=40, speed=speed)
    bounces = 0
    for i in range(30):
        path = path_of(data.train[i]["x"]) - 10
        assert path.min() >= 0 and path.max() <= 64 - 28
        steps = np.diff(path, axis=0)
        # Away from the walls a step is the same up to rounding, and has the wanted length.
        assert np.abs(steps).max() <= np.ceil(speed)
        inside = (path[:-1] > speed).all(1) & (path[:-1] < 36 - speed).all(1)
        sizes = np.abs(steps[inside])
        assert (sizes.max(0) - sizes.min(0) <= 1).all()
        assert np.hypot(*sizes.mean(0)) == pytest.approx(speed, abs=0.5)
        signs = np.sign(steps)
        bounces += int((signs[:-1] * signs[1:] < 0).sum())
    assert bounces > 20


def test_sizes(root: Path):
    data = made(root, size=28, frames=3, digits=3)
    assert data.train[0]["x"].shape == (3, 3, 28, 28)
    assert torch.equal(data.train[0]["x"][:, 0], data.train[0]["x"][:, 2])  # nowhere to go


@pytest.mark.parametrize(
    ("options", "said"),
    [({"size": 27}, r"data\.size=27 must be a whole number of at least 28"), ({"digits": 0}, r"data\.digits=0"),
     ({"speed": 0}, r"data\.speed=0"), ({"fps": -1}, r"data\.fps=-1"), ({"count": 0}, r"data\.count=0")],
)  # fmt: skip
def test_bad_arguments(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        MovingMNIST(**options)


def test_missing_files(root: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.root=.*: no MNIST files in .*MNIST/raw; put") as caught:
        made(tmp_path / "none")
    assert "\n" not in str(caught.value)
    path = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="should hold 20 values and holds 19"):
        made(root)


def test_real_digits(real: Path):
    data = made(real)
    assert len(data.train.images) == 60_000 and len(data.val.images) == 10_000  # type: ignore[attr-defined]
    clip = data.train[0]["x"]
    assert clip.max() > 0.95 and 0.02 < clip.mean() < 0.12
    prompts = data.spec.about["prompts"]
    assert len(prompts) > 15 and all(p.split()[0] in ("a", "an", "two") for p in prompts)
