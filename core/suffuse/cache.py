"""Cache: the states of all items on disk, encoded once, so that training with a costly codec reads arrays alone.

A folder per data and codec, named by a hash of what decides its content: ``train`` and ``val``, each an array of states
that is read through memory and a file of conditions. An encoding that was interrupted goes on where it stopped; a
folder is used by a run only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from suffuse.data import Data
from suffuse.errors import ConfigError, DataError
from suffuse.training.progress import Progress, is_first_rank, say

__all__ = ["Cached", "Precomputed", "cached", "key"]


class _Rows(Dataset[Any]):
    """Items of one split, from disk."""

    def __init__(self, folder: Path) -> None:
        self.states = np.load(folder / "states.npy", mmap_mode="r")
        kept = torch.load(folder / "items.pt", weights_only=True)
        self.cond: Mapping[str, Tensor] = kept["cond"]
        self.index: Tensor = kept["index"]

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, i: int) -> dict[str, Any]:
        x = torch.from_numpy(np.array(self.states[i]))
        return {"x": x, "cond": {name: value[i] for name, value in self.cond.items()}, "index": int(self.index[i])}

    def batch(self, keys: list[int]) -> dict[str, Any]:
        """Return the items of `keys`, collated."""
        rows = torch.tensor(keys)
        x = torch.from_numpy(np.stack([self.states[i] for i in keys]))
        return {"x": x, "cond": {name: value[rows] for name, value in self.cond.items()}, "index": self.index[rows]}


class Cached(Data):
    """The items of other data as states.

    Arguments:
        data: The data; its batch size, workers, seed and spec are taken over.
        folder: A folder that `cached` filled.
    """

    def __init__(self, data: Data, folder: Path) -> None:
        super().__init__(data.batch_size, data.workers, data.seed)
        self.train, self.val, self.spec = _Rows(folder / "train"), _Rows(folder / "val"), data.spec


class Precomputed:
    """The codec of `Cached` data: what it encodes are states already; everything else is the codec's.

    Arguments:
        codec: The codec that made the states.
    """

    def __init__(self, codec: Any) -> None:
        self._codec = codec

    def encode(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)


def cached(data: Data, codec: Any, folder: Path) -> tuple[Cached, Precomputed]:
    """Return data and codec of a run that reads states from `folder`, which is filled first where it is not.

    Arguments:
        data: Set up; its items may not change from epoch to epoch.
        codec: Encodes a batch to one tensor.
        folder: See `key`.

    Raises:
        ConfigError: For data that is augmented, or a codec whose states have named fields.
        DataError: When the codec returns NaN or infinite values.
    """
    if getattr(data.train, "epochs", False):
        raise ConfigError(
            "cache=true: this data is augmented anew in every epoch, which a cache would freeze; switch the "
            "augmentation off or leave cache=false"
        )
    for name in ("train", "val"):
        # The other ranks of this machine wait for the first.
        while not is_first_rank() and not (folder / name / "items.pt").is_file():
            time.sleep(0.5)
        if not (folder / name / "items.pt").is_file():
            _fill(getattr(data, name), codec, folder / name, f"cache: {name}")
    return Cached(data, folder), Precomputed(codec)


def key(cfg: Mapping[str, Any], data: Data, codec: Any) -> str:
    """Return the name of the folder of a data set and a codec: a hash of both configs and of what was measured.

    Data whose files may change under the same config says so in ``fingerprint()``, a text.
    """
    coder = getattr(codec, "coder", None)
    digest = getattr(getattr(coder, "frozen", coder), "digest", None)
    own = getattr(data, "fingerprint", None)
    plain = {name: value for name, value in cfg["data"].items() if name not in ("batch_size", "workers")}
    parts = [
        plain, cfg["codec"], cfg["seed"], dict(data.spec.about), len(data.train), len(data.val),  # type: ignore[arg-type]
        digest() if digest else None, own() if own else None,
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _fill(dataset: Any, codec: Any, folder: Path, what: str, batch: int = 64) -> None:
    """Encode every item of a split into a folder; items there already are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    count, began = len(dataset), time.perf_counter()
    states, mark = folder / "states.npy", folder / "done"
    done = int(mark.read_text()) if mark.is_file() and states.is_file() else 0
    array = np.load(states, mmap_mode="r+") if done else None
    if array is None:
        say(f"{what}, {count:,} items in {folder}")
    progress = Progress(count, unit="items", word=what)
    kept: dict[int, Any] = {}
    for first in range(done, count, batch):
        rows = range(first, min(first + batch, count))
        items = [dataset[i] for i in rows]
        kept |= {i: (dict(item["cond"]), int(item["index"])) for i, item in zip(rows, items, strict=True)}
        with torch.no_grad():
            z = codec.encode(torch.utils.data.default_collate([item["x"] for item in items]))
        if not isinstance(z, Tensor):
            raise ConfigError("cache=true: the states of this codec have named fields; leave cache=false")
        if not torch.isfinite(z).all():
            raise DataError(f"cache: NaN or infinite values in the states of items {rows.start} to {rows.stop - 1}")
        if array is None:
            array = np.lib.format.open_memmap(states, "w+", np.float32, (count, *z.shape[1:]))
        array[rows.start : rows.stop] = z.float().cpu().numpy()
        array.flush()
        mark.write_text(str(rows.stop))
        progress.update(rows.stop, rate=(rows.stop - done) / max(time.perf_counter() - began, 1e-9))
    # The conditions come last, and say that all is there.
    for i in range(done):
        item = dataset[i]
        kept[i] = (dict(item["cond"]), int(item["index"]))
    conds, index = zip(*(kept[i] for i in range(count)), strict=True)
    temporary = folder / ".items.pt.tmp"
    cond = torch.utils.data.default_collate(list(conds)) if conds[0] else {}
    torch.save({"cond": cond, "index": torch.tensor(index)}, temporary)
    temporary.replace(folder / "items.pt")
    mark.unlink(missing_ok=True)
