"""Shards: WebDataset tar files, for sets larger than a disk: read one after another, from files, pipes or the network.

A sample of a shard is the files that share a name: the modality's own file, and ``.txt`` (a caption), ``.cls`` (a
class) or ``.json`` (``text``, ``label``). The order is a function of the seed: every epoch permutes the shards, each
stream (one per rank and worker) takes every S-th of them, and a buffer that is kept sorted by a hash mixes neighbours.
A resumed run reads again what it had passed, since which samples are damaged decides where a batch ends, and so sees
what an uninterrupted one would; the number of workers must stay the same.
"""

from __future__ import annotations

import heapq
import json
import logging
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError
from suffuse.noise import mix
from suffuse.text import captions_of, encoded

__all__ = ["Shards"]

_log = logging.getLogger(__name__)


class Shards(Data, ABC):
    """Base of a modality's shards: a subclass says how one file is decoded.

    Arguments:
        path: Shards with a range in braces, as ``/data/train-{0000..0127}.tar``, or ``pipe:aws s3 cp s3://… -``; or a
            folder with tar files.
        val_path: Shards that are held out; by default the last of `path`.
        labels: Names of the classes, in order; without it ``.cls`` and ``label`` are not used.
        text: Whether samples have captions.
        buffer: Samples among which neighbours are mixed.
        val_num: Held-out samples that are kept in memory.
        max_bad: Share of the samples that may be damaged.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning, or webdataset is not installed.
        DataError: In `setup`, when a shard cannot be read or holds nothing.
    """

    elastic = False
    what: ClassVar[str] = "items"
    """What the samples are, for messages."""
    need: ClassVar[str] = "data=webdataset"
    """What needs webdataset, for the message."""
    extra: ClassVar[str] = "webdataset"
    """What installs it."""
    damaged: ClassVar[type[Exception]] = ValueError
    """What `decode` raises for a file that cannot be used."""

    def __init__(
        self, path: str | None = None, val_path: str | None = None, labels: Sequence[str] = (), text: bool = True,
        buffer: int = 1000, val_num: int = 500, max_bad: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to shards, as /data/train-{0000..0127}.tar")
        if buffer < 1 or val_num < 1:
            raise ConfigError(f"data.buffer={buffer} and data.val_num={val_num} must be at least 1")
        self.urls = _expanded(path)
        self.val_urls = _expanded(val_path) if val_path else self.urls[-1:]
        if not val_path:
            self.urls = self.urls[:-1]
        if not self.urls:
            raise ConfigError(f"data.path={path}: one shard cannot be split; add more, or set data.val_path")
        self.labels, self.text, self.buffer, self.val_num, self.max_bad = tuple(labels), text, buffer, val_num, max_bad

    @abstractmethod
    def suffixes(self) -> Collection[str]:
        """Return the lower-case endings, with a dot, of the files that are decoded."""

    @abstractmethod
    def decode(self, raw: bytes, epoch: int, number: int) -> Any:
        """Return ``x`` of the bytes of a file.

        Arguments:
            raw: The bytes.
            epoch: -1 for what is held out, and for the facts.
            number: Of the sample in its stream; what is drawn at random is a function of seed, epoch and number.
        """

    @abstractmethod
    def kept(self, items: list[dict[str, Any]], captions: list[str]) -> Dataset[Any]:
        """Return items, and their captions where there are some, as a data set in memory."""

    @abstractmethod
    def facts(self, captions: list[str]) -> Mapping[str, Any]:
        """Return ``about`` of the data; `captions` are those of the held-out set, sorted."""

    def setup(self) -> None:
        """Read the held-out samples, and the first ones for the facts of the data."""
        if hasattr(self, "train"):
            return
        self.val, captions = self._first(self.val_urls, self.val_num)
        self.train, _ = self._first(self.urls[:1], min(512, self.val_num))
        self.spec = Spec(labels=self.labels, about=self.facts(sorted({text for text in captions if text})))

    def describe(self) -> str:
        """Return how many shards there are."""
        return f"shards {len(self.urls)} to train on, {len(self.val_urls)} held out; items are those looked at first"

    def train_loader(self, start: int = 0, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return the endless loader of training batches from micro-batch `start` on."""
        stream = _Stream(self, start, rank, world)
        how: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": 4} if self.workers else {}
        return DataLoader(
            stream, batch_size=None, num_workers=self.workers, pin_memory=torch.cuda.is_available(), **how
        )

    def item(self, sample: Mapping[str, Any], epoch: int, number: int) -> dict[str, Any]:
        """Return the item of a raw sample; raises `damaged` when it cannot be used."""
        endings = self.suffixes()
        name = next((key for key in sample if f".{key.rpartition('.')[2].lower()}" in endings), None)
        if name is None:
            raise self.damaged(f"it has no {self.what[:-1]}")
        cond: dict[str, Any] = {}
        said = _json(sample)
        if self.labels:
            label = sample["cls"].decode().strip() if "cls" in sample else said.get("label")
            known = label is not None and str(label) in self.labels
            cond["label"] = self.labels.index(str(label)) if known else -1
            if label is not None and not known and str(label).isdecimal() and int(label) < len(self.labels):
                cond["label"] = int(label)
        if self.text:
            text = (
                sample["txt"].decode(errors="replace") if "txt" in sample else said.get("text") or said.get("caption")
            )
            cond["text"] = encoded(str(text or ""))
        return {"x": self.decode(bytes(sample[name]), epoch, number), "cond": cond, "index": number}

    def samples(self, urls: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the raw samples of shards in order, values as bytes."""
        try:
            import webdataset
        except ImportError as error:
            raise ConfigError(f"{self.need} needs webdataset: pip install '{self.extra}'") from error
        try:
            yield from webdataset.WebDataset(
                list(urls),
                shardshuffle=False,
                nodesplitter=None,
                workersplitter=None,
                empty_check=False,
                handler=webdataset.reraise_exception,
            )
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            text = " ".join(str(error).split())[:200]
            raise DataError(f"data.path: cannot read a shard of {urls[0]}… ({text})") from error

    def _first(self, urls: Sequence[str], count: int) -> tuple[Dataset[Any], list[str]]:
        found, bad = [], []
        for number, sample in enumerate(self.samples(urls)):
            try:
                found.append(self.item(sample, -1, number))
            except self.damaged as error:
                bad.append(f"{sample.get('__key__')} ({error})")
            if len(found) >= count:
                break
        if len(bad) > self.max_bad * (len(bad) + len(found)) or not found:
            shown = ", ".join(bad[:3]) or "there are none"
            raise DataError(f"data.path: {len(bad)} of {len(bad) + len(found)} {self.what} cannot be used: {shown}")
        if bad:
            _log.warning("%d %s cannot be used and are left out: %s", len(bad), self.what, ", ".join(bad[:3]))
        captions = captions_of(torch.stack([item["cond"]["text"] for item in found])) if self.text else []
        return self.kept(found, captions), captions


class _Stream(IterableDataset[dict[str, Any]]):
    """Batches of one rank, from one micro-batch on."""

    def __init__(self, data: Shards, start: int, rank: int, world: int) -> None:
        self.data, self.start, self.rank, self.world = data, start, rank, world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        workers, worker = (1, 0) if info is None else (info.num_workers, info.id)
        # A loader takes batches from its workers in turns, from the first one: micro-batch `start` must be its first.
        mine = (self.start + worker) % workers
        skipped = len(range(mine, self.start, workers))
        stream = self._raw(self.rank * workers + mine, self.world * workers)
        size, bad, seen = self.data.batch_size, 0, 0
        items: list[dict[str, Any]] = []
        to_skip = skipped * size
        for epoch, number, sample in stream:
            if to_skip:
                # What is damaged was in no batch.
                to_skip -= self._readable(sample)
                continue
            seen += 1
            try:
                items.append(self.data.item(sample, epoch, number))
            except self.data.damaged as error:
                bad += 1
                _log.warning("%s cannot be used and is left out: %s", sample.get("__key__"), error)
                if bad > max(3, self.data.max_bad * seen):
                    raise DataError(
                        f"data.path: {bad} of {seen} {self.data.what} cannot be used; the last: {error}"
                    ) from error
                continue
            if len(items) == size:
                yield torch.utils.data.default_collate(items)
                items = []

    def _readable(self, sample: dict[str, Any]) -> bool:
        try:
            self.data.item(sample, 0, 0)
        except self.data.damaged:
            return False
        return True

    def _raw(self, stream: int, streams: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield (epoch, number, sample) of a stream for ever, neighbours mixed."""
        data, epoch, number = self.data, 0, 0
        waiting: list[tuple[float, int, int, dict[str, Any]]] = []
        while True:
            generator = torch.Generator().manual_seed((data.seed * 0x9E3779B97F4A7C15 + epoch) % 2**63)
            order = torch.randperm(len(data.urls), generator=generator).tolist()
            # With fewer shards than streams, streams share shards and take every n-th sample.
            share = -(-streams // len(order))
            mine = [data.urls[i] for place, i in enumerate(order) if place % streams == stream // share]
            found = False
            for count, sample in enumerate(data.samples(mine)):
                if count % share != stream % share:
                    continue
                found = True
                place = number + data.buffer * (mix(data.seed, stream, number) / 2**62)
                heapq.heappush(waiting, (place, number, epoch, sample))
                number += 1
                # What comes out is what no later sample can come before.
                while waiting and waiting[0][0] < number:
                    _, old, when, ready = heapq.heappop(waiting)
                    yield when, old, ready
            if not found:
                raise DataError(f"data.path: no {data.what} in {', '.join(mine[:2]) or 'the shards of a stream'}")
            epoch += 1


def _json(sample: Mapping[str, Any]) -> dict[str, Any]:
    if "json" not in sample:
        return {}
    try:
        found = json.loads(sample["json"])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _expanded(path: str) -> list[str]:
    """Return the shards of a path with a range in braces, or of a folder."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = sorted(str(p) for p in folder.glob("*.tar"))
        if not found:
            raise ConfigError(f"data.path={path}: no .tar files in this folder")
        return found
    if "{" in path and ".." in path:
        before, _, rest = path.partition("{")
        inside, _, after = rest.partition("}")
        first, _, last = inside.partition("..")
        if not (first.isdecimal() and last.isdecimal()) or int(last) < int(first):
            raise ConfigError(f"data.path={path}: {{{inside}}} is no range; write it as {{0000..0127}}")
        names = [f"{before}{n:0{len(first)}d}{after}" for n in range(int(first), int(last) + 1)]
    else:
        names = [path]
    missing = [n for n in names if "://" not in n and not n.startswith("pipe:") and not Path(n).expanduser().is_file()]
    if missing:
        raise ConfigError(f"data.path={path}: no such file {missing[0]}")
    return names
