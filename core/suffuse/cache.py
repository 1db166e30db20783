"""Cache: the states of all items on disk, encoded once, so that training with a costly codec reads arrays alone.

A folder per data and codec, named by a hash of what decides its content: ``train`` and ``val``, each of shards. A shard
is an array of states that is read through memory and a file of conditions; it appears whole, under its own name, when
all its items are encoded. So several processes, of one machine or of many with a common disk, each make shards of their
own, an encoding that was interrupted goes on where it stopped, and a split is used by a run only when it is whole.

Captions that differ from epoch to epoch are no part of it: which one a step sees is chosen anew (`suffuse.captions`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from suffuse.captions import Captions
from suffuse.data import Data
from suffuse.errors import ConfigError, DataError
from suffuse.training.progress import Progress, say

__all__ = ["SHARD", "Cached", "Precomputed", "cached", "fill", "key", "part"]

SHARD = 1024
"""Items of a shard."""


class _Rows(Dataset[Any]):
    """Items of one split, from disk.

    Arguments:
        folder: Of the split.
        texts: Captions of its items, which are chosen anew in every epoch.
    """

    def __init__(self, folder: Path, texts: Captions | None = None) -> None:
        about = json.loads((folder / "split.json").read_text())
        self.count, self.shard = int(about["count"]), int(about["shard"])
        numbers = range(-(-self.count // self.shard))
        self.states = [np.load(_names(folder, n)[0], mmap_mode="r") for n in numbers]
        kept = [torch.load(_names(folder, n)[1], weights_only=True) for n in numbers]
        self.cond = {name: torch.cat([k["cond"][name] for k in kept]) for name in kept[0]["cond"]}
        self.index = torch.cat([k["index"] for k in kept])
        self.texts = texts
        self.epochs = texts is not None and texts.varied

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        whole = self.batch([key])
        cond = {name: value[0] for name, value in whole["cond"].items()}
        return {"x": whole["x"][0], "cond": cond, "index": int(whole["index"][0])}

    def batch(self, keys: Sequence[Any]) -> dict[str, Any]:
        """Return the items of `keys`, indices or pairs (epoch, index), collated."""
        places = [k if isinstance(k, int) else k[1] for k in keys]
        rows = torch.tensor(places)
        x = torch.from_numpy(np.stack([self.states[i // self.shard][i % self.shard] for i in places]))
        cond = {name: value[rows] for name, value in self.cond.items()}
        if self.texts is not None:
            cond["text"] = self.texts.batch(keys)
        return {"x": x, "cond": cond, "index": self.index[rows]}


class Cached(Data):
    """The items of other data as states.

    Arguments:
        data: The data; its batch size, workers, seed and spec are taken over.
        folder: A folder that `cached` filled.
    """

    def __init__(self, data: Data, folder: Path) -> None:
        super().__init__(data.batch_size, data.workers, data.seed)
        self.train, self.val = (
            _Rows(folder / name, getattr(getattr(data, name), "texts", None)) for name in ("train", "val")
        )
        self.spec = data.spec


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


def cached(data: Data, codec: Any, folder: Path, shard: int = SHARD) -> tuple[Cached, Precomputed]:
    """Return data and codec of a run that reads states from `folder`, which is filled first where it is not.

    Arguments:
        data: Set up; its items may not change from epoch to epoch, but for which of their captions they have.
        codec: Encodes a batch to one tensor.
        folder: See `key`.
        shard: Items of a shard.

    Raises:
        ConfigError: For data that is augmented, or a codec whose states have named fields.
        DataError: When the codec returns NaN or infinite values.
    """
    fill(data, codec, folder, shard)
    return Cached(data, folder), Precomputed(codec)


def fill(data: Data, codec: Any, folder: Path, shard: int = SHARD) -> None:
    """Encode this process's part of what is not there yet, and wait for the parts of the others; see `cached`."""
    if getattr(data.train, "epochs", False) and not getattr(data.train, "still", False):
        raise ConfigError(
            "cache=true: this data is augmented anew in every epoch, which a cache would freeze; switch the "
            "augmentation off or leave cache=false"
        )
    if getattr(data.train, "buckets", None) is not None:
        raise ConfigError("cache=true: items of several shapes are not kept; leave data.buckets=null or cache=false")
    for name in ("train", "val"):
        split, where = getattr(data, name), folder / name
        if (where / "split.json").is_file():
            continue
        _fill(split, codec, where, f"cache: {name}", shard)
        numbers = range(-(-len(split) // shard))
        while not all(_names(where, number)[1].is_file() for number in numbers):
            time.sleep(0.5)
        if part()[0] == 0:
            temporary = where / ".split.json.tmp"
            temporary.write_text(json.dumps({"count": len(split), "shard": shard}))
            temporary.replace(where / "split.json")
        while not (where / "split.json").is_file():
            time.sleep(0.1)


def part() -> tuple[int, int]:
    """Return the number of this process and how many there are, as the launcher says."""
    env = os.environ
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in env and world in env:
            return int(env[rank]), int(env[world])
    return 0, 1


def key(cfg: Mapping[str, Any], data: Data, codec: Any) -> str:
    """Return the name of the folder of a data set and a codec: a hash of both configs and of what was measured.

    Data whose files may change under the same config says so in ``fingerprint()``, a text.
    """
    coder = getattr(codec, "coder", None)
    digest = getattr(getattr(coder, "frozen", coder), "digest", None)
    own = getattr(data, "fingerprint", None)
    plain = {name: value for name, value in cfg["data"].items() if name not in ("batch_size", "workers", "captions")}
    about = {name: value for name, value in data.spec.about.items() if name != "prompts"}
    parts = [
        plain, cfg["codec"], cfg["seed"], about, len(data.train), len(data.val),  # type: ignore[arg-type]
        digest() if digest else None, own() if own else None,
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _names(folder: Path, number: int) -> tuple[Path, Path]:
    """Return the files of a shard: its states, and its conditions, which come last and say that it is whole."""
    return folder / f"states-{number:05d}.npy", folder / f"items-{number:05d}.pt"


def _fill(dataset: Any, codec: Any, folder: Path, what: str, shard: int, batch: int = 64) -> None:
    """Encode this process's shards of a split that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    count, began, done = len(dataset), time.perf_counter(), 0
    rank, world = part()
    mine = [n for n in range(rank, -(-count // shard), world) if not _names(folder, n)[1].is_file()]
    if not mine:
        return
    say(f"{what}, {count:,} items in {folder}")
    progress = Progress(sum(min(shard, count - n * shard) for n in mine), unit="items", word=what)
    texts = getattr(dataset, "texts", None)
    for number in mine:
        rows = range(number * shard, min((number + 1) * shard, count))
        states, conds, index = [], [], []
        for first in range(rows.start, rows.stop, batch):
            some = range(first, min(first + batch, rows.stop))
            items = [dataset[i] for i in some]
            states.append(_encoded(codec, torch.utils.data.default_collate([item["x"] for item in items]), some))
            conds += [{k: v for k, v in item["cond"].items() if k != "text" or texts is None} for item in items]
            index += [int(item["index"]) for item in items]
            done += len(items)
            progress.update(done, rate=done / max(time.perf_counter() - began, 1e-9))
        _write(folder, number, np.concatenate(states), conds, index)


def _encoded(codec: Any, x: Any, rows: range) -> np.ndarray[Any, Any]:
    device = getattr(codec, "device", None)
    if device is not None:
        x = torch.utils._pytree.tree_map(lambda leaf: leaf.to(device), x)
    with torch.no_grad():
        z = codec.encode(x)
    if not isinstance(z, Tensor):
        raise ConfigError("cache=true: the states of this codec have named fields; leave cache=false")
    if not torch.isfinite(z).all():
        raise DataError(f"cache: NaN or infinite values in the states of items {rows.start} to {rows.stop - 1}")
    return np.asarray(z.float().cpu().numpy())


def _write(folder: Path, number: int, states: Any, conds: list[dict[str, Any]], index: list[int]) -> None:
    """Write a shard, each file under a temporary name first."""
    names = _names(folder, number)
    own = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in names]
    with own[0].open("wb") as file:
        np.save(file, states)
    cond = torch.utils.data.default_collate(conds) if conds[0] else {}
    torch.save({"cond": cond, "index": torch.tensor(index)}, own[1])
    for temporary, path in zip(own, names, strict=True):
        temporary.replace(path)
