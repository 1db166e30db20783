"""Pictures, animations and folders of pictures, read as clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from suffuse_video.files import ClipError, Head, probe, read

from .conftest import film


def test_pictures_are_clips_of_one_frame(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for end in ("png", "bmp", "tiff"):
        Image.fromarray(pixels).save(tmp_path / f"a.{end}")
        assert probe(tmp_path / f"a.{end}") == Head(1, 0.0, 20, 30, 0.0) and probe(tmp_path / f"a.{end}").still
        found = read(tmp_path / f"a.{end}")
        assert np.array_equal((found[:, 0] * 255).round().numpy(), pixels.transpose(2, 0, 1))
    assert torch.equal(read(tmp_path / "a.png", 3, fps=8), found.expand(3, 3, 20, 30))
    with pytest.raises(ClipError, match="it has 1 frames, a clip needs 3"):
        read(tmp_path / "a.png", 3, short="error")


def test_picture_modes(tmp_path: Path):
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4] = (200, 100, 50, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    for background, level in (("black", 0), ("white", 1)):
        found = read(tmp_path / "clear.png", background=background)[:, 0]
        assert torch.allclose(found[:, 0, 0] * 255, torch.tensor([200.0, 100, 50])) and (found[:, 6] == level).all()
    Image.fromarray(np.full((8, 8), 257 * 77, np.uint16)).save(tmp_path / "deep.png")
    assert torch.allclose(read(tmp_path / "deep.png"), torch.tensor(77 / 255))
    turned = Image.fromarray(np.zeros((8, 16, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert probe(tmp_path / "turned.jpg").size == (16, 8) and read(tmp_path / "turned.jpg").shape == (3, 1, 16, 8)


@pytest.mark.parametrize("end", ["gif", "webp", "png"])
def test_animations(tmp_path: Path, end: str):
    pictures = [Image.fromarray(np.full((16, 20, 3), 20 * (1 + i), np.uint8)) for i in range(10)]
    delays = [100] * 5 + [400] * 5
    how = {"lossless": True} if end == "webp" else {}
    path = tmp_path / f"a.{end}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=delays, **how)
    assert probe(path) == Head(10, 4.0, 16, 20, 2.5)

    def levels(clip: torch.Tensor) -> list[int]:
        return [round(float(v) * 255 / 20) - 1 for v in clip.mean((0, 2, 3))]

    assert levels(read(path)) == list(range(10)) and levels(read(path.read_bytes(), 3)) == [0, 1, 2]
    assert levels(read(path, 6, fps=10, start=0.2)) == [2, 3, 4, 5, 5, 5]
    assert levels(read(path, 4, fps=2.5, start=0.5)) == [5, 6, 7, 8]
    assert levels(read(path, 3, start=0.35)) == [3, 4, 5] and levels(read(path, 3, fps=10, start=2.4)) == [9, 9, 9]
    assert levels(read(path, 12, short="repeat"))[9:] == [9, 0, 1]


def test_gif_of_pyav(tmp_path: Path):
    path = film(tmp_path / "av.gif", 8, fps=10, first=5)
    assert probe(path).fps == pytest.approx(10) and read(path, 2, 16).shape == (3, 2, 16, 16)


def test_folders_of_pictures(tmp_path: Path):
    for number in (1, 2, 3, 10, 11):
        Image.fromarray(np.full((8, 10, 3), number, np.uint8)).save(tmp_path / f"frame_{number}.png")

    def levels(clip: torch.Tensor) -> list[int]:
        return [round(float(v) * 255) for v in clip.mean((0, 2, 3))]

    assert probe(tmp_path) == Head(5, 0.0, 8, 10, 0.0) and probe(tmp_path).count(12) == 5
    assert levels(read(tmp_path)) == levels(read(tmp_path, fps=24)) == [1, 2, 3, 10, 11]
    assert levels(read(tmp_path, 3, fps=8, start=2 / 8)) == [3, 10, 11]
    assert levels(read(tmp_path, 7, fps=8)) == [1, 2, 3, 10, 11, 11, 11]
    assert levels(read(tmp_path, 7, fps=8, short="repeat")) == [1, 2, 3, 10, 11, 1, 2]
    (tmp_path / "frame_3.png").write_bytes(b"no")
    with pytest.raises(ClipError, match=r"frame_3\.png: it is no picture"):
        read(tmp_path)
    assert levels(read(tmp_path, 2)) == [1, 2]  # only what is needed is decoded
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(tmp_path / "cover.png")
    with pytest.raises(ClipError, match="a folder without numbered pictures"):
        probe(tmp_path)
