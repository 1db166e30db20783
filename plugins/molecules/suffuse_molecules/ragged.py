"""Ragged: many molecules in flat arrays, cut into padded batches without a loop over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ragged"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Atoms of all molecules one after the other, and their bonds.

    Arguments:
        pos: Angstrom, float32, shape (A, 3); may be mapped from a file, as may all others.
        z: Atomic numbers, shape (A,).
        charge: Formal charges, shape (A,).
        offsets: Molecule m has the atoms offsets[m] to offsets[m + 1]; shape (M + 1,).
        bonds: Rows (i, j, order), atoms counted within their molecule, shape (E, 3).
        bond_offsets: As `offsets`, shape (M + 1,).
    """

    pos: NDArray[Any]
    z: NDArray[Any]
    charge: NDArray[Any]
    offsets: Ints
    bonds: NDArray[Any]
    bond_offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Ints:
        """Number of atoms of each molecule, shape (M,)."""
        return np.diff(self.offsets)

    def heavy(self) -> Ragged:
        """Return the molecules without their hydrogens."""
        keep = np.asarray(self.z) != 1
        kept = np.concatenate([[0], np.cumsum(keep)])
        offsets = kept[self.offsets]
        owner = np.repeat(np.arange(len(self)), np.diff(self.bond_offsets))
        bonds = np.asarray(self.bonds, np.int64)
        first, second = (bonds[:, k] + self.offsets[owner] for k in (0, 1))
        inside = keep[first] & keep[second]
        owner = owner[inside]
        moved = np.stack(
            [kept[first[inside]] - offsets[owner], kept[second[inside]] - offsets[owner], bonds[inside, 2]], 1
        )
        bond_offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(self)))])
        return Ragged(self.pos[keep], self.z[keep], self.charge[keep], offsets, moved, bond_offsets)

    def batch(self, rows: Sequence[int] | Ints, width: int | None = None) -> dict[str, NDArray[Any]]:
        """Return the molecules `rows`, padded with zeros.

        Arguments:
            rows: Their numbers, B of them.
            width: Atoms of a row, N; by default those of the largest.

        Returns:
            ``pos`` (B, N, 3) float32, ``z`` and ``charge`` (B, N) int64, ``bond`` (B, N, N) int64.
        """
        chosen = np.asarray(rows, np.int64)
        sizes = self.offsets[chosen + 1] - self.offsets[chosen]
        wide = int(width if width is not None else sizes.max(initial=1))
        row, place = _places(sizes)
        source = self.offsets[chosen][row] + place
        out: dict[str, NDArray[Any]] = {
            "pos": np.zeros((len(chosen), wide, 3), np.float32),
            "z": np.zeros((len(chosen), wide), np.int64),
            "charge": np.zeros((len(chosen), wide), np.int64),
            "bond": np.zeros((len(chosen), wide, wide), np.int64),
        }
        for name, of in (("pos", self.pos), ("z", self.z), ("charge", self.charge)):
            out[name][row, place] = of[source]
        counts = self.bond_offsets[chosen + 1] - self.bond_offsets[chosen]
        row, place = _places(counts)
        bonds = np.asarray(self.bonds[self.bond_offsets[chosen][row] + place], np.int64)
        out["bond"][row, bonds[:, 0], bonds[:, 1]] = bonds[:, 2]
        out["bond"][row, bonds[:, 1], bonds[:, 0]] = bonds[:, 2]
        return out


def _places(counts: Ints) -> tuple[Ints, Ints]:
    """Return, for so many entries per row, the row of each and its place there."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
