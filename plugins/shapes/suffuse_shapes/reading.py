"""Reading: what a cloud of the embedded set shows, by analysis alone: colours, solids, proportions, relation.

Points go to the nearest colour of the palette; colours with a fair share of the points are parts. To each part all five
canonical surfaces are fitted (centre, half width, half height, and the cube's yaw) by gradient steps on the mean
distance of the points to the surface. The best one has the smallest sum of that distance and, for what is missing, the
distance of the surface to its nearest points. Both count in units of the largest half extent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suffuse_shapes.grammar import COLOURS, PALETTE, Scene
from suffuse_shapes.solids import SOLIDS, distance, draw

__all__ = ["Seen", "fit", "read"]

SHARE = 0.12
"""Least share of the points that makes a colour a part."""
STEPS, PROBES, TAKEN = 40, 96, 192
"""Gradient steps of a fit, points that are looked for on a surface, and most points of a part that are fitted."""
_TRIES = [(solid, 0.0) for solid in SOLIDS if solid != "cube"] + [("cube", math.pi / 6 * k) for k in range(3)]


@dataclass(frozen=True)
class Found:
    """One part: what it is, how well it fits, and where it stands.

    Arguments:
        solid: The nearest canonical surface.
        colour: Nearest colour of the palette.
        ratio: Half height over half width of the fitted surface.
        residual: Mean distance of its points to that surface.
        missing: Mean distance of that surface to its nearest points.
        share: Share of the cloud's points.
        centre: Centre of its extent.
        half: Half extent along x, y and z.
    """

    solid: str
    colour: str
    ratio: float
    residual: float
    missing: float
    share: float
    centre: tuple[float, ...]
    half: tuple[float, ...]

    @property
    def form(self) -> str:
        """The proportion that the ratio is nearest to, on a logarithmic scale."""
        return "tall" if self.ratio > math.sqrt(2) else "flat" if self.ratio < math.sqrt(0.5) else "plain"


@dataclass(frozen=True)
class Seen:
    """What a cloud shows: its parts, the largest first."""

    parts: tuple[Found, ...]

    @property
    def residual(self) -> float:
        """Mean distance of all points to their surfaces."""
        whole = sum(p.share for p in self.parts)
        return sum(p.residual * p.share for p in self.parts) / whole if whole else math.inf

    def agrees(self, scene: Scene) -> dict[str, bool]:
        """Return which attributes of a scene are right: colour, solid, and form or relation."""
        by_colour = {part.colour: part for part in self.parts}
        wanted = scene.parts
        colour = set(by_colour) == {part.colour for part in wanted}
        paired = [(part, by_colour.get(part.colour)) for part in wanted]
        if len(wanted) == 1 and len(self.parts) == 1:  # of one part the solid can be right in another colour
            paired = [(wanted[0], self.parts[0])]
        solid = all(found is not None and found.solid == part.solid for part, found in paired)
        right = {"colour": colour, "solid": solid}
        if scene.second is None:
            found = paired[0][1]
            return right | {"form": found is not None and found.form == scene.first.form}
        first, second = (found for _, found in paired)
        if first is None or second is None:
            return right | {"relation": False}
        return right | {"relation": relation(first, second) == scene.relation}


def relation(a: Found, b: Found) -> str:
    """Return how part `a` stands to part `b`: on, under, beside, or nothing of these."""
    above, tall = a.centre[2] - b.centre[2], a.half[2] + b.half[2]
    apart = math.dist(a.centre[:2], b.centre[:2])
    wide = min(a.half[0], a.half[1]) + min(b.half[0], b.half[1])
    if abs(above) > 0.6 * tall and apart < 0.5 * wide:
        touching = abs(abs(above) - tall) < 0.35 * tall
        return ("on" if above > 0 else "under") if touching else ""
    return "beside" if apart > 0.6 * wide and abs(above) < 0.6 * tall else ""


def read(clouds: Tensor) -> list[Seen]:
    """Return what each cloud of (B, 6, N) shows; coordinates and colours as the data set yields them."""
    clouds = clouds.detach().cpu().double().nan_to_num()
    palette = torch.tensor(list(PALETTE.values()), dtype=torch.float64)
    nearest = (clouds[:, 3:, None] - palette.T[None, :, :, None]).square().sum(1).argmin(1)
    owners, sets = [], []
    for row, cloud in enumerate(clouds):
        for number in range(len(COLOURS)):
            own = cloud[:3, nearest[row] == number].T
            if len(own) >= max(8, SHARE * cloud.shape[1]):
                owners.append((row, number, len(own) / cloud.shape[1]))
                sets.append(own)
    parts: list[list[Found]] = [[] for _ in clouds]
    for (row, number, share), own, best in zip(owners, sets, fit(sets), strict=True):
        low, high = (torch.quantile(own, q, dim=0) for q in (0.02, 0.98))
        place = tuple(((low + high) / 2).tolist()), tuple(((high - low) / 2).tolist())
        parts[row].append(Found(best.solid, COLOURS[number], best.ratio, best.residual, best.missing, share, *place))
    return [Seen(tuple(sorted(found, key=lambda p: -p.share))) for found in parts]


@dataclass(frozen=True)
class Fit:
    """The surface that fits a set of points best."""

    solid: str
    ratio: float
    residual: float
    missing: float


def fit(sets: Sequence[Tensor]) -> list[Fit]:
    """Return the canonical surface nearest to each set of points (n, 3)."""
    if not sets:
        return []
    random = np.random.default_rng(0)
    few = [s[torch.from_numpy(random.permutation(len(s))[:TAKEN].copy())] for s in sets]
    points = torch.stack([s[torch.arange(TAKEN) % len(s)] for s in few]).float()
    found = [_fitted(points, solid, yaw) for solid, yaw in _TRIES]
    missing = [_missing(sets, solid, *values, random) for (solid, _), (_, values) in zip(_TRIES, found, strict=True)]
    score = torch.stack([residual for residual, _ in found]) + 0.5 * torch.stack(missing)
    best = score.argmin(0)
    rows = []
    for i, k in enumerate(best.tolist()):
        residual, (_, r, h, _) = found[k]
        rows.append(Fit(_TRIES[k][0], float(h[i] / r[i]), float(residual[i]), float(missing[k][i])))
    return rows


def _fitted(points: Tensor, solid: str, yaw: float) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return residuals (P,) and centre (P, 3), half width, half height and yaw of a fit to points (P, M, 3)."""
    low, high = (torch.quantile(points, q, dim=1) for q in (0.02, 0.98))
    centre = (low + high) / 2
    rho = (points - centre[:, None])[..., :2].norm(dim=-1)
    width = torch.quantile(rho, 0.9, dim=1) * (0.85 if solid == "cube" else 1.0)
    height = (high - low)[:, 2] / 2 * (2.0 if solid == "ring" else 1.0)
    values = [centre, width.clamp(min=0.02).log(), height.clamp(min=0.02).log(), torch.full_like(width, yaw)]
    values = [value.clone().requires_grad_() for value in values]
    optimizer = torch.optim.Adam(values, lr=0.04)

    def away() -> Tensor:
        c, s = values[3].cos()[:, None], values[3].sin()[:, None]
        p = points - values[0][:, None]
        turned = torch.stack([c * p[..., 0] + s * p[..., 1], c * p[..., 1] - s * p[..., 0], p[..., 2]], -1)
        return distance(solid, turned, values[1].exp(), values[2].exp())

    with torch.enable_grad():
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = 0.04 * (1 - step / STEPS) + 0.001
            optimizer.zero_grad()
            away().mean(1).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        residual = away().mean(1)
    centre, width, height, angle = (value.detach() for value in values)
    return residual, (centre, width.exp(), height.exp(), angle)


def _missing(
    sets: Sequence[Tensor], solid: str, centre: Tensor, r: Tensor, h: Tensor, yaw: Tensor, random: np.random.Generator
) -> Tensor:
    """Return the mean distance of each fitted surface to the nearest of its points, (P,)."""
    found = []
    for i, own in enumerate(sets):
        probes = _turned(draw(solid, float(r[i]), float(h[i]), PROBES, random)[0], float(yaw[i])) + centre[i].numpy()
        found.append(torch.cdist(torch.from_numpy(probes), own).amin(1).mean().float())
    return torch.stack(found)


def _turned(points: NDArray[np.float64], yaw: float) -> NDArray[np.float64]:
    c, s = math.cos(yaw), math.sin(yaw)
    return points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
