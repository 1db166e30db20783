"""Data: molecules of a store in batches of like size, and what of them is given rather than generated.

A batch holds molecules of one bucket of sizes, so that little of it is padding, and as many of them as cost, which is
the square of the size, allows. Epoch and place decide which: batch k is a pure function of (seed, k), as everywhere.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from suffuse.data import Data, Spec, spaced
from suffuse.errors import ConfigError, DataError
from suffuse.noise import mix
from torch.utils.data import DataLoader, Dataset, Sampler

from suffuse_molecules.given import choose_given
from suffuse_molecules.ragged import Ragged
from suffuse_molecules.sizes import size_facts

__all__ = ["BucketStream", "MoleculeData", "Molecules", "bucket_widths", "key"]

KEYS = 200_000
"""Most training molecules whose keys a checkpoint remembers, 8 bytes each."""


def key(smiles: str) -> str:
    """Return a key of a canonical SMILES, 16 hexadecimal digits."""
    return hashlib.blake2b(smiles.encode(), digest_size=8).hexdigest()


def bucket_widths(sizes: NDArray[np.int64], most: int = 4) -> list[int]:
    """Return widths, rising, of at most `most` buckets that hold the molecules with the least padding.

    Dynamic programming over the sizes that occur: the cost of a bucket is its count times its width squared.
    """
    values, counts = np.unique(sizes, return_counts=True)
    total, k = np.concatenate([[0], np.cumsum(counts)]), len(values)
    best = np.full((most + 1, k + 1), np.inf)
    best[0, 0] = 0
    came = np.zeros((most + 1, k + 1), int)
    for used in range(1, most + 1):
        for end in range(1, k + 1):
            costs = best[used - 1, :end] + (total[end] - total[:end]) * float(values[end - 1]) ** 2
            came[used, end] = int(costs.argmin())
            best[used, end] = costs[came[used, end]]
    used, end, widths = int(best[:, k].argmin()), k, []
    while end:
        widths.append(int(values[end - 1]))
        end, used = came[used, end], used - 1
    return widths[::-1]


class BucketStream(Sampler[list[Any]]):
    """Lists of ``(epoch, index)``, one per micro-batch, without an end; all items of a list are of one bucket.

    Arguments:
        sizes: Atoms of each item, shape (N,).
        batch: Rows of a batch of molecules of the mean cost, per rank.
        seed: Seed of the order.
        start: First micro-batch.
        rank: This process.
        world: Number of processes.
        buckets: Most buckets.
    """

    def __init__(
        self, sizes: NDArray[np.int64], batch: int, seed: int, start: int = 0, rank: int = 0, world: int = 1,
        buckets: int = 4,
    ) -> None:  # fmt: skip
        self.sizes, self.seed, self.start, self.rank, self.world = sizes, seed, start, rank, world
        self.widths = bucket_widths(sizes, buckets)
        self.bucket = np.searchsorted(self.widths, sizes)
        cost = float((sizes.astype(float) ** 2).mean())
        # Rows of a whole step, over all ranks, of each bucket.
        self.rows = [world * min(4 * batch, max(1, round(batch * cost / width**2))) for width in self.widths]
        counts = np.bincount(self.bucket, minlength=len(self.widths))
        self.batches = [-(-int(count) // rows) for count, rows in zip(counts, self.rows, strict=True)]
        self._cached: tuple[int, list[NDArray[np.int64]]] | None = None

    @property
    def padding(self) -> float:
        """Share of the pairs of atoms that are padding."""
        wide = np.asarray(self.widths)[self.bucket].astype(float) ** 2
        return float(1 - (self.sizes.astype(float) ** 2).sum() / wide.sum())

    def epoch(self, number: int) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch, over all ranks, as indices; the last of a bucket is filled from its first."""
        if self._cached is None or self._cached[0] != number:
            random = np.random.default_rng(mix(self.seed, number, 11))
            order = random.permutation(len(self.sizes))
            found: list[NDArray[np.int64]] = []
            for bucket, rows in enumerate(self.rows):
                mine = order[self.bucket[order] == bucket]
                filled = np.resize(mine, self.batches[bucket] * rows)
                found += list(filled.reshape(-1, rows))
            shuffled = random.permutation(len(found))
            self._cached = (number, [found[i] for i in shuffled])
        return self._cached[1]

    def __iter__(self) -> Iterator[list[Any]]:
        step, count = self.start, sum(self.batches)
        while True:
            epoch, place = divmod(step, count)
            whole = self.epoch(epoch)[place]
            share = len(whole) // self.world
            yield [(epoch, int(index)) for index in whole[self.rank * share : (self.rank + 1) * share]]
            step += 1


