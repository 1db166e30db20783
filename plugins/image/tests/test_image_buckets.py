"""Pictures of several proportions: each goes to the bucket that crops least of it, and batches are of one shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from suffuse.errors import ConfigError
from suffuse.text import captions_of
from suffuse_image.data import Folder
from suffuse_image.data.bucketed import assigned, automatic, listed
from suffuse_image.data.decode import size_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wide, tall and square pictures whose red channel is their number, with captions."""
    lines = ["file_name,text"]
    for number in range(60):
        height, width = ((16, 16), (12, 24), (24, 12))[number % 3]
        Image.fromarray(np.full((height, width, 3), (number, 0, 0), np.uint8)).save(tmp_path / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,picture {number}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    return tmp_path


def made(folder: Path, **options) -> Folder:
    data = Folder(str(folder), size=16, batch_size=4, **options)
    data.setup()
    return data


def test_each_goes_where_least_is_cropped() -> None:
    shapes = [(16, 16), (12, 20), (20, 12)]
    assert [assigned(size, shapes) for size in ((100, 100), (90, 160), (50, 30), (101, 110))] == [0, 1, 2, 0]
    # Of equal proportions the largest that need not be enlarged.
    assert assigned((40, 40), [(16, 16), (32, 32), (64, 64)]) == 1 and assigned((8, 8), [(16, 16), (32, 32)]) == 0


def test_batches_are_of_one_shape_and_every_picture_comes_once(folder: Path) -> None:
    data = made(folder, buckets=[[16, 16], [12, 24], [24, 12]])
    assert "16 x 16" in data.describe() and len(data.train) + len(data.val) == 60
    seen, shapes = [], set()
    batches = iter(data.train_loader())
    for _ in range(len(data.train) // 4):
        batch = next(batches)
        shapes.add(tuple(batch["x"].shape[1:]))
        numbers = (batch["x"][:, 0, 0, 0] * 255).round().int().tolist()
        assert captions_of(batch["cond"]["text"]) == [f"picture {n}" for n in numbers]
        kind = [(3, 16, 16), (3, 12, 24), (3, 24, 12)].index(tuple(batch["x"].shape[1:]))
        assert {n % 3 for n in numbers} == {kind}
        seen += numbers
    # An epoch of a bucket may begin within one of the whole.
    assert len(shapes) == 3 and len(seen) - len(set(seen)) <= 8
    again = next(iter(data.train_loader(start=3)))
    batches = iter(data.train_loader())
    fourth = [next(batches) for _ in range(4)][3]
    assert torch.equal(again["index"], fourth["index"])


def test_what_speaks_for_all_has_one_shape(folder: Path) -> None:
    data = made(folder, buckets="auto")
    main = tuple(data.spec.about["size"])
    assert {tuple(item["x"].shape[1:]) for item in data.sample(20)} == {main}
    assert {tuple(item["x"].shape[1:]) for item in data.sample(20, held_out=True)} == {main}
    assert list(main) in data.spec.about["buckets"] and data.spec.about["prompts"]
    held = [batch["x"].shape[1:] for batch in data.val_loader()]
    assert sum(len(batch["x"]) for batch in data.val_loader()) == len(data.val) and held


def test_derived_buckets(folder: Path) -> None:
    sizes = [(16, 16)] * 20 + [(12, 24)] * 20 + [(24, 12)] * 3
    found = automatic(sizes, (64, 64), batch=4)
    assert (64, 64) in found and all(h * w <= 64 * 64 and h % 16 == w % 16 == 0 for h, w in found)
    assert not any(h > w for h, w in found)  # too few tall ones for a bucket


def test_sizes_are_read_from_headers(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.png")
    assert size_of(tmp_path / "turned.jpg") == (20, 10) and size_of(tmp_path / "plain.png") == (10, 20)
    assert size_of(b"no picture") is None


@pytest.mark.parametrize("value", [3, "some", [], [[16]], [[16, 0]], [16, 16]])
def test_bad_buckets(value) -> None:
    with pytest.raises(ConfigError, match=r"data\.buckets"):
        listed(value)
