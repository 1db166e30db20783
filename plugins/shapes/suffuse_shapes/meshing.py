"""Meshing: a closed surface from a cloud, by a decoder of signed distances and marching cubes.

The distance is asked on a coarse grid first and on the fine one only in cells that the surface may cross, then
triangulated ("Efficient Implementation of Marching Cubes' Cases with Topological Guarantees", Lewiner et al. 2003, in
scikit-image). The grid's rim counts as outside, so what comes out is closed; `check` says whether it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from suffuse.errors import ConfigError, DataError
from torch import Tensor

from suffuse_shapes.nn import SurfaceNet

__all__ = ["Check", "check", "distances", "mesh", "write"]

EXTENT = 1.25
"""The grid spans [-EXTENT, EXTENT]."""
_CHUNK = 16384


@dataclass(frozen=True)
class Check:
    """What a mesh is.

    Arguments:
        vertices: Their number.
        faces: Their number.
        watertight: Every edge belongs to exactly two triangles.
        oriented: Neighbouring triangles turn the same way.
        volume: Enclosed volume; positive when normals point outwards.
        bodies: Connected pieces.
    """

    vertices: int
    faces: int
    watertight: bool
    oriented: bool
    volume: float
    bodies: int

    @property
    def good(self) -> bool:
        """Whether it is one or more closed solids."""
        return self.watertight and self.oriented and self.volume > 0

    def record(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def check(found: Any) -> Check:
    """Return what a `trimesh.Trimesh` is."""
    bodies = int(found.body_count)
    return Check(
        len(found.vertices), len(found.faces), bool(found.is_watertight), bool(found.is_winding_consistent),
        float(found.volume), bodies,
    )  # fmt: skip


@torch.inference_mode()
def distances(decoder: SurfaceNet, xyz: Tensor, resolution: int = 64) -> NDArray[np.float32]:
    """Return signed distances on a grid, (resolution, resolution, resolution).

    Arguments:
        decoder: Answers for places.
        xyz: A cloud (N, 3) in [-1, 1].
        resolution: Nodes along each axis.
    """
    latents = decoder.encode(xyz[None])

    def ask(at: Tensor) -> Tensor:
        parts = [decoder(xyz[None], part[None], latents)[0] for part in at.split(_CHUNK)]
        return torch.cat(parts) if parts else at.new_zeros(0)

    line = torch.linspace(-EXTENT, EXTENT, resolution, device=xyz.device)
    coarse = torch.linspace(-EXTENT, EXTENT, max(8, resolution // 3), device=xyz.device)
    rough = ask(torch.cartesian_prod(coarse, coarse, coarse)).reshape(1, 1, *[len(coarse)] * 3)
    size = [resolution] * 3
    field = torch.nn.functional.interpolate(rough, size, mode="trilinear", align_corners=True)[0, 0].clone()
    # A node within two coarse cells of the surface is asked itself; the others keep their sign.
    close = field.abs() < min(0.95 * decoder.reach, 4 * EXTENT / (len(coarse) - 1))
    nodes = close.nonzero()
    field[close] = ask(line[nodes])
    return np.asarray(field.float().cpu().numpy(), dtype=np.float32)


def mesh(decoder: SurfaceNet, cloud: Tensor, resolution: int = 64) -> Any:
    """Return a closed, coloured `trimesh.Trimesh` of a cloud (C, N).

    Arguments:
        decoder: Trained with ``task=shapes/surface``.
        cloud: Coordinates in [-1, 1], then colours in [0, 1].
        resolution: Nodes of the grid along each axis.

    Raises:
        ConfigError: For a resolution below 8.
        DataError: When the decoder finds no surface in it.
    """
    import trimesh
    from scipy.spatial import cKDTree
    from skimage.measure import marching_cubes

    if resolution < 8:
        raise ConfigError(f"resolution={resolution} must be at least 8")
    cloud = cloud.detach().float()
    field = distances(decoder, cloud[:3].T.contiguous(), resolution)
    outside = np.pad(field, 1, constant_values=decoder.reach)
    outside[outside == 0] = 1e-6  # a node exactly on the surface would make triangles without area
    if not (outside < 0).any():
        raise DataError("no surface: the decoder finds no place inside this cloud")
    vertices, faces, _, _ = marching_cubes(outside, 0.0)
    vertices = (vertices - 1) / (resolution - 1) * 2 * EXTENT - EXTENT
    found = trimesh.Trimesh(vertices, faces, process=True)
    if found.volume < 0:
        found.invert()
    tree = cKDTree(cloud[:3].T.cpu().numpy())
    _, nearest = tree.query(found.vertices, k=min(3, cloud.shape[1]))
    rgb = cloud[3:6].T.cpu().numpy()[np.asarray(nearest).reshape(len(found.vertices), -1)].mean(1)
    rgba = np.concatenate([rgb.clip(0, 1), np.ones((len(rgb), 1))], 1)
    found.visual = trimesh.visual.ColorVisuals(found, vertex_colors=np.round(rgba * 255).astype(np.uint8))
    return found


def write(found: Any, path: Path) -> Path:
    """Write a mesh in the format of the path's suffix, through a temporary name."""
    temporary = path.with_name(f".{path.name}.tmp")
    content = found.export(file_type=path.suffix[1:])
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return temporary.replace(path)
