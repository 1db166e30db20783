"""Given: the clouds that a sample is to agree with: a coarse one, or the part of it that a scanner has seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from suffuse.errors import ConfigError, suggest
from torch import Tensor

__all__ = ["Given"]

KINDS = ("none", "coarse", "partial")


@dataclass(frozen=True)
class Given:
    """What is given of each cloud.

    Arguments:
        kind: ``none``; ``coarse``: some of its points at random, for a model that adds the others; ``partial``: the
            points on one side of a plane, for a model that completes it.
        points: How many there are.
        jitter: Largest standard deviation of an error of their coordinates; every item draws its own below that, so
            that a model forgives the errors of another's samples ("Cascaded Diffusion Models for High Fidelity Image
            Generation", Ho et al. 2022, section 4.2).

    Raises:
        ConfigError: For an unknown kind, or a number out of range.
    """

    kind: str = "none"
    points: int = 256
    jitter: float = 0.02

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"data.given={self.kind}: no such kind{suggest(self.kind, KINDS, listing='kinds')}")
        if self.points < 1:
            raise ConfigError(f"data.given_points={self.points} must be at least 1")
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"data.jitter={self.jitter} must be in [0, 1)")

    def about(self) -> dict[str, object]:
        """Return what the model must know."""
        return {} if self.kind == "none" else {"given": {"kind": self.kind, "points": self.points}}

    def of(self, cloud: Tensor, random: np.random.Generator) -> dict[str, Tensor]:
        """Return the condition ``cloud`` (C, points) of a cloud (C, N); nothing for ``none``."""
        if self.kind == "none":
            return {}
        rows = np.arange(cloud.shape[1])
        if self.kind == "partial":
            normal = random.standard_normal(3)
            depth = (normal / np.linalg.norm(normal)) @ cloud[:3].numpy()
            rows = np.flatnonzero(depth >= np.quantile(depth, random.uniform(0.25, 0.75)))
        few = random.permutation(rows)
        few = few[np.arange(self.points) % len(few)]
        found = cloud[:, torch.from_numpy(few)].clone()
        error = random.standard_normal((3, self.points)) * self.jitter * random.random()
        found[:3] += torch.from_numpy(error.astype(np.float32))
        return {"cloud": found}
