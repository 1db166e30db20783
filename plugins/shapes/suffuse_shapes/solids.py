r"""Solid: five canonical surfaces, how points are drawn on them, and how far a point is from them.

A solid has a half width r and a half height h. Four are surfaces of revolution about z: a polyline of (rho, z) turned
around. The cube is the box [-r, r]^2 x [-h, h]. Points are uniform by area: of a segment of the polyline, rho^2 is
uniform between its ends (Archimedes for the sphere, the cone's unrolled sector), the angle is uniform. The distance of
a point to a surface of revolution is that of (rho, z) to the polyline, exactly; to the box it is the absolute value of
the signed distance max(q) below 0 and |max(q, 0)| above, q = |p| - (r, r, h).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SOLIDS", "distance", "draw", "half_height", "inside", "profile"]

SOLIDS = ("cube", "sphere", "cylinder", "cone", "ring")
TUBE = 0.35
"""Half width of a ring's tube, as a share of the ring's half width."""
RING = 0.5
"""Half height of a ring, as a share of what other solids of that form have."""
_ARC = 24


def _unit_profile(kind: str) -> NDArray[np.float64]:
    """Return the polyline of a solid of revolution with r = h = 1, (K, 2)."""
    if kind == "cylinder":
        return np.array([(0, -1), (1, -1), (1, 1), (0, 1)], dtype=float)
    if kind == "cone":
        return np.array([(0, -1), (1, -1), (0, 1)], dtype=float)
    if kind == "sphere":
        a = np.linspace(-math.pi / 2, math.pi / 2, _ARC + 1)
        return np.stack([np.cos(a), np.sin(a)], 1)
    a = np.linspace(0, 2 * math.pi, _ARC + 1)
    return np.stack([1 - TUBE + TUBE * np.cos(a), RING * np.sin(a)], 1)


_PROFILES = {kind: _unit_profile(kind) for kind in SOLIDS if kind != "cube"}


def profile(kind: str) -> NDArray[np.float64]:
    """Return the (rho, z) polyline of a solid of revolution with r = h = 1, shape (K, 2)."""
    return _PROFILES[kind]


def half_height(kind: str, h: float) -> float:
    """Return half of what a solid measures along z."""
    return RING * h if kind == "ring" else h


def draw(kind: str, r: float, h: float, count: int, random: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """Return `count` points uniform on the surface, (count, 3), and its area.

    Arguments:
        kind: One of `SOLIDS`.
        r: Half width.
        h: Half height (of a ring, twice its own).
        count: Number of points.
        random: Source of the draw.
    """
    if kind == "cube":
        return _draw_box(r, h, count, random)
    line = profile(kind) * (r, h)
    a, b = line[:-1], line[1:]
    area = math.pi * (a[:, 0] + b[:, 0]) * np.hypot(*(b - a).T)
    chosen = random.choice(len(area), count, p=area / area.sum())
    (rho_a, z_a), (rho_b, z_b), u = a[chosen].T, b[chosen].T, random.random(count)
    rho = np.sqrt(rho_a**2 + u * (rho_b**2 - rho_a**2))
    span = rho_b - rho_a
    flat = np.abs(span) < 1e-9
    share = np.where(flat, u, (rho - rho_a) / np.where(flat, 1, span))
    angle = 2 * math.pi * random.random(count)
    points = np.stack([rho * np.cos(angle), rho * np.sin(angle), z_a + share * (z_b - z_a)], 1)
    return points, float(area.sum())


def _draw_box(r: float, h: float, count: int, random: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    faces = np.array([4 * r * h] * 4 + [4 * r * r] * 2)
    face = random.choice(6, count, p=faces / faces.sum())
    axis, side = face // 2, face % 2 * 2 - 1
    points = random.uniform(-1, 1, (count, 3))
    points[np.arange(count), axis] = side
    return points * (r, r, h), float(faces.sum())


def distance(kind: str, p: Tensor, r: Tensor, h: Tensor) -> Tensor:
    """Return the unsigned distance of points to a surface, shape (B, N).

    Arguments:
        kind: One of `SOLIDS`.
        p: Points in the solid's own frame, (B, N, 3).
        r: Half widths, (B,).
        h: Half heights, (B,).
    """
    if kind == "cube":
        q = p.abs() - torch.stack([r, r, h], -1)[:, None]
        outside = q.clamp(min=0).square().sum(-1).clamp(min=1e-12).sqrt()
        return torch.where(q.amax(-1) > 0, outside, -q.amax(-1))
    line = torch.from_numpy(profile(kind)).to(p)[None] * torch.stack([r, h], -1)[:, None]
    a, b = line[:, None, :-1], line[:, None, 1:]
    rho = p[..., :2].square().sum(-1).clamp(min=1e-12).sqrt()
    at = torch.stack([rho, p[..., 2]], -1)[:, :, None]
    along = b - a
    share = ((at - a) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-12)
    nearest = a + share.clamp(0, 1)[..., None] * along
    return (at - nearest).square().sum(-1).amin(-1).clamp(min=1e-12).sqrt()


def inside(kind: str, p: Tensor, r: float, h: float) -> Tensor:
    """Return whether points (..., 3) in the solid's own frame lie in it."""
    z = p[..., 2].abs()
    if kind == "cube":
        return (p[..., :2].abs().amax(-1) < r) & (z < h)
    rho = p[..., :2].norm(dim=-1)
    if kind == "cylinder":
        return (rho < r) & (z < h)
    if kind == "cone":
        return (rho < r * (h - p[..., 2]) / (2 * h)) & (z < h)
    if kind == "sphere":
        return (rho / r) ** 2 + (z / h) ** 2 < 1
    return ((rho - (1 - TUBE) * r) / (TUBE * r)) ** 2 + (z / (RING * h)) ** 2 < 1
