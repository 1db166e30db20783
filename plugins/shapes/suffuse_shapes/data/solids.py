"""Solids: the embedded set, drawn as it is needed; item i of epoch e is a function of seed, i and e alone.

A cloud is (6, N): x, y, z in [-1, 1] up to the noise of the scan, then red, green, blue in [0, 1].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from suffuse.data import Data, Spec
from suffuse.errors import ConfigError
from suffuse.noise import mix
from suffuse.text import encoded
from suffuse_shapes.grammar import PALETTE, Scene, every, held_out
from suffuse_shapes.solids import draw, half_height

__all__ = ["RATIO", "SolidData", "Solids", "scan"]

RATIO = {"tall": 2.0, "plain": 1.0, "flat": 0.5}
"""Half height over half width."""


def scan(scene: Scene, points: int, noise: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Return a cloud of a scene at a random yaw and with random small variations, (6, points).

    Arguments:
        scene: What it shows.
        points: Number of points, shared out by area.
        noise: Standard deviation of the error of every coordinate, where the largest half extent is 1.
        random: Source of all draws.
    """
    sizes = [(w, w * RATIO[p.form] * random.uniform(0.92, 1.08)) for p in scene.parts for w in [random.uniform(0.9, 1.1)]]
    drawn = [draw(p.solid, r, h, points, random) for p, (r, h) in zip(scene.parts, sizes, strict=True)]
    offsets = _offsets(scene, sizes)
    low = np.min([o - _extent(p.solid, *s) for p, s, o in zip(scene.parts, sizes, offsets, strict=True)], 0)
    high = np.max([o + _extent(p.solid, *s) for p, s, o in zip(scene.parts, sizes, offsets, strict=True)], 0)
    owner = random.choice(len(drawn), points, p=np.array([a for _, a in drawn]) / sum(a for _, a in drawn))
    xyz = np.stack([cloud + offset for (cloud, _), offset in zip(drawn, offsets, strict=True)])[owner, np.arange(points)]
    xyz = (xyz - (low + high) / 2) / ((high - low).max() / 2)
    yaw = random.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    xyz = xyz @ turn.T + noise * random.standard_normal((points, 3))
    colour = np.array([PALETTE[p.colour] for p in scene.parts]) + random.uniform(-0.05, 0.05, (len(drawn), 3))
    rgb = (colour[owner] + 0.02 * random.standard_normal((points, 3))).clip(0, 1)
    return np.concatenate([xyz, rgb], 1).T.astype(np.float32)


def _extent(solid: str, r: float, h: float) -> NDArray[np.float64]:
    return np.array([r, r, half_height(solid, h)])


def _offsets(scene: Scene, sizes: list[tuple[float, float]]) -> list[NDArray[np.float64]]:
    """Return the centres of the parts: they touch, one above the other, or stand on one floor."""
    if scene.second is None:
        return [np.zeros(3)]
    (r, h), (r2, h2) = sizes
    up, up2 = half_height(scene.first.solid, h), half_height(scene.second.solid, h2)
    if scene.relation == "beside":
        return [np.array([r, 0, up]), np.array([-r2, 0, up2])]
    sign = 1 if scene.relation == "on" else -1
    return [np.array([0, 0, sign * up]), np.array([0, 0, -sign * up2])]


class Solids(Dataset[dict[str, Any]]):
    """Clouds of scenes, drawn anew in every epoch.

    Arguments:
        scenes: What item i shows is scene i modulo their number.
        count: Items.
        points: Points of a cloud.
        noise: See `scan`.
        seed: Seed of all draws.
        epochs: Items differ from epoch to epoch.
    """

    def __init__(
        self, scenes: list[Scene], count: int, points: int, noise: float, seed: int, epochs: bool = True
    ) -> None:
        self.scenes, self.count, self.points, self.noise = scenes, count, points, noise
        self.seed, self.epochs = seed, epochs

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Any) -> dict[str, Any]:
        epoch, index = key if self.epochs else (0, key)
        scene = self.scenes[index % len(self.scenes)]
        random = np.random.default_rng(mix(self.seed, epoch, index))
        cloud = torch.from_numpy(scan(scene, self.points, self.noise, random))
        return {"x": cloud, "cond": {"text": encoded(scene.caption)}, "index": index}


class SolidData(Data):
    """Captioned solids: one of some proportion, or two in a relation.

    Arguments:
        points: Points of a cloud.
        pairs: Share of the items that are two-part scenes.
        noise: Standard deviation of the error of every coordinate; the largest half extent is 1.
        count: Items of an epoch.
        options: Arguments of `Data`.

    Raises:
        ConfigError: For numbers out of range.
    """

    def __init__(
        self, points: int = 256, pairs: float = 0.5, noise: float = 0.03, count: int = 4096, **options: Any
    ) -> None:
        super().__init__(**options)
        if points < 8:
            raise ConfigError(f"data.points={points} must be at least 8")
        if not 0 <= pairs <= 1:
            raise ConfigError(f"data.pairs={pairs} must be in [0, 1]")
        if not 0 <= noise < 1:
            raise ConfigError(f"data.noise={noise} must be in [0, 1)")
        if count < 1:
            raise ConfigError(f"data.count={count} must be at least 1")
        self.points, self.pairs, self.noise, self.count = points, pairs, noise, count

    def setup(self) -> None:
        """Share the scenes out: those of training, and combinations that are held out."""
        singles, pairs = every()
        seen, new = ([self._mixed(*(_part(kind, held) for kind in (singles, pairs))) for held in (False, True)])
        self.train = Solids(seen, self.count, self.points, self.noise, mix(self.seed, 0))
        self.val = Solids(new, min(len(new) * 2, 1000), self.points, self.noise, mix(self.seed, 1), epochs=False)
        prompts = [scene.caption for both in zip(seen[:400], _filled(new, 400), strict=False) for scene in both]
        self.spec = Spec(about={"text": True, "prompts": prompts})

    def _mixed(self, singles: list[Scene], pairs: list[Scene]) -> list[Scene]:
        """Return a list in which the share of pairs is right; every scene is there when its kind is."""
        random = np.random.default_rng(7)
        total = 2 * max(len(singles), len(pairs))
        kinds = [scenes for scenes in (singles, pairs)]
        counts = [round(total * (1 - self.pairs)), round(total * self.pairs)]
        chosen = [scene for scenes, n in zip(kinds, counts, strict=True) for scene in _filled(scenes, n)]
        return [chosen[i] for i in random.permutation(len(chosen))]


def _part(scenes: list[Scene], held: bool) -> list[Scene]:
    return [scene for scene in scenes if held_out(scene) == held]


def _filled(scenes: list[Scene], count: int) -> list[Scene]:
    """Return `count` scenes, over and over in an order of their own."""
    order = np.random.default_rng(3).permutation(len(scenes))
    return [scenes[order[i % len(scenes)]] for i in range(count)]
