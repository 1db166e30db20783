"""Preview: clouds as PLY and GLB, as turntables, as one sheet of views, and as W&B's Object3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from suffuse_shapes.render import sheet, turntable

__all__ = ["Files"]


class Files:
    """Writes each sample.

    Arguments:
        turn: Write a turntable GIF of each sample as well.
        frames: Frames of a turntable.
        size: Pixels of a view.
    """

    def __init__(self, turn: bool = True, frames: int = 24, size: int = 144) -> None:
        self.turn, self.frames, self.size = turn, frames, size

    def save(self, x: Tensor, stem: Path) -> Path:
        """Write ``.ply`` and ``.glb``, and ``.gif`` with `turn`; return the PLY's path."""
        cloud = _numbers(x)
        if self.turn:
            turntable(cloud, stem.with_suffix(".gif"), self.frames, self.size)
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

    def overview(self, xs: Tensor, captions: Sequence[str], path: Path) -> Path:
        """Write one picture of all samples."""
        return sheet([_numbers(x) for x in xs], captions, path, self.size)

    def media(self, xs: Tensor, captions: Sequence[str]) -> Mapping[str, list[Any]]:
        """Return every cloud as an Object3D, rows of x, y, z, r, g, b with colours in 0..255, and a sheet of views."""
        import wandb

        from suffuse_shapes.render import picture

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
