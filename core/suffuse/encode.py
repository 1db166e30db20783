"""Encode: ``suffuse encode`` fills the cache of a run before it starts, with as many processes as are wanted.

It takes the words of the `train` that it is for: the same data, codec and seed name the same folder, so that
``train … cache=true`` afterwards reads only what lies there. Where the conditioner reads captions by frozen encoders,
their features are stored as well (`suffuse.text_store`), and training never loads the encoders.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from suffuse.build import build
from suffuse.cache import SHARD, fill, key, part
from suffuse.data import Data
from suffuse.errors import ConfigError, SuffuseError
from suffuse.model import fit_codec
from suffuse.training.progress import Progress, duration, per_second, say

__all__ = ["encode", "launch"]


def launch(words: Sequence[str], processes: int, shard: int) -> None:
    """Encode in this process, or in several.

    Raises:
        SuffuseError: When one of them fails.
    """
    from suffuse.app import compose_train

    if processes == 1:
        from suffuse.jobs import plain_config

        encode(plain_config(compose_train(words)), shard)
        return
    compose_train(words)  # what does not compose is said once
    command = [sys.executable, "-m", "suffuse", "encode", *words, f"shard={shard}"]
    began = time.perf_counter()
    children = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(processes)},
                         stdout=None if rank == 0 else subprocess.DEVNULL)
        for rank in range(processes)
    ]  # fmt: skip
    try:
        # Whoever waits for the part of a process that failed would wait for ever.
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            time.sleep(0.1)
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
    codes = [child.wait() for child in children]
    if any(codes):
        raise SuffuseError("a process of encode failed, as said above; the same command goes on where it stopped")
    say(f"encoded by {processes} processes in {duration(time.perf_counter() - began)}")


def encode(cfg: Mapping[str, Any], shard: int = SHARD) -> Path:
    """Encode what a run of the config would read; return the folder.

    Arguments:
        cfg: Plain config of a training job.
        shard: Items of a shard.

    Raises:
        SuffuseError: For everything a user can mend.
    """
    data: Data = build(cfg["data"], "data", seed=int(cfg["seed"]))
    data.setup()
    data.check()
    codec = fit_codec(cfg["codec"], data)
    if torch.cuda.is_available() and hasattr(codec, "to"):
        codec.to(torch.device("cuda", part()[0] % torch.cuda.device_count()))
        codec.device = torch.device("cuda", part()[0] % torch.cuda.device_count())
    modality = str(cfg["modality"]["name"])
    where = cfg["cache"]
    root = Path("outputs") / modality / "cache" if where in (True, False, None) else Path(str(where)).expanduser()
    folder = root / key(cfg, data, codec)
    _captions(cfg, data)
    fill(data, codec, folder, shard)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    more = "" if where in (True, False, None) else f"={where}"
    say(
        f"states of {len(data.train):,} and {len(data.val):,} items, {size / 2**20:,.1f} MiB, in {folder}\n"  # type: ignore[arg-type]
        f"  train with the same words and cache{more or '=true'}"
    )
    return folder


def _captions(cfg: Mapping[str, Any], data: Data) -> None:
    """Have every caption read by the conditioner's frozen encoders, of this process its share."""
    about = data.spec.about
    conditioner = build(
        cfg["conditioner"], "conditioner", labels=list(data.spec.labels), scalars=list(data.spec.scalars), about=about,
    )  # fmt: skip
    stores = getattr(conditioner, "stores", ())
    if not any(store is not None for store in stores) or not about.get("text"):
        return
    rank, world = part()
    texts = sorted(set(_texts(data)))[rank::world]
    progress, began = Progress(len(texts), unit="captions", word="captions"), time.perf_counter()
    conditioner.train()
    for first in range(0, len(texts), 64):
        conditioner.read(texts[first : first + 64])
        done = min(first + 64, len(texts))
        progress.update(done, rate=per_second(done, began))
    names = ", ".join(str(store.folder) for store in stores if store is not None)
    say(f"features of captions in {names}")


def _texts(data: Data) -> Iterable[str]:
    """Yield every caption of the data."""
    from suffuse.text import captions_of

    for split in (data.train, data.val):
        own = getattr(split, "texts", None)
        if own is not None:
            for some in (*own.texts, *own.rewritten):
                yield from (text for text in some if text)
            continue
        for i in range(len(split)):  # type: ignore[arg-type]
            found = split[i]["cond"].get("text")
            if found is None:
                raise ConfigError("encode: items of this data have no captions")
            yield from captions_of(found[None])
