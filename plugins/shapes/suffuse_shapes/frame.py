"""Frame: where a shape lay before it was normalised: x_normal = (x - centre) / scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frame", "upright"]


@dataclass(frozen=True)
class Frame:
    """A shift and a scale.

    Arguments:
        centre: Centre of the bounding box, in the file's units.
        scale: Largest half extent of the bounding box, in the file's units.
    """

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0

    @classmethod
    def of(cls, xyz: NDArray[np.floating]) -> Frame:
        """Return the frame that brings points (n, 3) into [-1, 1] with their bounding box at the origin."""
        low, high = xyz.min(0).astype(float), xyz.max(0).astype(float)
        scale = float((high - low).max()) / 2
        x, y, z = (float(v) for v in (low + high) / 2)
        return cls((x, y, z), scale if scale > 0 else 1.0)

    def normalise(self, xyz: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return points of the file in the frame."""
        return ((np.asarray(xyz, dtype=np.float64) - self.centre) / self.scale).astype(np.float32)

    def restore(self, xyz: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return points of the frame in the file's units."""
        return np.asarray(xyz, dtype=np.float64) * self.scale + self.centre

    @classmethod
    def restored(cls, record: Mapping[str, Any]) -> Frame:
        """Return the frame of a record."""
        x, y, z = record["centre"]
        return cls((float(x), float(y), float(z)), float(record["scale"]))

    def record(self) -> dict[str, Any]:
        """Return plain values."""
        return {"centre": list(self.centre), "scale": self.scale}


def upright(up: str) -> NDArray[np.float64]:
    """Return the matrix M of points @ M that brings an axis to z without mirroring."""
    order = {"x": (1, 2, 0), "y": (2, 0, 1), "z": (0, 1, 2)}[up]
    return np.eye(3)[:, list(order)]
