"""The embedded set: what is rendered is what the caption says, and analysis reads it back, also where it is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from suffuse.errors import ConfigError, DataError
from suffuse.text import captions_of, encoded
from suffuse_video.data import Shapes
from suffuse_video.grammar import COLOURS, SPEEDS, Clip, by_caption, clips, held_out
from suffuse_video.metrics import Attributes
from suffuse_video.render import BACKGROUND, RADIUS, bounced, drawn, render
from suffuse_video.watch import watch


def clip(caption: str) -> Clip:
    return by_caption()[caption]


def test_the_grammar():
    every = clips()
    assert len(every) == len({c.caption for c in every}) == 240
    assert 25 <= sum(map(held_out, every)) <= 40
    assert clip("two red diamonds moving left slowly").values == ("two", "red", "diamond", "left", "slowly")
    # Each word of a held-out sentence is in sentences that are trained on.
    known = {value for c in every if not held_out(c) for value in c.values}
    assert all(set(c.values) <= known for c in every)


@pytest.mark.parametrize(("frames", "every"), [(8, 1), (32, 4)])
def test_every_attribute_is_read_back(frames: int, every: int):
    for number, wanted in enumerate(clips()[::every]):
        seen = watch(render(wanted, number, frames))
        assert seen.values == wanted.values and seen.straight, wanted.caption
        assert seen.jitter < 0.3 and seen.grain < 1e-6 and seen.flicker < 0.03


def test_a_clip_is_a_function_of_its_seed():
    a, b, c = (render(clips()[7], seed) for seed in (3, 3, 4))
    assert np.array_equal(a, b) and np.abs(a - c).max() > 0.1


def test_a_later_start_is_the_same_story():
    whole = render(clips()[40], 11, frames=20)
    assert np.array_equal(render(clips()[40], 11, frames=8, start=6), whole[:, 6:14])


def test_walls_reflect():
    u = np.arange(0.0, 60.0, 0.5)
    path = bounced(u, 4.0, 24.0)
    assert path.min() >= 4 and path.max() <= 20
    assert np.allclose(np.abs(np.diff(path)), 0.5)  # one speed, also at the walls, which it meets on the grid
    assert np.array_equal(bounced(np.array([4.0, 20.0, 28.0, 36.0]), 4.0, 24.0), [4, 20, 12, 4])


def test_colours_are_those_of_the_table():
    x = render(clip("one green square moving up slowly"), 0)
    assert np.allclose(x[:, 0, 0, 0], BACKGROUND, atol=1e-6)
    inside = np.abs(x - np.array(COLOURS["green"])[:, None, None, None]).max(0) < 1e-6
    side = 2 * 0.9 * RADIUS * 24
    assert inside.sum((1, 2)).mean() == pytest.approx((side - 1) ** 2, rel=0.3)


def moved(x: np.ndarray, shifts: list[int], axis: int = 3) -> np.ndarray:
    back = np.broadcast_to(np.array(BACKGROUND)[:, None, None, None], x.shape)
    return back + np.stack([np.roll((x - back)[:, t], s, axis=axis - 1) for t, s in enumerate(shifts)], 1)


def test_what_is_wrong_is_seen():
    still = render(clip("one red diamond moving right slowly"), 5)
    seen = watch(still[..., ::-1])
    assert seen.values == ("one", "red", "diamond", "left", "slowly")  # in a mirror
    rng = np.random.default_rng(0)
    grainy = watch(still + rng.normal(0, 0.05, still.shape))
    assert grainy.values[0] == "one" and grainy.grain == pytest.approx(0.05, rel=0.1)
    stumbling = watch(moved(still, [0, 2, 0, -2, 0, 2, 0, -2]))
    assert not stumbling.straight and stumbling.jitter > 1
    gone = still.copy()
    gone[:, 3] = np.array(BACKGROUND)[:, None, None]
    assert watch(gone).values[0] == "changing" and not watch(gone).straight
    assert watch(np.zeros_like(still) + np.array(BACKGROUND)[:, None, None, None]).values[0] == "0"
    assert watch(np.full_like(still, np.nan)).values[0] != "one"
    flicker = still.copy()
    flicker[:, ::2] = 0.6 * still[:, ::2] + 0.4 * np.array(BACKGROUND)[:, None, None, None]
    assert watch(flicker).flicker > 5 * watch(still).flicker


def test_swapped_channels_are_another_colour():
    x = render(clip("one red square moving up quickly"), 2)
    assert watch(x[[2, 1, 0]]).values[1] != "red"


@pytest.mark.parametrize("word", SPEEDS)
def test_speeds_are_those_of_the_table(word: str):
    for seed in range(30):
        x = render(clip(f"one white square moving right {word}"), seed, frames=3)
        places = [(x[:, t].sum(0) * (np.arange(24) + 0.5)).sum() for t in range(3)]
        # The background's own centre of mass is known, so the object's can be solved for.
        weight = (x[:, 0] - np.array(BACKGROUND)[:, None, None]).sum()
        assert (places[1] - places[0]) / weight == pytest.approx(24 * SPEEDS[word], abs=0.1)


def test_a_wrong_speed_is_seen():
    slow = clip("one red triangle moving down slowly")
    x = render(slow, 4, frames=8)
    assert watch(x).values[4] == "slowly"
    assert watch(render(slow, 4, frames=16)[:, ::2]).values[4] == "quickly"
    two = np.maximum(
        drawn(np.stack([np.full(8, 6.0), 5 + 2.0 * np.arange(8)], -1)[None], "square", COLOURS["red"], 4.8, 24),
        drawn(np.stack([np.full(8, 18.0), 5 + 1.2 * np.arange(8)], -1)[None], "square", COLOURS["red"], 4.8, 24),
    )
    assert watch(two).values[4] == "mixed"


@pytest.fixture(scope="module")
def data() -> Shapes:
    found = Shapes(count=200, batch_size=8)
    found.setup()
    return found


def test_items(data: Shapes):
    item = data.train[3]
    assert item["x"].shape == (3, 8, 24, 24) and item["x"].dtype == torch.float32
    assert torch.equal(item["x"], data.train.batch([3])["x"][0])
    starts = data.train.starts
    assert (starts > 0).double().mean() == pytest.approx(0.3, abs=0.1) and starts.max() < 32
    assert (data.val.starts == 0).all()
    captions = set(data.train.captions)
    assert not any(held_out(clip(c)) for c in captions)
    assert {held_out(clip(c)) for c in data.val.captions} == {True, False}
    assert data.spec.about["clock"] == "start" and data.spec.scalars == ("start",)
    prompts = data.spec.about["prompts"]
    assert sum(held_out(clip(p)) for p in prompts) == len(prompts) // 4
    assert "more are held out" in data.describe()


def test_items_do_not_depend_on_their_number():
    few, many = Shapes(count=20), Shapes(count=40)
    few.setup()
    many.setup()
    assert torch.equal(few.train.pixels, many.train.pixels[:20])


def test_the_clips_of_beginnings_are_what_their_captions_say(data: Shapes):
    for i in torch.where(data.train.starts == 0)[0].tolist()[:40]:
        assert watch(data.train[i]["x"].numpy()).values == clip(data.train.captions[i]).values


@pytest.mark.parametrize(
    ("options", "said"),
    [({"count": 0}, "data.count=0"), ({"frames": 0}, "data.frames=0"), ({"size": 8}, "data.size=8"),
     ({"later": 1.0}, "data.later=1.0"), ({"count": 1.5}, "data.count=1.5")],
)  # fmt: skip
def test_bad_arguments(options, said):
    with pytest.raises(ConfigError, match=said):
        Shapes(**options)


def test_figures_of_true_clips(data: Shapes):
    chosen = clips()
    xs = torch.stack([torch.from_numpy(render(c, i)) for i, c in enumerate(chosen)])
    cond = {"text": torch.stack([encoded(c.caption) for c in chosen])}
    figures = Attributes()(xs, cond, data)
    for name in ("right", "right_held_out", "right_colour", "right_direction", "straight", "right_real"):
        assert figures[name] == 1, name
    assert figures["right_swapped"] < 0.1 and figures["jitter"] < 0.2 and figures["grain"] < 1e-6
    turned = Attributes()(xs.mT, cond, data)
    assert turned["right"] == turned["right_direction"] == 0 and turned["right_colour"] == turned["right_count"] == 1
    half = torch.where((torch.arange(len(xs)) % 2 == 0)[:, None, None, None, None], xs, xs.mT)
    right = Attributes()(half, cond, data)
    assert right["right_direction"] == 0.5


def test_other_captions_are_refused(data: Shapes):
    with pytest.raises(DataError, match="no caption is one of the embedded set's"):
        Attributes()(torch.zeros(1, 3, 8, 24, 24), {"text": encoded("a cat")[None]}, data)


def test_batches_carry_captions_and_starts(data: Shapes):
    batch = next(iter(data.train_loader()))
    index = batch["index"].tolist()
    assert captions_of(batch["cond"]["text"]) == [data.train.captions[i] for i in index]
    assert torch.equal(batch["cond"]["start"], data.train.starts[index])


@pytest.mark.parametrize("area", [3.24, 2.0])
def test_a_disc_is_no_shape_of_the_grammar(area: float) -> None:
    """Corners that are lost are not overlooked."""
    track = np.stack([np.linspace(4, 11, 8), np.full(8, 8.0)], 1)[None]
    disc = drawn(track, "disc", COLOURS["blue"], RADIUS * 16 * (area / np.pi) ** 0.5, 16)
    assert watch(disc).values[:3] == ("one", "blue", "disc")
