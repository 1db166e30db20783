"""Codec: clouds (B, 6, N) as states of the same shape with positions and colours of order one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suffuse.state import State

__all__ = ["Clouds"]


class Clouds:
    """Positions over their standard deviation; colours about grey, over theirs.

    Arguments:
        colour: Standard deviation of the colours in the state, where that of the positions is 1.
        about: Facts of the data; ``codec`` holds what `measure` found.
    """

    tolerance = 1e-5

    def __init__(self, colour: float = 0.5, about: Mapping[str, Any] | None = None) -> None:
        found = (about or {}).get("codec") or {}
        self.colour = colour
        self.position, self.tint = float(found.get("position", 1.0)), float(found.get("tint", 1.0))

    def measure(self, x: Tensor) -> dict[str, float]:
        """Return the standard deviation of positions and of colours about grey."""
        position = x[:, :3].double().square().mean().sqrt().clamp(min=1e-3)
        tint = (x[:, 3:].double() - 0.5).square().mean().sqrt().clamp(min=0.05)
        return {"position": round(float(position), 4), "tint": round(float(tint), 4)}

    def encode(self, x: Tensor) -> State:
        """Return the state of clouds (B, 6, N)."""
        x = x.float()
        return torch.cat([x[:, :3] / self.position, (x[:, 3:] - 0.5) * (self.colour / self.tint)], 1)

    def decode(self, state: State) -> Tensor:
        """Return the clouds of a state (B, 6, N)."""
        assert isinstance(state, Tensor)
        return torch.cat([state[:, :3] * self.position, state[:, 3:] * (self.tint / self.colour) + 0.5], 1)
