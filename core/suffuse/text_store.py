"""Store: what text encoders said of captions, on disk, so that no caption is encoded twice.

A folder per encoder, named by a hash of its files and of how it is read; in it pairs of files of every process that
wrote: numbers one after another, read through memory, and one line of JSON for each caption (hash of its text, where
its numbers begin, their shape). A line is written when its numbers are on disk, so what an interrupted process left is
read, and no process waits for another.
"""

from __future__ import annotations

import json
import os
import uuid
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Store", "text_key"]

Row = tuple[Tensor, Tensor | None]


def text_key(text: str) -> str:
    """Return the name of a caption in a store."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


class Store:
    """Features of captions: tokens (T, D) and, where there is one, a pooled vector (P,); float32.

    Arguments:
        folder: Where they are kept; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, tuple[Path, int, list[int], int]] = {}
        self._maps: dict[Path, Any] = {}
        self._read: dict[Path, int] = {}
        self._out: tuple[Any, Any, Path] | None = None
        self.refresh()

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, text: str) -> bool:
        return text_key(text) in self._where

    def refresh(self) -> None:
        """Look for what other processes have written since."""
        if not self.folder.is_dir():
            return
        for index in sorted(self.folder.glob("*.jsonl")):
            done = self._read.get(index, 0)
            if index.stat().st_size <= done:
                continue
            with index.open("rb") as lines:
                lines.seek(done)
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # cut off when its process was stopped, or being written
                    done += len(line)
                    row = json.loads(line)
                    self._where[row["key"]] = (index.with_suffix(".bin"), row["at"], row["tokens"], row["pooled"])
            self._read[index] = done

    def get(self, text: str) -> Row | None:
        """Return the features of a caption, or None."""
        found = self._where.get(text_key(text))
        if found is None:
            return None
        path, at, shape, pooled = found
        count = shape[0] * shape[1]
        if path not in self._maps or len(self._maps[path]) < at + count + pooled:
            self._maps[path] = np.memmap(path, np.float32, "r")
        whole = torch.from_numpy(np.array(self._maps[path][at : at + count + pooled]))
        return whole[:count].view(*shape), whole[count:] if pooled else None

    def put(self, text: str, tokens: Tensor, pooled: Tensor | None = None) -> None:
        """Add a caption."""
        if text in self:
            return
        if self._out is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.bin"
            # Open as long as the store is: a file per caption would be slower than the encoder.
            self._out = path.open("wb"), path.with_suffix(".jsonl").open("wb"), path
        numbers, index, path = self._out
        at = numbers.tell() // 4
        parts = [tokens.float().cpu().contiguous().numpy()]
        parts += [] if pooled is None else [pooled.float().cpu().contiguous().numpy()]
        for part in parts:
            numbers.write(part.tobytes())
        numbers.flush()
        size = 0 if pooled is None else pooled.numel()
        row = {"key": text_key(text), "at": at, "tokens": list(tokens.shape), "pooled": size}
        index.write(json.dumps(row).encode() + b"\n")
        index.flush()
        self._where[row["key"]] = (path, at, row["tokens"], size)  # type: ignore[index,assignment]
        self._read[path.with_suffix(".jsonl")] = index.tell()
