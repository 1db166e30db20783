"""Given: which parts of a molecule a model is told rather than asked for.

Training takes them away from noise in a share of the items, so that one network completes scaffolds and linkers, finds
conformations of known graphs, and reads graphs off coordinates, beside making molecules from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from suffuse.errors import ConfigError, suggest

__all__ = ["MODES", "choose_given"]

MODES = ("fragment", "conformer", "relabel")
"""A connected part with its coordinates, elements and bonds; all elements and bonds; all coordinates."""

Bools = NDArray[np.bool_]


def choose_given(batch: Mapping[str, Any], shares: Mapping[str, float], seeds: Sequence[int]) -> dict[str, Bools]:
    """Return what is given of each row: ``pos`` and ``atom``, boolean (B, N), and ``bond``, (B, N, N).

    Arguments:
        batch: ``z`` (B, N) and ``bond`` (B, N, N).
        shares: Share of the rows per mode.
        seeds: One per row; they decide mode and part.

    Raises:
        ConfigError: For an unknown mode, or shares outside [0, 1] or above 1 in all.
    """
    for name, share in shares.items():
        if name not in MODES:
            raise ConfigError(f"data.given.{name}: no such mode{suggest(name, MODES, listing='modes')}")
        if not 0 <= share <= 1 or sum(shares.values()) > 1:
            raise ConfigError(f"data.given.{name}={share}: shares must be in [0, 1] and at most 1 in all")
    if not seeds:
        return {}
    z, bond = batch["z"], batch["bond"]
    found = {"pos": np.zeros(z.shape, bool), "atom": np.zeros(z.shape, bool), "bond": np.zeros(bond.shape, bool)}
    if not any(shares.values()):
        return found
    for row, seed in enumerate(seeds):
        random = np.random.default_rng(seed)
        mode = _mode(float(random.random()), shares)
        exists = z[row] > 0
        pairs = exists[:, None] & exists[None] & ~np.eye(len(exists), dtype=bool)
        if mode == "fragment":
            part = _fragment(bond[row], int(exists.sum()), random)
            found["pos"][row], found["atom"][row] = part, part
            found["bond"][row] = part[:, None] & part[None] & pairs
        elif mode == "conformer":
            found["atom"][row], found["bond"][row] = exists, pairs
        elif mode == "relabel":
            found["pos"][row] = exists
    return found


def _mode(u: float, shares: Mapping[str, float]) -> str | None:
    for name in MODES:
        u -= shares.get(name, 0.0)
        if u < 0:
            return name
    return None


def _fragment(bond: NDArray[Any], size: int, random: np.random.Generator) -> Bools:
    """Return a connected part of 1 to size - 1 atoms, grown along bonds from a random atom."""
    part = np.zeros(len(bond), bool)
    if size < 2:
        return part
    wanted = int(random.integers(1, size))
    part[int(random.integers(size))] = True
    while part.sum() < wanted:
        border = np.flatnonzero((bond[part] > 0).any(0) & ~part)
        if not len(border):
            break
        part[int(random.choice(border))] = True
    return part
