"""The embedded captioned set: what is rendered is what the caption says; analysis reads it back, also where wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from suffuse.errors import ConfigError, DataError
from suffuse.text import captions_of, encoded
from suffuse_image.attributes import Attributes, right
from suffuse_image.data import ShapesText
from suffuse_image.grammar import COLOURS, KINDS, SHAPES, Scene, by_caption, new_thing, scenes
from suffuse_image.look import look
from suffuse_image.render import BACKGROUND, render


def scene(caption: str) -> Scene:
    return by_caption()[caption]


def test_the_grammar():
    counts = {kind: len(scenes(kind)) for kind in KINDS}
    assert counts == {"one": 432, "several": 72, "pair": 1680} and len(by_caption()) == 2184
    assert scene("a small red circle at the top left").values == ("small", "red", "circle", "at the top left")
    assert scene("three blue squares").values == ("three", "blue", "square")
    pair = scene("a red circle above a blue square")
    assert pair.captions == (pair.caption, "a blue square below a red circle") and pair.turned.turned == pair
    # A pair and its telling from the other end are held out together, or neither is.
    assert all(one.held_out == one.turned.held_out for one in scenes("pair"))
    kept = {kind: sum(one.held_out for one in scenes(kind)) for kind in KINDS}
    assert kept == {"one": 54, "several": 9, "pair": 184}


def test_what_is_held_out_is_made_of_what_is_trained_on():
    things = [thing for kind in KINDS for one in scenes(kind) if not one.held_out for thing in one.things]
    assert not any(new_thing(thing) for thing in things)
    new = [(c, s) for c in COLOURS for s in SHAPES if new_thing((c, s))]
    # Every new thing has a colour and a shape that occur with others.
    assert len(new) == 3 and {s for _, s in new} == set(SHAPES)
    assert all(c in {a for a, _ in things} and s in {b for _, b in things} for c, s in new)
    # No pair of training is one that is held out, from whichever end.
    pairs = {frozenset(one.things) for one in scenes("pair") if not one.held_out}
    assert not pairs & {frozenset(one.things) for one in scenes("pair") if one.held_out}


@pytest.mark.parametrize(("size", "every"), [(32, 1), (64, 5)])
def test_every_attribute_is_read_back(size: int, every: int):
    wrong = []
    for kind in KINDS:
        for number, wanted in enumerate(scenes(kind)[::every]):
            picture = np.rint(render(wanted, 31 * number + size, size) * 255) / 255
            seen = look(picture, kind)
            assert seen.error < 0.12 and seen.grain < 1e-2
            wrong += [] if right(wanted, seen).all() else [(wanted, seen)]
    assert not wrong


def test_a_picture_is_a_function_of_its_seed():
    a, b, c = (render(scene("a large red circle in the middle"), seed) for seed in (3, 3, 4))
    assert np.array_equal(a, b) and np.abs(a - c).max() > 0.1
    assert np.allclose(a[:, 0, 0], BACKGROUND, atol=1e-6)
    assert np.allclose(a[:, 16, 16], COLOURS["red"], atol=1e-6)


def test_what_is_not_right_is_not_read_as_right():
    pair = scene("a red circle above a blue square")
    picture = render(pair, 5)
    assert right(pair, look(picture, "pair")).tolist() == [True] * 5
    below = right(scene("a red circle below a blue square"), look(picture, "pair"))
    assert below.tolist() == [True, True, False, True, True]
    assert not right(scene("a blue square above a red circle"), look(picture, "pair")).all()
    assert not right(pair, look(picture[:, ::-1], "pair")).all()  # upside down
    grey = np.full_like(picture, 0.5)
    assert look(grey, "pair").values == ("",) * 5 and look(np.full_like(picture, np.nan), "one").objects == 0
    assert look(picture, "one").values == ("",) * 4  # two objects are not one
    noisy = picture + np.random.default_rng(0).normal(0, 0.05, picture.shape)
    seen = look(noisy, "pair")
    assert right(pair, seen).all() and 0.03 < seen.grain < 0.08


def test_the_set():
    data = ShapesText(count=200, batch_size=16)
    data.setup()
    assert len(data.train) == 200 and len(data.val) == 50 and data.train[0]["x"].shape == (3, 32, 32)
    told = [by_caption()[data.train.texts.chosen(i)] for i in range(200)]
    assert not any(one.held_out for one in told)
    shares = np.mean([[one.kind == kind for kind in KINDS] for one in told], 0)
    assert np.abs(shares - [0.4, 0.1, 0.5]).max() < 0.1
    held = [by_caption()[data.val.texts.chosen(i)].held_out for i in range(50)]
    assert held[1::2] == [True] * 25 and held[::2] == [False] * 25
    # A pair is told from either end in other epochs.
    i = next(i for i, one in enumerate(told) if one.kind == "pair")
    seen = {captions_of(data.train[(epoch, i)]["cond"]["text"][None])[0] for epoch in range(20)}
    assert seen == set(told[i].captions)
    again = ShapesText(count=200, batch_size=16)
    again.setup()
    assert torch.equal(again.train.pixels, data.train.pixels) and again.spec == data.spec
    prompts = [by_caption()[text] for text in data.spec.about["prompts"][:60]]
    assert [one.held_out for one in prompts[:6]] == [False, True] * 3
    assert {one.kind for one in prompts} == set(KINDS)


def test_the_figures():
    data = ShapesText(count=40)
    data.setup()
    chosen = [one for kind in KINDS for one in scenes(kind)[::40]]
    chosen += [next(one for one in scenes(kind) if one.held_out) for kind in KINDS]
    xs = torch.stack([torch.from_numpy(render(one, i)) for i, one in enumerate(chosen)])
    cond = {"text": torch.stack([encoded(one.caption) for one in chosen])}
    found = Attributes()(xs, cond, data)
    shares = {k: v for k, v in found.items() if k.startswith(("right_", "held_out_"))}
    assert set(shares.values()) == {1.0}
    assert {"right_one", "held_out_pair", "right_relation", "right_real"} <= set(shares)
    assert found["swapped_pair"] < 0.2 and found["swapped_one"] < 0.4
    assert found["error"] < 0.1 and found["grain"] < 1e-3
    # Half of the pictures of pairs turned upside down: their relations are wrong, their things are not.
    pairs = [
        i for i, one in enumerate(chosen)
        if one.kind == "pair" and one.values[2] in ("above", "below") and "triangle" not in one.values
    ]  # fmt: skip
    assert pairs
    turned = xs.clone()
    turned[pairs] = xs[pairs].flip(2)
    worse = Attributes()(turned, cond, data)
    assert worse["right_one"] == 1.0 and worse["right_relation"] == pytest.approx(
        1 - len(pairs) / sum(one.kind == "pair" for one in chosen), abs=0.02
    )
    with pytest.raises(DataError, match="no caption"):
        Attributes()(xs, {"text": torch.stack([encoded("a cat")] * len(xs))}, data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 2}, "count=2"),
        ({"size": 8}, "size=8"),
        ({"shares": {"pairs": 1}}, "did you mean 'pair'"),
        ({"shares": {"one": 0}}, "not all 0"),
        ({"captions": {"share": 3}}, "share=3"),
    ],
)
def test_bad_arguments(options, said: str):
    with pytest.raises(ConfigError, match=said):
        ShapesText(**options).setup()
