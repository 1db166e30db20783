"""Codec: clouds (B, C, N) as states of the same shape with positions, colours and normals of order one.

``points=N`` asks for clouds of any number of points. ``init=FILE mask=…`` keeps a part of a cloud as it is, which the
core's observation wrapper holds fixed while the rest is drawn:

- ``mask=rest`` (or ``rest:0.7``): the file is a partial cloud; half (or 0.7) of the points are new.
- ``mask=colour``, ``mask=position``: that channel is made anew.
- ``mask=z:above:0.2``: points on that side of a plane are made anew; or ``below``, or along x or y.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from suffuse.errors import ConfigError, check_whole
from suffuse.state import State
from torch import Tensor

from suffuse_shapes.conditioner import opened

__all__ = ["Clouds"]


class Clouds:
    """Positions over their standard deviation; colours about grey and normals, over theirs.

    Arguments:
        colour: Standard deviation of colours and normals in the state, where that of positions is 1.
        points: Points of the clouds that are drawn; None for as many as in training.
        frame: How files that are opened lie: ``keep``, as the model's clouds do, or ``fit``, to be brought there.
        about: Facts of the data; ``codec`` holds what `measure` found.

    Raises:
        ConfigError: For an argument out of range.
    """

    tolerance = 1e-5

    def __init__(
        self, colour: float = 0.5, points: int | None = None, frame: str = "keep",
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        about = about or {}
        found = about.get("codec") or {}
        if not colour > 0:
            raise ConfigError(f"codec.colour={colour} must be positive")
        if points is not None:
            check_whole("points", points)
        if frame not in ("keep", "fit"):
            raise ConfigError(f"frame={frame} must be keep or fit")
        self.colour, self.points, self.fit = colour, points or int(about.get("points", 0)), frame == "fit"
        self.channels = 9 if about.get("normals") else 6
        self.position, self.tint = float(found.get("position", 1.0)), float(found.get("tint", 1.0))

    def measure(self, x: Tensor) -> dict[str, float]:
        """Return the standard deviation of positions and of colours about grey."""
        position = x[:, :3].double().square().mean().sqrt().clamp(min=1e-3)
        tint = (x[:, 3:6].double() - 0.5).square().mean().sqrt().clamp(min=0.05)
        return {"position": round(float(position), 4), "tint": round(float(tint), 4)}

    def encode(self, x: Tensor) -> State:
        """Return the state of clouds (B, C, N)."""
        x = x.float()
        parts = [x[:, :3] / self.position, (x[:, 3:6] - 0.5) * (self.colour / self.tint)]
        # Unit vectors have a standard deviation of 3^-1/2 per axis.
        return torch.cat([*parts, x[:, 6:] * (self.colour * 3**0.5)], 1)

    def decode(self, state: State) -> Tensor:
        """Return the clouds of a state (B, C, N)."""
        assert isinstance(state, Tensor)
        parts = [state[:, :3] * self.position, state[:, 3:6] * (self.tint / self.colour) + 0.5]
        return torch.cat([*parts, state[:, 6:] / (self.colour * 3**0.5)], 1)

    def like(self, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> State:
        """Return an empty state of as many points as are asked for."""
        if not self.points:
            raise ConfigError("codec: the data says no number of points; ask for points=2048")
        return torch.empty(len(seeds), self.channels, self.points, device=device)

    def open(self, init: str, mask: str | None) -> tuple[State, State | None]:
        """Return the state of a file, (1, C, N), and where it stays, a mask of the same shape.

        Raises:
            ConfigError: For a file or a mask that has no meaning.
        """
        count = self.points
        fresh = _share(mask)
        if fresh is not None:
            count = max(1, min(self.points - 1, round(self.points * (1 - fresh))))
        x = opened(Path(init).expanduser(), "init", count, self.channels, self.fit)
        if fresh is not None:
            x = torch.nn.functional.pad(x, (0, self.points - count))
        state = self.encode(x[None])
        if mask is None:
            return state, None
        assert isinstance(state, Tensor)
        kept = torch.ones_like(state, dtype=torch.bool)
        if fresh is not None:
            kept[:, :, count:] = False
        elif mask in ("colour", "color"):
            kept[:, 3:6] = False
        elif mask == "position":
            kept[:, :3] = False
        else:
            kept[:, :, _beyond(mask, x)] = False
        return state, kept


def _share(mask: str | None) -> float | None:
    """Return the share of new points of ``rest`` or ``rest:SHARE``; None for another mask."""
    if mask is None or not (found := re.fullmatch(r"rest(?::([\d.]+))?", mask)):
        return None
    try:
        share = 0.5 if found[1] is None else float(found[1])
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"mask={mask}: the share of new points must lie between 0 and 1, as rest:0.7")
    return share


def _beyond(mask: str, x: Tensor) -> Tensor:
    """Return which points of (C, N) lie on the side of a plane that is made anew."""
    found = re.fullmatch(r"([xyz]):(above|below):(-?[\d.]+)", mask)
    try:
        if found is None:
            raise ValueError
        at = float(found[3])
    except ValueError:
        text = "must be rest, rest:0.7, colour, position, or a side of a plane as z:above:0.2"
        raise ConfigError(f"mask={mask} {text}") from None
    along = x["xyz".index(found[1])]
    inside = along > at if found[2] == "above" else along < at
    if not inside.any():
        raise ConfigError(f"mask={mask}: no points there; the file's {found[1]} runs from {along.min():.3g} to "
                          f"{along.max():.3g}")  # fmt: skip
    return inside
