"""Preview: clouds as PLY and GLB, as turntables, as one sheet of views, and as W&B's Object3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from suffuse.errors import DataError, check_whole
from torch import Tensor

from suffuse_shapes.frame import Frame, upright
from suffuse_shapes.render import picture, sheet, turntable
from suffuse_shapes.task import load

__all__ = ["Files"]


class Files:
    """Writes each sample.

    Arguments:
        turn: Write a turntable GIF of each sample as well.
        frames: Frames of a turntable.
        size: Pixels of a view.
        mesh: A run of ``task=shapes/surface``; with it a closed mesh of each sample is written as well.
        resolution: Nodes of a mesh's grid along each axis.
        about: Facts of the data; with ``frame``, files are in the units and axes of the data.

    Raises:
        ConfigError: For numbers out of range.
        CheckpointError: When `mesh` is no decoder of surfaces.
    """

    def __init__(
        self, turn: bool = True, frames: int = 24, size: int = 144, mesh: str | None = None, resolution: int = 64,
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        for name, value, least in (("frames", frames, 1), ("size", size, 16), ("resolution", resolution, 8)):
            check_whole(f"preview.{name}", value, least)
        self.turn, self.frames, self.size, self.resolution = turn, frames, size, resolution
        self.about = dict(about or {})
        self.decoder = load(mesh, "preview.mesh") if mesh else None

    def save(self, x: Tensor, stem: Path) -> Path:
        """Write ``.ply`` and ``.glb``, and ``.gif`` with `turn`; return the PLY's path."""
        cloud = _numbers(x)
        if self.turn:
            turntable(cloud, stem.with_suffix(".gif"), self.frames, self.size)
        cloud = np.concatenate([self._placed(cloud[:3].T).T, cloud[3:]])
        export(cloud, stem.with_suffix(".glb"))
        return export(cloud, stem.with_suffix(".ply"))

    def write(self, xs: Tensor, rows: Sequence[dict[str, Any]], out: Path) -> None:
        """Write the files of all samples and name them in their rows."""
        for x, row in zip(xs, rows, strict=True):
            stem = out / f"{row['index']:05d}"
            row["file"] = self.save(x, stem).name
            row["glb"], row["points"] = f"{stem.name}.glb", x.shape[-1]
            if self.turn:
                row["turntable"] = f"{stem.name}.gif"
            if self.decoder is not None:
                self._meshed(x, stem, row)

    def _placed(self, xyz: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return points (n, 3) as files have them."""
        frame = self.about.get("frame")
        if not frame:
            return np.asarray(xyz, dtype=np.float64)
        return Frame.restored(frame).restore(xyz @ upright(str(frame["up"])).T)

    def _meshed(self, x: Tensor, stem: Path, row: dict[str, Any]) -> None:
        """Write the mesh of a sample and say in its row what it is."""
        from suffuse_shapes.meshing import check, mesh, write

        assert self.decoder is not None  # asked for by the one who calls
        try:
            found = mesh(self.decoder, x, self.resolution)
        except DataError as error:
            row["mesh"] = str(error)
            return
        row["mesh"] = {"file": f"{stem.name}_mesh.glb", **check(found).record()}
        found.vertices = self._placed(found.vertices)
        write(found, stem.with_name(f"{stem.name}_mesh.glb"))

    def overview(self, xs: Tensor, captions: Sequence[str], path: Path) -> Path:
        """Write one picture of all samples."""
        return sheet([_numbers(x) for x in xs], captions, path, self.size)

    def media(self, xs: Tensor, captions: Sequence[str]) -> Mapping[str, list[Any]]:
        """Return every cloud as an Object3D, rows of x, y, z, r, g, b with colours in 0..255, and a sheet of views."""
        import wandb

        clouds = [_numbers(x) for x in xs]
        objects = [wandb.Object3D(_object(cloud), caption=text) for cloud, text in zip(clouds, captions, strict=True)]
        views = [wandb.Image(picture(cloud, self.size), caption=t) for cloud, t in zip(clouds, captions, strict=True)]
        return {"clouds": objects, "views": views}


def export(cloud: NDArray[np.floating], path: Path) -> Path:
    """Write a cloud (6, N) as the format of the path's suffix, through a temporary name."""
    import trimesh

    rgba = np.concatenate([_bytes(cloud[3:6]), np.full((1, cloud.shape[1]), 255, np.uint8)]).T
    points = trimesh.PointCloud(cloud[:3].T.astype(np.float32), colors=rgba)
    temporary = path.with_name(f".{path.name}.tmp")
    whole = trimesh.Scene(points) if path.suffix == ".glb" else points
    temporary.write_bytes(whole.export(file_type=path.suffix[1:]))
    return temporary.replace(path)


def _numbers(x: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = x.detach().cpu().double().numpy()
    return found


def _bytes(rgb: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.round(np.nan_to_num(rgb).clip(0, 1) * 255).astype(np.uint8)


def _object(cloud: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.concatenate([cloud[:3], _bytes(cloud[3:6])]).T.astype(float)