class Molecules(Dataset[Any]):
    """A split: items are molecules with their conditions.

    Arguments:
        table: All molecules.
        rows: Which of them, shape (N,).
        props: Named conditions of all molecules, each of shape (M,).
        given: Shares of the items of which a part is given, see `suffuse_molecules.given`.
        seed: Seed of those choices.
    """

    epochs = True

    def __init__(
        self, table: Ragged, rows: NDArray[np.int64], props: Mapping[str, NDArray[Any]], given: Mapping[str, float],
        seed: int,
    ) -> None:  # fmt: skip
        self.table, self.rows, self.props, self.given, self.seed = table, rows, props, given, seed
        self.sizes = table.sizes[rows]
        self.widths = bucket_widths(self.sizes) if len(rows) else [1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Any) -> dict[str, Any]:
        """Return one item, as wide as the largest molecule."""
        batch = self._batch([item], int(self.sizes.max(initial=1)))
        return {
            "x": {name: leaf[0] for name, leaf in batch["x"].items()},
            "cond": {name: float(value[0]) for name, value in batch["cond"].items()},
            "index": int(batch["index"][0]),
        }

    def batch(self, items: Sequence[Any]) -> dict[str, Any]:
        """Return many items, as wide as their bucket."""
        largest = int(self.sizes[[item[1] if isinstance(item, tuple) else item for item in items]].max())
        return self._batch(items, self.widths[int(np.searchsorted(self.widths, largest))])

    def _batch(self, items: Sequence[Any], width: int) -> dict[str, Any]:
        pairs = [item if isinstance(item, tuple) else (0, item) for item in items]
        index = np.array([i for _, i in pairs], np.int64)
        rows = self.rows[index]
        arrays = self.table.batch(rows, width)
        x = {name: torch.from_numpy(leaf) for name, leaf in arrays.items()}
        fixed = choose_given(arrays, self.given, [mix(self.seed, epoch, i, 12) for epoch, i in pairs])
        x |= {f"fixed_{name}": torch.from_numpy(leaf) for name, leaf in fixed.items()}
        cond = {name: torch.from_numpy(column[rows].astype(np.float32)) for name, column in self.props.items()}
        return {"x": x, "cond": cond, "index": torch.from_numpy(index)}


