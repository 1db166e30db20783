"""Files as the beginning of samples: sizes, masks, outpainting, and pictures as conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from suffuse.errors import ConfigError
from suffuse.nn import UNet
from suffuse.noise import KeyedNoise
from suffuse_image.codec import Canvas, Pixels
from suffuse_image.data import ShapesText
from suffuse_image.hints import Edges, Given, LowRes
from suffuse_image.pictured import Pictured

ABOUT = {"size": [8, 8], "channels": 3}


def saved(path: Path, array: Any) -> str:
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def ramp(tmp_path: Path) -> str:
    """A picture of 8 x 8 whose red counts the columns and whose green counts the rows."""
    rows, columns = np.mgrid[:8, :8]
    return saved(tmp_path / "ramp.png", np.stack([columns * 30, rows * 30, 0 * rows], -1))


def test_a_picture_of_the_size_stays_as_it_is(ramp: str) -> None:
    state, kept = Pixels(ABOUT).open(ramp, None)
    assert state.shape == (1, 3, 8, 8) and kept is None
    assert torch.allclose((state[0, 0, 3] + 1) / 2 * 255, torch.arange(8.0) * 30, atol=1e-3)


def test_a_mask_says_what_is_made_anew(ramp: str, tmp_path: Path) -> None:
    white = np.zeros((8, 8))
    white[2:4, 5:] = 255
    _, kept = Pixels(ABOUT).open(ramp, saved(tmp_path / "m.png", white))
    assert kept.shape == (1, 3, 8, 8) and torch.equal(kept[0, 1], torch.from_numpy(white) == 0)


def test_a_larger_picture_and_its_mask_are_cut_alike(tmp_path: Path) -> None:
    wide = np.zeros((16, 32, 3))
    wide[:, 8:24, 0] = 255  # what is left of it after cutting the sides
    white = np.zeros((16, 32))
    white[:, :16] = 255
    names = saved(tmp_path / "w.png", wide), saved(tmp_path / "m.png", white)
    state, kept = Pixels(ABOUT).open(*names)
    # The outermost columns blend with what was cut.
    assert state.shape == (1, 3, 8, 8) and (state[0, 0, :, 1:-1] > 0.9).all() and (state[0, 1] < -0.9).all()
    assert not kept[0, 0, :, :4].any() and kept[0, 0, :, 4:].all()


@pytest.mark.parametrize(("place", "top", "left"), [("middle", 2, 4), ("left", 2, 0), ("bottom_right", 4, 8)])
def test_outpainting_lays_a_picture_on_a_larger_one(ramp: str, place: str, top: int, left: int) -> None:
    codec = Pixels(ABOUT, height=12, width=16, place=place)
    state, kept = codec.open(ramp, "outside")
    own, _ = Pixels(ABOUT).open(ramp, None)
    assert state.shape == (1, 3, 12, 16) and kept.sum() == 3 * 64
    assert torch.equal(state[..., top : top + 8, left : left + 8], own)
    assert kept[..., top : top + 8, left : left + 8].all()
    assert codec.like(torch.arange(2), {}, "cpu").shape == (2, 3, 12, 16)


def test_what_cannot_be_edited_is_one_line(ramp: str, tmp_path: Path) -> None:
    other = saved(tmp_path / "m.png", np.full((8, 9), 255))
    for codec, init, mask, said in (
        (Pixels(ABOUT), ramp, other, "it has 9 x 8 pixels, init=.* has 8 x 8; they must agree"),
        (Pixels(ABOUT), ramp, saved(tmp_path / "n.png", np.zeros((8, 8))), "nothing would be made anew"),
        (Pixels(ABOUT), ramp, saved(tmp_path / "a.png", np.full((8, 8), 255)), "everything would be made anew"),
        (Pixels(ABOUT), ramp, "outside", "needs height= or width="),
        (Pixels(ABOUT, height=8, width=8), ramp, "outside", "which 8 x 8 does not extend"),
        (Pixels(ABOUT, width=4), ramp, "outside", "which 8 x 4 does not extend"),
        (Pixels(ABOUT), str(tmp_path / "none.png"), None, "init=.*none.png: no such file"),
        (Pixels(ABOUT), ramp, str(tmp_path), "mask=.*: no such file"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            codec.open(init, mask)
        assert "\n" not in str(caught.value)
    for options, said in (({"height": 0}, "height=0"), ({"place": "midle"}, "did you mean 'middle'")):
        with pytest.raises(ConfigError, match=said):
            Canvas(ABOUT, **options)
    with pytest.raises(ConfigError, match=r"are needed both"):
        Canvas({}, height=8)


def test_hints() -> None:
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(LowRes(4)(x)[1, 2, 1, 0], x[1, 2, 4:, :4].mean())
    assert torch.equal(LowRes(2)(x)[0], LowRes(2)(x[0]))
    step = torch.zeros(3, 8, 8)
    step[1, :, 4:] = 1.0  # a step in one channel only
    found = Edges(threshold=None)(step)
    assert found.shape == (1, 8, 8) and (found[0, :, 3:5] == 1).all() and found[0, :, :3].abs().max() == 0
    assert set(Edges(0.5)(x).unique().tolist()) <= {0.0, 1.0} and torch.equal(Edges(0.5)(x)[1], Edges(0.5)(x[1]))
    assert torch.allclose(Given(grey=True)(x), x.mean(1, keepdim=True))
    assert LowRes(4).facts((3, 8, 8)) == {"kind": "LowRes", "channels": 3, "size": [2, 2]}
    for make, said in ((lambda: LowRes(1), "factor=1"), (lambda: Edges(1.5), "threshold=1.5")):
        with pytest.raises(ConfigError, match=said):
            make()
    with pytest.raises(ConfigError, match=r"does not divide"):
        LowRes(3)(x)


@pytest.fixture
def data() -> ShapesText:
    found = ShapesText(count=40, size=24, hint=LowRes(4), batch_size=8)
    found.setup()
    return found


def pictured(data: ShapesText, **options: Any) -> Pictured:
    torch.manual_seed(0)
    inner = {"_target_": "suffuse.text.WordText", "width": 16, "heads": 2}
    return Pictured(inner, about=data.spec.about, **options)


def test_a_picture_travels_with_its_item(data: ShapesText) -> None:
    batch = next(iter(data.train_loader()))
    assert batch["cond"]["image"].shape == (8, 3, 6, 6)
    assert torch.allclose(batch["cond"]["image"], 2 * LowRes(4)(batch["x"]) - 1)
    item = data.val[3]
    assert torch.allclose(item["cond"]["image"], 2 * LowRes(4)(item["x"]) - 1)


def test_pictures_are_dropped_for_themselves_and_blurred_by_their_level(data: ShapesText) -> None:
    conditioner = pictured(data, noise=0.6, dropout=0.25)
    rows = 3000
    cond = {k: v[:1].expand(rows, *v.shape[1:]).clone() for k, v in next(iter(data.train_loader()))["cond"].items()}
    noise, like = KeyedNoise(torch.arange(rows)), torch.empty(rows)
    masks = conditioner.dropped(noise, 0, like)
    assert abs(masks["image"].float().mean() - 0.25) < 0.03 and abs(masks["text"].float().mean() - 0.1) < 0.02
    assert (masks["image"] & masks["text"]).float().mean() < 0.05
    kept = conditioner.drop(conditioner.prepare(cond), masks)
    assert kept["image"][masks["image"]].abs().max() == 0 and torch.equal(
        kept["image"][~masks["image"]], cond["image"][~masks["image"]]
    )
    seen = conditioner.augment(kept, noise, 0)
    level, there = seen["image_noise"], ~masks["image"]
    assert level.min() >= 0 and level.max() <= 0.6 and abs(level.mean() - 0.3) < 0.02
    rest = seen["image"] - (1 - level.square()).sqrt().view(-1, 1, 1, 1) * kept["image"]
    spread = rest[there].flatten(1).square().mean(1).sqrt() / level[there]
    assert abs(spread.mean() - 1) < 0.02
    again = conditioner.augment(kept, noise, 0)
    assert torch.equal(again["image"], seen["image"])
    plain = pictured(data).augment(kept, noise, 0)
    assert torch.equal(plain["image"], kept["image"]) and "image_noise" not in plain


def test_the_picture_reaches_the_network_and_guidance_keeps_it(data: ShapesText) -> None:
    conditioner = pictured(data, noise=0.5)
    assert conditioner.extra == 3 and conditioner.kept == ("image", "image_noise") and conditioner.width == 16
    net = UNet((3, 24, 24), cond_dim=16, context_dim=16, width=16, head_dim=16, extra=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    raw = conditioner.examples(data, 5)
    assert raw["image"].shape == (5, 3, 6, 6) and raw["image_noise"].tolist() == [0.25] * 5
    cond, x, level = conditioner.eval()(raw), torch.randn(5, 3, 24, 24), torch.rand(5)
    out = net(x, level, cond)
    assert out.shape == x.shape
    assert (net(x, level, {**cond, "image": cond["image"].flip(0)}) - out).abs().max() > 1e-3
    # A picture at the state's own size and the same one enlarged by repetition mean the same.
    big = cond["image"].repeat_interleave(4, 2).repeat_interleave(4, 3)
    small = torch.nn.functional.interpolate(big, (6, 6), mode="area")
    torch.testing.assert_close(small, cond["image"])
    with pytest.raises(ConfigError, match=r"needs cond\['image'\] of 3 channels"):
        net(x, level, {k: v for k, v in cond.items() if k != "image"})


def test_a_file_as_a_condition(data: ShapesText, tmp_path: Path) -> None:
    conditioner = pictured(data)
    small = saved(tmp_path / "s.png", np.full((6, 6, 3), (255, 0, 0)))
    raw = conditioner.parse({"image": small, "text": ["a red circle", "a blue circle"]}, 3)
    assert raw["image"].shape == (3, 3, 6, 6) and raw["image"][0, :, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert conditioner.captions(raw) == ["a red circle", "a blue circle", "a red circle"]
    for given, said in (
        ({"text": "x"}, "condition.image is not set"),
        ({"image": small, "txet": "x"}, "did you mean 'text'"),
        ({"image": small, "image_noise": 0.1}, "trained with conditioner.noise=0"),
        ({"image": str(tmp_path / "no.png")}, "no such file"),
    ):
        with pytest.raises(ConfigError, match=said):
            conditioner.parse(given, 2)
    with pytest.raises(ConfigError, match=r"must be in \[0, 0.5\]"):
        pictured(data, noise=0.5).parse({"image": small, "image_noise": 0.9}, 1)
    # Of outlines, a photograph's are drawn.
    drawn = ShapesText(count=40, size=24, hint=Edges(0.2), batch_size=8)
    drawn.setup()
    half = np.zeros((24, 24, 3))
    half[:, 12:] = 255
    image = pictured(drawn).parse({"image": saved(tmp_path / "h.png", half)}, 1)["image"]
    assert image.shape == (1, 1, 24, 24) and (image[0, 0, :, 11:13] == 1).all() and image[0, 0, :, :10].max() == -1


def test_without_hints_it_says_what_to_set() -> None:
    data = ShapesText(count=40)
    data.setup()
    with pytest.raises(ConfigError, match=r"set data.hint"):
        pictured(data)
