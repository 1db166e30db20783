"""Sets: the molecules that come with the package, and the readers of a user's own.

The small set holds every molecule of `suffuse_molecules.enumeration` with at most 6 heavy atoms, charged variants among
them, each with one MMFF94 conformation: about 3,500, in a file made by ``python -m suffuse_molecules.sets FILE``. The
one of 7 heavy atoms (about 24,000) is made when it is first asked for, and cached. Geometries are those of a force
field, so figures on them are not figures on QM9.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from suffuse.errors import ConfigError
from suffuse.training.progress import Progress, say

from suffuse_molecules.data import MoleculeData
from suffuse_molecules.record import Record
from suffuse_molecules.store import Store, cache_path, write_store

__all__ = ["Mini", "build_mini", "load_mini", "pack", "unpack"]

PACKED = Path(__file__).with_name("mini6.npz")
LARGEST = 7


class Mini(MoleculeData):
    """Every small molecule of C, N, O and F.

    Arguments:
        heavy: Most heavy atoms, 1 to 7.
        options: See `MoleculeData`.

    Raises:
        ConfigError: For another number.
    """

    def __init__(self, heavy: int = 6, **options: Any) -> None:
        super().__init__(**options)
        if isinstance(heavy, bool) or not isinstance(heavy, int) or not 1 <= heavy <= LARGEST:
            raise ConfigError(f"data.heavy={heavy} must be from 1 to {LARGEST}")
        self.heavy = heavy

    def load(self) -> Store:
        """Return the set."""
        return load_mini(self.heavy, max(1, self.workers))


def load_mini(heavy: int = 6, workers: int = 1) -> Store:
    """Return the molecules of at most `heavy` heavy atoms: those of the package, or made now and cached."""
    if heavy > 6:
        path = cache_path("mini", heavy=heavy)
        if not path.is_dir():
            say(f"making the set of {heavy} heavy atoms once (minutes); it is kept in {path}")
            store, reasons = build_mini(heavy, workers)
            return write_store(path, store, dict(reasons))
        return Store.open(path)
    store = unpack(PACKED)
    if heavy == 6:
        return store
    count = [int((store.z[a:b] > 1).sum()) for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
    return store.subset([i for i, n in enumerate(count) if n <= heavy])


def build_mini(heavy: int, workers: int = 1) -> tuple[Store, Counter[str]]:
    """Enumerate and embed; return the set, and how many molecules were left out for which reason."""
    from suffuse_molecules.embed import embed_many
    from suffuse_molecules.enumeration import molecules

    smiles = list(molecules(heavy))
    progress = Progress(len(smiles), unit="molecules", word="molecule")
    records: list[Record] = []
    reasons: Counter[str] = Counter()
    for found in embed_many(smiles, workers, progress.update):
        if isinstance(found, str):
            reasons[found] += 1
        else:
            records.append(found)
    return Store.of(records), reasons


def pack(store: Store, path: Path) -> None:
    """Write a store as one small file: milli-Angstrom in 16 bits, and no properties."""
    centers = np.add.reduceat(store.pos, store.offsets[:-1]) / store.sizes[:, None]
    local = store.pos - np.repeat(centers, store.sizes, 0)
    temporary = path.with_name(f".{path.name}.tmp.npz")
    np.savez_compressed(
        temporary, pos=np.round(local * 1000).astype(np.int16), z=store.z, charge=store.charge,
        sizes=store.sizes.astype(np.uint8), bonds=store.bonds.astype(np.uint8),
        bond_counts=np.diff(store.bond_offsets).astype(np.uint8), smiles=np.array("\n".join(store.smiles)),
    )  # fmt: skip
    temporary.replace(path)


def unpack(path: Path) -> Store:
    """Return the store of a file made by `pack`."""
    with np.load(path) as packed:
        sizes, counts = packed["sizes"].astype(np.int64), packed["bond_counts"].astype(np.int64)
        return Store(
            packed["pos"].astype(np.float32) / 1000, packed["z"], packed["charge"],
            np.concatenate([[0], np.cumsum(sizes)]), packed["bonds"].astype(np.int16),
            np.concatenate([[0], np.cumsum(counts)]), np.zeros((len(sizes), 0), np.float32), (),
            str(packed["smiles"]).splitlines(),
        )  # fmt: skip


def main(words: Iterable[str]) -> None:
    """Make the file of the package."""
    (target,) = words
    store, reasons = build_mini(6)
    pack(store, Path(target))
    print(f"{len(store)} molecules, left out: {dict(reasons)}")


if __name__ == "__main__":
    main(sys.argv[1:])
