"""The embedded set, and the analysis that reads it back."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from suffuse_shapes.data import SolidData
from suffuse_shapes.data.solids import Placed, scan
from suffuse_shapes.grammar import COLOURS, FORMS, RELATIONS, Part, Scene, every, held_out, parse
from suffuse_shapes.metrics.attributes import figures
from suffuse_shapes.reading import read
from suffuse_shapes.solids import SOLIDS, distance, draw, inside

AREAS = {
    "cube": lambda r, h: 8 * r * r + 16 * r * h,
    "cylinder": lambda r, h: 2 * math.pi * r * r + 4 * math.pi * r * h,
    "cone": lambda r, h: math.pi * r * r + math.pi * r * math.hypot(r, 2 * h),
    "sphere": lambda r, h: 4 * math.pi * r * r,
    "ring": lambda r, h: 4 * math.pi**2 * 0.65 * 0.35 * r * r,
}


@pytest.mark.parametrize("solid", SOLIDS)
def test_points_lie_on_the_surface_and_its_area_is_right(solid: str):
    r, h = (1.2, 1.2) if solid == "sphere" else (1.2, 0.84) if solid == "ring" else (1.2, 0.7)
    points, area = draw(solid, r, h, 20000, np.random.default_rng(0))
    away = distance(solid, torch.from_numpy(points)[None], torch.tensor([r]).double(), torch.tensor([h]).double())
    assert float(away.max()) < 2e-6
    # A tube whose section is an ellipse has no closed form; 1.2 times 0.7 makes it a circle.
    assert area == pytest.approx(AREAS[solid](r, h), rel=0.01)
    assert np.abs(points.mean(0)[:2]).max() < 0.03


def test_points_are_uniform_by_area():
    points, area = draw("cone", 1.0, 1.0, 40000, np.random.default_rng(0))
    base = float((points[:, 2] < -0.999999).mean())
    assert base == pytest.approx(math.pi / area, abs=0.01)
    side = points[points[:, 2] >= -0.999999]
    # The unrolled side is a sector: the share above half height is a quarter.
    assert float((side[:, 2] > 0).mean()) == pytest.approx(0.25, abs=0.01)


def test_distance_and_side_by_hand():
    one = torch.ones(1).double()
    at = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 0, 3]]]).double()
    assert distance("cube", at, one, one)[0].tolist() == pytest.approx([1, 1, math.sqrt(2), 2])
    assert distance("cylinder", at, one, one)[0].tolist() == pytest.approx([1, 1, 2 * math.sqrt(2) - 1, 2], abs=1e-5)
    assert distance("sphere", at, one, one)[0].tolist() == pytest.approx([1, 1, 2 * math.sqrt(2) - 1, 2], abs=0.01)
    assert inside("ring", at[0], 1.0, 1.0).tolist() == [False] * 4
    assert inside("ring", torch.tensor([[0.65, 0, 0]]), 1.0, 1.0).all()


def test_grammar_goes_there_and_back():
    singles, pairs = every()
    assert len(singles) == 60 and len(pairs) == 900
    assert all(parse(scene.caption) == scene for scene in singles + pairs)
    assert parse("a purple cube") is None and parse("a red cube on a blue") is None
    new = [scene for scene in singles + pairs if held_out(scene)]
    seen = [scene for scene in singles + pairs if not held_out(scene)]
    assert 0.08 < len(new) / 960 < 0.17
    for word, count in Counter(w for scene in seen for w in scene.caption.split()).items():
        assert count > 10, word
    assert {w for s in seen for w in s.caption.split()} >= {*SOLIDS, *COLOURS, *RELATIONS, "tall", "flat"}


def test_training_never_shows_what_is_held_out():
    data = SolidData(count=2000, points=8)
    data.setup()
    shown = {data.train.scenes[i % len(data.train.scenes)] for i in range(len(data.train))}
    assert not any(held_out(scene) for scene in shown) and all(held_out(scene) for scene in data.val.scenes)
    two = np.mean([data.train.scenes[i % len(data.train.scenes)].second is not None for i in range(2000)])
    assert two == pytest.approx(0.3, abs=0.05)
    singles, pairs = every()
    assert set(data.train.scenes) == {scene for scene in singles + pairs if not held_out(scene)}
    alone = SolidData(pairs=0.0)
    alone.setup()
    assert all(scene.second is None for scene in alone.train.scenes + alone.val.scenes)


def test_items_differ_by_epoch_and_fit_the_frame():
    data = SolidData(count=60, points=400, noise=0.0)
    data.setup()
    for i in range(0, 60, 7):
        x = data.train[(0, i)]["x"]
        assert not torch.equal(x, data.train[(1, i)]["x"]) and torch.equal(x, data.train[(0, i)]["x"])
        # A square turned about z reaches out to its diagonal.
        assert 0.9 < float(x[:3].abs().max()) < 1.45 and float(x[3:].min()) >= 0 and float(x[3:].max()) <= 1


def test_real_clouds_are_read_right():
    random = np.random.default_rng(0)
    singles, pairs = every()
    scenes = singles[::2] + [pairs[i] for i in random.permutation(len(pairs))[:40]]
    drawn = torch.stack([torch.from_numpy(scan(s, 256, 0.03, random)) for s in scenes])
    seen = read(drawn)
    right = [all(s.agrees(scene).values()) for s, scene in zip(seen, scenes, strict=True)]
    assert np.mean(right) >= 0.97
    # A standard deviation of 0.03 across the surface: the mean distance is sqrt(2 / pi) of that.
    assert np.median([s.residual for s in seen]) == pytest.approx(0.03 * math.sqrt(2 / math.pi), rel=0.12)
    swapped = figures(scenes, seen)["right_swapped"]
    assert swapped < 0.1


def test_what_is_wrong_is_seen():
    random = np.random.default_rng(1)
    scene = Scene(Part("cone", "blue"), "on", Part("cube", "green"))
    cloud = torch.from_numpy(scan(scene, 256, 0.02, random))[None]
    seen = read(cloud)[0]
    assert all(seen.agrees(scene).values())
    for other, what in (
        (Scene(Part("cube", "blue"), "on", Part("cube", "green")), "solid"),
        (Scene(Part("cone", "red"), "on", Part("cube", "green")), "colour"),
        (Scene(Part("cone", "blue"), "under", Part("cube", "green")), "relation"),
        (Scene(Part("cone", "blue"), "beside", Part("cube", "green")), "relation"),
    ):
        assert not seen.agrees(other)[what]
    tall = Scene(Part("cylinder", "red", "tall"))
    seen = read(torch.from_numpy(scan(tall, 256, 0.02, random))[None])[0]
    assert seen.agrees(tall)["form"]
    assert [seen.agrees(Scene(Part("cylinder", "red", form)))["form"] for form in FORMS] == [True, False, False]
    rough = torch.from_numpy(scan(tall, 256, 0.12, random))[None]
    assert read(rough)[0].residual > 3 * seen.residual
    # Points heaped on one side of the surface fit it, but miss the rest.
    heaped = cloud.clone()
    heaped[:, :, :] = cloud[:, :, cloud[0, 0].argsort()[torch.arange(256) // 8]]
    assert read(heaped)[0].parts[0].missing > 2 * read(cloud)[0].parts[0].missing


def test_signed_distance_of_a_scene():
    random = np.random.default_rng(2)
    placed = Placed.draw(Scene(Part("cube", "red"), "on", Part("cylinder", "blue")), random)
    cloud = torch.from_numpy(placed.cloud(500, 0.0, random))
    assert float(placed.signed(cloud[:3].T).abs().quantile(0.99)) < 1e-5
    assert (
        float(placed.signed(torch.zeros(1, 3) + torch.tensor([0, 0, 0.4])))
        < 0
        < float(placed.signed(torch.tensor([[1.2, 1.2, 1.2]])))
    )
