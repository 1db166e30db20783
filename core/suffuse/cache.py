"""Cache: the states of all items on disk, encoded once, so that training with a costly codec reads arrays alone.

A folder per data and codec, named by a hash of what decides its content: ``train`` and ``val``, each of shards. A shard
is an array of states that is read through memory, of named fields one each, and a file of conditions; it appears whole,
under its own name, when all its items are encoded. So several processes, of one machine or of many with a common disk,
each make shards of their own, an encoding that was interrupted goes on where it stopped, and a split is used by a run
only when it is whole.

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
from suffuse.state import State, map_state
from suffuse.training.progress import Progress, per_second, say

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
        kept = [torch.load(_items(folder, n), weights_only=True) for n in numbers]
        fields = kept[0].get("fields", [""])
        self.states = {name: [np.load(_states(folder, n, name), mmap_mode="r") for n in numbers] for name in fields}
        for parts in self.states.values():
            _check_shapes(parts)
        self.cond = {name: torch.cat([k["cond"][name] for k in kept]) for name in kept[0]["cond"]}
        self.index = torch.cat([k["index"] for k in kept])
        self.texts = texts
        self.epochs = texts is not None and texts.varied

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        whole = self.batch([key])
        cond = {name: value[0] for name, value in whole["cond"].items()}
        x = map_state(lambda field: field[0], whole["x"])
        return {"x": x, "cond": cond, "index": int(whole["index"][0])}

    def batch(self, keys: Sequence[Any]) -> dict[str, Any]:
        """Return the items of `keys`, indices or pairs (epoch, index), collated."""
        places = [k if isinstance(k, int) else k[1] for k in keys]
        rows = torch.tensor(places)
        x = _nested(
            {
                name: torch.from_numpy(np.stack([parts[i // self.shard][i % self.shard] for i in places]))
                for name, parts in self.states.items()
            }
        )
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

    def encode(self, x: State) -> State:
        """Return x."""
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)


def cached(data: Data, codec: Any, folder: Path, shard: int = SHARD) -> tuple[Cached, Precomputed]:
    """Return data and codec of a run that reads states from `folder`, which is filled first where it is not.

    Arguments:
        data: Set up; its items may not change from epoch to epoch, but for which of their captions they have.
        codec: Encodes a batch to states of one shape, whatever the batch.
        folder: See `key`.
        shard: Items of a shard.

    Raises:
        ConfigError: For data that is augmented, or states of several shapes.
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
        while not all(_items(where, number).is_file() for number in numbers):
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


def _states(folder: Path, number: int, name: str) -> Path:
    """Return the file of the states of a shard, or of one of their fields."""
    return folder / f"states-{number:05d}{name and '.'}{name}.npy"


def _items(folder: Path, number: int) -> Path:
    """Return the file of the conditions of a shard, which comes last and says that it is whole."""
    return folder / f"items-{number:05d}.pt"


def _flat(state: Any, name: str = "") -> dict[str, Tensor]:
    """Return the fields of a state by name; one tensor has none, those of fields in fields are joined by dots."""
    if not isinstance(state, Mapping):
        return {name: state}
    return {key: leaf for k, part in state.items() for key, leaf in _flat(part, f"{name}{name and '.'}{k}").items()}


def _nested(fields: Mapping[str, Tensor]) -> Any:
    """Return the state of `_flat` fields."""
    if "" in fields:
        return fields[""]
    names = dict.fromkeys(name.partition(".")[0] for name in fields)
    parts = {n: {k.partition(".")[2]: leaf for k, leaf in fields.items() if k.partition(".")[0] == n} for n in names}
    return {name: _nested(part) for name, part in parts.items()}


def _fill(dataset: Any, codec: Any, folder: Path, what: str, shard: int, batch: int = 64) -> None:
    """Encode this process's shards of a split that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    count, began, done = len(dataset), time.perf_counter(), 0
    rank, world = part()
    mine = [n for n in range(rank, -(-count // shard), world) if not _items(folder, n).is_file()]
    if not mine:
        return
    say(f"{what}, {count:,} items in {folder}")
    progress = Progress(sum(min(shard, count - n * shard) for n in mine), unit="items", word=what)
    texts = getattr(dataset, "texts", None)
    for number in mine:
        rows = range(number * shard, min((number + 1) * shard, count))
        states: list[dict[str, Any]] = []
        conds, index = [], []
        for first in range(rows.start, rows.stop, batch):
            some = range(first, min(first + batch, rows.stop))
            items = [dataset[i] for i in some]
            states.append(_encoded(codec, torch.utils.data.default_collate([item["x"] for item in items]), some))
            conds += [{k: v for k, v in item["cond"].items() if k != "text" or texts is None} for item in items]
            index += [int(item["index"]) for item in items]
            done += len(items)
            progress.update(done, rate=per_second(done, began))
        _write(folder, number, _joined(states), conds, index)


def _joined(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of several batches of states one after another."""
    for name in states[0]:
        _check_shapes([part[name] for part in states])
    return {name: np.concatenate([part[name] for part in states]) for name in states[0]}


def _check_shapes(parts: Sequence[Any]) -> None:
    """Raise `ConfigError` where states of some batches have another shape than those of others."""
    shapes = sorted({part.shape[1:] for part in parts})
    if len(shapes) > 1:
        raise ConfigError(
            f"cache=true: states of this codec are {shapes[0]} in some batches and {shapes[-1]} in others, which "
            "is not kept; leave cache=false"
        )


def _encoded(codec: Any, x: Any, rows: range) -> dict[str, Any]:
    """Return the fields of the states of a batch, by name; see `_flat`."""
    device = getattr(codec, "device", None)
    if device is not None:
        x = torch.utils._pytree.tree_map(lambda leaf: leaf.to(device), x)
    with torch.no_grad():
        fields = _flat(codec.encode(x))
    if not all(torch.isfinite(leaf).all() for leaf in fields.values()):
        raise DataError(f"cache: NaN or infinite values in the states of items {rows.start} to {rows.stop - 1}")
    plain = {name: leaf.float() if leaf.is_floating_point() else leaf for name, leaf in fields.items()}
    return {name: leaf.cpu().numpy() for name, leaf in plain.items()}


def _write(
    folder: Path, number: int, states: dict[str, Any], conds: list[dict[str, Any]], index: list[int]
) -> None:  # fmt: skip
    """Write a shard, each file under a temporary name first."""
    cond = torch.utils.data.default_collate(conds) if conds[0] else {}
    files = {_states(folder, number, name): array for name, array in states.items()}
    for path, content in (files | {_items(folder, number): None}).items():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            if content is not None:
                np.save(file, content)
            else:
                torch.save({"cond": cond, "index": torch.tensor(index), "fields": list(states)}, file)
        temporary.replace(path)
