"""Solids: the embedded set, drawn as it is needed; item i of epoch e is a function of seed, i and e alone.

A cloud is (6, N): x, y, z in [-1, 1] up to the noise of the scan, then red, green, blue in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError
from suffuse.noise import mix
from suffuse.text import encoded
from torch import Tensor
from torch.utils.data import Dataset

from suffuse_shapes.data.given import Given
from suffuse_shapes.grammar import PALETTE, Scene, every, held_out
from suffuse_shapes.solids import distance, draw, half_height, inside

__all__ = ["RATIO", "Placed", "SolidData", "Solids", "scan"]

RATIO = {"tall": 2.0, "plain": 1.0, "flat": 0.5}
"""Half height over half width."""


@dataclass(frozen=True)
class Placed:
    """A scene of definite sizes in the model's frame: its largest half extent is 1, about the origin.

    Arguments:
        scene: What it shows.
        sizes: Half width and half height of each part, in units of its own.
        offsets: Centres of the parts in those units.
        centre: Centre of the whole in those units.
        scale: Largest half extent of the whole in those units.
        yaw: Angle about z.
        tints: Colours of the parts.
    """

    scene: Scene
    sizes: tuple[tuple[float, float], ...]
    offsets: tuple[NDArray[np.float64], ...]
    centre: NDArray[np.float64]
    scale: float
    yaw: float
    tints: NDArray[np.float64]

    @classmethod
    def draw(cls, scene: Scene, random: np.random.Generator) -> Placed:
        """Return a scene at a random yaw, with small variations of its sizes and colours."""
        sizes = []
        for part in scene.parts:
            width = random.uniform(0.9, 1.1)
            sizes.append((width, width * RATIO[part.form] * random.uniform(0.92, 1.08)))
        offsets = _offsets(scene, sizes)
        ends = [(o, _extent(p.solid, *s)) for p, s, o in zip(scene.parts, sizes, offsets, strict=True)]
        low, high = np.min([o - e for o, e in ends], 0), np.max([o + e for o, e in ends], 0)
        tints = np.array([PALETTE[p.colour] for p in scene.parts]) + random.uniform(-0.05, 0.05, (len(sizes), 3))
        yaw = random.uniform(0, 2 * math.pi)
        return cls(scene, tuple(sizes), tuple(offsets), (low + high) / 2, (high - low).max() / 2, yaw, tints)

    def cloud(self, points: int, noise: float, random: np.random.Generator) -> NDArray[np.float32]:
        """Return a scan of its surfaces, (6, points), shared out by area.

        Arguments:
            points: Number of points.
            noise: Standard deviation of the error of every coordinate.
            random: Source of all draws.
        """
        drawn = [draw(p.solid, r, h, points, random) for p, (r, h) in zip(self.scene.parts, self.sizes, strict=True)]
        area = np.array([a for _, a in drawn])
        owner = random.choice(len(drawn), points, p=area / area.sum())
        whole = np.stack([cloud + offset for (cloud, _), offset in zip(drawn, self.offsets, strict=True)])
        xyz = (whole[owner, np.arange(points)] - self.centre) / self.scale @ self._turn().T
        xyz = xyz + noise * random.standard_normal((points, 3))
        rgb = (self.tints[owner] + 0.02 * random.standard_normal((points, 3))).clip(0, 1)
        return np.concatenate([xyz, rgb], 1).T.astype(np.float32)

    def signed(self, at: Tensor) -> Tensor:
        """Return the distance of places (Q, 3) to the nearest surface, negative inside a part, (Q,)."""
        own = (at.double() @ torch.from_numpy(self._turn())) * self.scale + torch.from_numpy(self.centre)
        found = []
        for part, (r, h), offset in zip(self.scene.parts, self.sizes, self.offsets, strict=True):
            p = own - torch.from_numpy(offset)
            away = distance(part.solid, p[None], torch.tensor([r]).double(), torch.tensor([h]).double())[0]
            found.append(torch.where(inside(part.solid, p, r, h), -away, away))
        return torch.stack(found).amin(0) / self.scale

    def _turn(self) -> NDArray[np.float64]:
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def scan(scene: Scene, points: int, noise: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Return a cloud of a scene at a random yaw and with random small variations, (6, points)."""
    return Placed.draw(scene, random).cloud(points, noise, random)


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
        given: What is given of each cloud.
        epochs: Items differ from epoch to epoch.
        queries: Places of each item at which the signed distance is known, for ``task=shapes/surface``.
    """

    def __init__(
        self, scenes: list[Scene], count: int, points: int, noise: float, seed: int, given: Given | None = None,
        epochs: bool = True, queries: int = 0,
    ) -> None:  # fmt: skip
        self.given, self.queries = given or Given(), queries
        self.scenes, self.count, self.points, self.noise = scenes, count, points, noise
        self.seed, self.epochs = seed, epochs

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Any) -> dict[str, Any]:
        epoch, index = key if self.epochs else (0, key)
        scene = self.scenes[index % len(self.scenes)]
        random = np.random.default_rng(mix(self.seed, epoch, index))
        placed = Placed.draw(scene, random)
        cloud = torch.from_numpy(placed.cloud(self.points, self.noise, random))
        cond = {"text": encoded(scene.caption), **self.given.of(cloud, random)}
        if self.queries:
            cond["query"] = _places(cloud, self.queries, random)
            cond["signed"] = placed.signed(cond["query"]).float()
        return {"x": cloud, "cond": cond, "index": index}


class SolidData(Data):
    """Captioned solids: one of some proportion, or two in a relation.

    Arguments:
        points: Points of a cloud.
        pairs: Share of the items that are two-part scenes.
        noise: Standard deviation of the error of every coordinate; the largest half extent is 1.
        count: Items of an epoch.
        given: What is given of each cloud: ``none``, ``coarse`` or ``partial``, see `suffuse_shapes.data.given`.
        given_points: Points that are given.
        jitter: Their error at most.
        queries: Places at which the signed distance is known, for ``task=shapes/surface``.
        options: Arguments of `Data`.

    Raises:
        ConfigError: For numbers out of range.
    """

    def __init__(
        self, points: int = 256, pairs: float = 0.3, noise: float = 0.03, count: int = 4096, given: str = "none",
        given_points: int = 256, jitter: float = 0.02, queries: int = 0, **options: Any,
    ) -> None:  # fmt: skip
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
        if queries < 0:
            raise ConfigError(f"data.queries={queries} must be at least 0")
        self.given, self.queries = Given(given, given_points, jitter), queries

    def setup(self) -> None:
        """Share the scenes out: those of training, and combinations that are held out."""
        singles, pairs = every()
        seen, new = [self._mixed(*(_part(kind, held) for kind in (singles, pairs))) for held in (False, True)]
        how, count = (self.points, self.noise), min(len(new) * 2, 1000)
        self.train = Solids(seen, self.count, *how, mix(self.seed, 0), self.given, True, self.queries)
        self.val = Solids(new, count, *how, mix(self.seed, 1), self.given, False, self.queries)
        prompts = [scene.caption for both in zip(seen[:400], _filled(new, 400), strict=False) for scene in both]
        about = {"text": True, "prompts": prompts, "points": self.points, "normals": False}
        self.spec = Spec(about={**about, **self.given.about()})

    def _mixed(self, singles: list[Scene], pairs: list[Scene]) -> list[Scene]:
        """Return a list in which the share of pairs is right; every scene is there when its kind is."""
        random = np.random.default_rng(7)
        kinds = [(kind, share) for kind, share in ((singles, 1 - self.pairs), (pairs, self.pairs)) if share > 0]
        total = max(len(kind) / share for kind, share in kinds)
        chosen = [scene for kind, share in kinds for scene in _filled(kind, max(len(kind), round(total * share)))]
        return [chosen[i] for i in random.permutation(len(chosen))]


def _places(cloud: Tensor, count: int, random: np.random.Generator) -> Tensor:
    """Return places to ask for the distance at, (count, 3): two thirds near the surface, the others anywhere."""
    near = count * 2 // 3
    few = torch.from_numpy(random.integers(0, cloud.shape[1], near))
    error = random.standard_normal((near, 3)) * random.choice([0.03, 0.12], (near, 1))
    close = cloud[:3, few].T + torch.from_numpy(error.astype(np.float32))
    return torch.cat([close, torch.from_numpy(random.uniform(-1.3, 1.3, (count - near, 3)).astype(np.float32))])


def _part(scenes: list[Scene], held: bool) -> list[Scene]:
    return [scene for scene in scenes if held_out(scene) == held]


def _filled(scenes: list[Scene], count: int) -> list[Scene]:
    """Return `count` scenes, over and over in an order of their own."""
    order = np.random.default_rng(3).permutation(len(scenes))
    return [scenes[order[i % len(scenes)]] for i in range(count)]