class MoleculeData(Data, ABC):
    """Base of the molecule sets: a subclass says in `load` where its store comes from.

    Arguments:
        hydrogens: ``implicit``: atoms are heavy atoms, and RDKit completes hydrogens by valence; ``explicit``: all
            atoms are generated.
        conditions: Names of the data's columns or of RDKit descriptors that a sample may be asked for.
        given: Shares of the training items in which a part is given: ``fragment``, ``conformer`` (elements and bonds)
            and ``relabel`` (coordinates); see `suffuse_molecules.given`.
        max_atoms: Larger molecules, counted as `hydrogens` says, are left out.
        batch_size: Rows of a batch of molecules of the mean cost; smaller ones come in larger batches.
        workers: Processes that cut batches.
        seed: Seed of the order and of what is given.

    Raises:
        ConfigError: For other hydrogens, shares that are no shares, or an unknown condition.
    """

    elastic = False  # rows of a batch are chosen for all ranks together

    def __init__(
        self, hydrogens: str = "implicit", conditions: Sequence[str] = (), given: Mapping[str, float] | None = None,
        max_atoms: int | None = None, batch_size: int = 64, workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(batch_size, workers, seed)
        if hydrogens not in ("implicit", "explicit"):
            raise ConfigError(f"data.hydrogens={hydrogens} is neither 'implicit' nor 'explicit'")
        if max_atoms is not None and max_atoms < 1:
            raise ConfigError(f"data.max_atoms={max_atoms} must be at least 1")
        self.hydrogens, self.conditions, self.max_atoms = hydrogens, tuple(conditions or ()), max_atoms
        self.given = {name: float(share) for name, share in (given or {}).items()}
        choose_given({}, self.given, [])  # the names and shares are checked before a long setup

    train: Molecules
    val: Molecules
    test: Molecules

    @abstractmethod
    def load(self) -> Any:
        """Return the `suffuse_molecules.store.Store` of all molecules."""

    def setup(self) -> None:
        """Open the store, split it, and compute the conditions."""
        from suffuse_molecules.descriptors import compute
        from suffuse_molecules.store import split_of

        self.store = self.load()
        table = Ragged(
            self.store.pos, self.store.z, self.store.charge, np.asarray(self.store.offsets, np.int64),
            self.store.bonds, np.asarray(self.store.bond_offsets, np.int64),
        )  # fmt: skip
        self.table = table.heavy() if self.hydrogens == "implicit" else table
        columns = np.asarray(compute(self.store, self.conditions)) if self.conditions else np.zeros((len(table), 0))
        self.props = dict(zip(self.conditions, columns.T, strict=True))
        split = np.array([split_of(smiles) for smiles in self.store.smiles])
        sizes = self.table.sizes
        fits = (sizes >= 1) & (sizes <= (self.max_atoms or sizes.max(initial=1)))
        if not fits.any():
            raise DataError(f"data.max_atoms={self.max_atoms}: no molecule is that small; raise it")
        rows = {name: np.flatnonzero((split == name) & fits) for name in ("train", "val", "test")}
        self.train = Molecules(self.table, rows["train"], self.props, self.given, self.seed)
        self.val = Molecules(self.table, rows["val"], self.props, self.given, self.seed)
        self.test = Molecules(self.table, rows["test"], self.props, self.given, self.seed)
        self.spec = Spec(scalars=self.conditions, about=self._about(rows["train"]))

    def _about(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        elements = sorted(np.unique(np.asarray(self.table.z)).tolist())
        charges = np.asarray(self.table.charge)
        if len(charges) and np.abs(charges.astype(int)).max() > 1:
            raise DataError("data: a formal charge beyond -1 or +1; leave such molecules out")
        smiles = [self.store.smiles[int(row)] for row in rows[:KEYS]]
        return {
            "hydrogens": self.hydrogens,
            "elements": elements,
            "classes": {"atom": len(elements), "charge": 3, "bond": 4},
            "scale": self._scale(rows),
            "sizes": size_facts(self.table.sizes[rows], {name: column[rows] for name, column in self.props.items()}),
            "conditions": list(self.conditions),
            "known": "".join(sorted(key(s) for s in smiles)) if len(rows) <= KEYS else "",
            "width": int(self.table.sizes[rows].max(initial=1)),
        }

    def _scale(self, rows: NDArray[np.int64]) -> float:
        """Return the standard deviation of a coordinate about its molecule's centre, in Angstrom."""
        chosen = rows[spaced(len(rows), 4096)]
        batch = self.table.batch(chosen)
        there = (batch["z"] > 0)[..., None]
        count = there.sum(1, keepdims=True).clip(min=1)
        local = (batch["pos"] - batch["pos"].sum(1, keepdims=True) / count) * there
        return round(float(np.sqrt((local.astype(float) ** 2).sum() / (3 * there.sum()))), 4) or 1.0

    def describe(self) -> str:
        """Return buckets, padding and hydrogens on one line."""
        stream = BucketStream(self.train.sizes, self.batch_size, self.seed)
        widths = ", ".join(f"{width} ({rows})" for width, rows in zip(stream.widths, stream.rows, strict=True))
        elements = " ".join(_symbols(self.spec.about["elements"]))
        return (
            f"molecules with {self.hydrogens} hydrogens, {elements}; atoms (rows of a batch): {widths}; "
            f"{stream.padding:.1%} of the pairs are padding"
        )

    def train_loader(self, start: int = 0, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return the endless loader of bucketed batches from micro-batch `start` on."""
        stream = BucketStream(self.train.sizes, self.batch_size, self.seed, start, rank, world)
        return self._loader(self.train, stream)  # type: ignore[arg-type]

    def val_loader(self, limit: int | None = None, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return one pass over this rank's share of `limit` held-out molecules, evenly spaced, from small to large."""
        chosen = spaced(len(self.val), limit)
        order = sorted(chosen, key=lambda i: (int(self.val.sizes[i]), i))
        part = Molecules(self.table, self.val.rows[order[rank::world]], self.props, self.given, self.seed)
        return self._loader(part)


def _symbols(elements: Sequence[int]) -> list[str]:
    from rdkit import Chem

    table = Chem.GetPeriodicTable()
    return [table.GetElementSymbol(z) for z in elements]
