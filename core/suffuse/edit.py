"""Edit: what a user says of samples before they are drawn: what is known of them, or between which ends they lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.codec import opened
from suffuse.conditioner import Conditioner
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian, Process, bound, streams
from suffuse.state import State, leaves, map_state

__all__ = ["Edit", "Path", "edit", "ends"]


@dataclass(frozen=True)
class Edit:
    """What is known of samples before they are drawn.

    Arguments:
        known: A state of one row, or of one per sample.
        mask: Boolean, true where `known` stays; None for nowhere.
        strength: Share of the steps that are taken, from `known` on; None starts from noise.

    Raises:
        ConfigError: Unless 0 < strength <= 1; when there is neither a mask nor a strength.
    """

    known: State
    mask: State | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ConfigError(f"strength={self.strength} must be above 0 and at most 1")
        if self.mask is None and self.strength is None:
            raise ConfigError("init= needs mask=, for what is made anew, or strength=, for how much is changed")

    def of(self, index: Tensor) -> Edit:
        """Return what is known of the samples number `index`; the same of all where `known` has one row."""
        if len(next(leaves(self.known))) == 1:
            return self
        known, mask = (None if s is None else map_state(lambda leaf: leaf[index], s) for s in (self.known, self.mask))
        assert known is not None
        return Edit(known, mask, self.strength)

    def first(self, steps: int) -> int:
        """Return the first of the nodes 0..steps that is used."""
        assert self.strength is not None
        return min(steps - 1, max(0, round((1 - self.strength) * steps)))


@dataclass(frozen=True)
class Path:
    r"""Samples between two ends: condition (1 - w) a + w b, noise cos(pi w / 2) a + sin(pi w / 2) b.

    The noise stays white, since two independent draws meet on the circle; of one seed it is that seed's throughout.

    Arguments:
        raw: Conditions at the far end, of B rows.
        seeds: Seeds at the far end, shape (B,).
        weight: w from 0 to 1, shape (B,).
    """

    raw: Mapping[str, Tensor]
    seeds: Tensor
    weight: Tensor

    def blend(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return embedded conditions between a and b; tokens of either are attended to."""
        mixed = {}
        for name, value in a.items():
            if value.is_floating_point():
                w = self.weight.to(value).view(-1, *[1] * (value.ndim - 1))
                mixed[name] = torch.lerp(value, b[name], w)
            else:
                mixed[name] = value | b[name]
        return mixed

    def start(self, process: Any, like: State, noise: KeyedNoise, t: float) -> State | None:
        """Return the states to start from; None where both ends have the same noise."""
        if torch.equal(self.seeds.cpu(), noise.seeds.cpu()):
            return None
        far = KeyedNoise(self.seeds.to(noise.seeds))

        def between(leaf: Tensor, p: Process, stream: int) -> Tensor:
            a, b = p.draw(leaf, noise, 0, stream), p.draw(leaf, far, 0, stream)
            if not isinstance(p, Gaussian):
                return p.prior(leaf, torch.where(self.weight.to(leaf).view(-1, *[1] * (a.ndim - 1)) < 0.5, a, b), t)
            angle = self.weight.to(a).view(-1, *[1] * (a.ndim - 1)) * (math.pi / 2)
            return p.prior(leaf, angle.cos() * a + angle.sin() * b, t)

        found: State = map_state(between, like, bound(process, like), streams(process))
        return found


def ends(
    conditioner: Conditioner, given: Mapping[str, Any], cfg: Mapping[str, Any]
) -> tuple[dict[str, Any], Path | None]:
    """Return the conditions of all samples, and where they stand between two ends when they are interpolated."""
    num = cfg["num"]
    if not cfg["interpolate"]:
        if cfg["seed_to"] is not None:
            raise ConfigError("seed_to= belongs to interpolate=true")
        return conditioner.parse(given, num), None
    both = conditioner.parse(given, 2)
    near, far = ({name: value[[row] * num] for name, value in both.items()} for row in (0, 1))
    seed = cfg["seed"] if cfg["seed_to"] is None else cfg["seed_to"]
    weight = torch.linspace(0, 1, num) if num > 1 else torch.zeros(1)
    return near, Path(far, torch.full((num,), int(seed)), weight)


def edit(codec: Any, cfg: Mapping[str, Any]) -> Edit | None:
    """Return what is known of the samples from ``init``, ``mask`` and ``strength``."""
    if cfg["init"] is None:
        for key in ("mask", "strength"):
            if cfg[key] is not None:
                raise ConfigError(f"{key}={cfg[key]} needs init=, the file it speaks of")
        return None
    if cfg["mask"] is None and cfg["strength"] is None:
        raise ConfigError("init= needs mask=, for what is made anew, or strength=, for how much is changed")
    known, mask = opened(codec, str(cfg["init"]), None if cfg["mask"] is None else str(cfg["mask"]))
    strength = cfg["strength"]
    if strength is not None and (isinstance(strength, bool) or not isinstance(strength, int | float)):
        raise ConfigError(f"strength={strength} is not a number")
    return Edit(known, mask, strength)
