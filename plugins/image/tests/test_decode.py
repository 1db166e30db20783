"""The decoder: the same picture, whatever file it was stored in."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from suffuse.errors import ConfigError
from suffuse_image.data.decode import Decoder, PictureError, suffixes

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def stored(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_the_right_size_keeps_every_pixel(form: str) -> None:
    found = Decoder(4)(stored(Image.fromarray(RAMP), form))
    assert found.dtype == torch.uint8 and torch.equal(found, torch.from_numpy(RAMP).permute(2, 0, 1))


def test_a_path_reads_like_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(stored(Image.fromarray(RAMP), "PNG"))
    assert torch.equal(Decoder(4)(path), Decoder(4)(path.read_bytes()))


def test_exif_turns_the_picture() -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter: the left half comes to the top
    found = Decoder([16, 8])(stored(Image.fromarray(wide), "JPEG", exif=exif, quality=95, subsampling=0))
    assert found.shape == (3, 16, 8)
    assert found[0, :7].min() > 240 and found[0, 9:].max() < 15


def test_transparency_shows_the_background() -> None:
    half = np.zeros((2, 2, 4), np.uint8)
    half[..., 3] = (255, 0), (51, 0)  # a fifth of black over blue is 0.8 blue
    found = Decoder(2, background="#0000ff")(stored(Image.fromarray(half), "PNG"))
    assert found[2].tolist() == [[0, 255], [204, 255]] and found[:2].max() == 0


def test_palette_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 750)
    image.putdata([0, 1])
    found = Decoder([1, 2], background="white")(stored(image, "PNG", transparency=0))
    assert found[:, 0].T.tolist() == [[255, 255, 255], [200, 100, 50]]


def test_first_frame_of_a_gif() -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    found = Decoder(3)(stored(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert found.flatten(1).unique(dim=1).T.tolist() == [[255, 0, 0]]


def test_sixteen_bits() -> None:
    deep = np.array([[0, 257, 128 * 257 + 100, 65535]], np.uint16)
    found = Decoder([1, 4], channels=1)(stored(Image.fromarray(deep), "PNG"))
    assert found.tolist() == [[[0, 1, 128, 255]]]


def test_floats_count_to_one_and_no_further() -> None:
    values = np.array([[0, 0.2, 1]], np.float32)
    assert Decoder([1, 3], channels=1)(stored(Image.fromarray(values), "TIFF")).tolist() == [[[0, 51, 255]]]
    with pytest.raises(PictureError, match=r"F pixels outside \[0, 1\]"):
        Decoder([1, 3])(stored(Image.fromarray(values * 255), "TIFF"))


def test_one_bit_and_cmyk() -> None:
    bits = stored(Image.fromarray(np.array([[True, False]])), "PNG")
    assert Decoder([1, 2])(bits).tolist() == [[[255, 0]]] * 3
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    found = Decoder(8)(stored(cyan, "JPEG", quality=95)).float().mean((1, 2))
    assert (found - torch.tensor([0.0, 255.0, 255.0])).abs().max() < 4


def test_grey_is_the_luma() -> None:
    found = Decoder(1, channels=1)(stored(Image.new("RGB", (1, 1), (255, 0, 0)), "PNG"))
    assert found.item() == round(0.299 * 255)


def test_fits() -> None:
    bars = np.zeros((10, 30, 3), np.uint8)
    bars[:, 10:20] = 255
    data = stored(Image.fromarray(bars), "PNG")
    assert Decoder(10, fit="crop")(data).min() == 255
    boxed = Decoder(30, fit="letterbox", background="red")(data)
    assert boxed[:, 0, 0].tolist() == boxed[:, 29, 29].tolist() == [255, 0, 0]
    assert boxed[:, 15, 15].tolist() == [255] * 3 and boxed[:, 15, 2].tolist() == [0] * 3
    squeezed = Decoder(10, fit="stretch")(data)[0].float()
    assert squeezed[:, 5].min() > 240 and squeezed[:, :2].max() < 15 and abs(squeezed.mean() / 255 - 1 / 3) < 0.01


def test_reduction_is_antialiased() -> None:
    checker = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = Decoder(8, channels=1)(stored(Image.fromarray(checker), "PNG")).float()
    assert (found - 127.5).abs().max() < 8


@pytest.mark.parametrize("data", [b"", b"nothing", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(PictureError, match=r"^not a picture$"):
        Decoder(4)(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_truncated_files_are_refused(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = stored(Image.fromarray(noise), form)
    with pytest.raises(PictureError) as caught:
        Decoder(8)(data[: len(data) // 2])
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": "big"}, r"data.size=big must be a positive whole number or \[height, width\]"),
        ({"size": 0}, "data.size=0 must be"),
        ({"size": [8, -1]}, r"data.size=\[8, -1\] must be"),
        ({"size": [8, 8, 3]}, r"data.size=\[8, 8, 3\] must be"),
        ({"size": 8, "channels": 4}, r"data.channels=4 must be 3 \(RGB\) or 1 \(grey\)"),
        ({"size": 8, "fit": "cropp"}, "data.fit=cropp is unknown; did you mean 'crop'"),
        ({"size": 8, "background": "whte"}, "data.background=whte is no colour; use a name like white"),
        ({"size": 8, "background": None}, "data.background=None is no colour"),
    ],
)
def test_bad_arguments(options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Decoder(**options)


def test_known_suffixes() -> None:
    assert {".png", ".jpg", ".jpeg", ".gif", ".webp", ".tif", ".bmp"} <= suffixes()
    assert not {".eps", ".ps", ".pdf", ".mpg", ".txt"} & suffixes()
