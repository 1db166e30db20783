r"""Sharded checkpoint: a folder in which every process wrote the parts of the tensors that it holds.

``tree.pt`` is an ordinary checkpoint with a mark {shape, part} in the place of each tensor that is spread over the
processes, and ``part-00000-of-00004.pt`` the pieces of the first process, each with the place where it begins along the
dimension that was cut. A piece is cut as `torch.chunk` does: process r of n has the entries [r c, (r + 1) c) with
c = ceil(N / n), and the last may have none.

Every file is read with ``weights_only=True`` and through memory, so that a process that needs a part of a tensor reads
no more than its neighbourhood, and a checkpoint of n processes can be continued by any other number of them, or by one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import checkpoint as files
from suffuse.errors import CheckpointError
from suffuse.state import local

__all__ = ["Pieces", "assign", "consolidate", "finish", "is_sharded", "read", "split", "spread", "walk", "write_part"]

_TREE, _MARK = "tree.pt", "__sharded__"
PATIENCE = 1800.0
"""Seconds that the first process waits for the parts of the others."""


def is_sharded(path: Path) -> bool:
    """Return whether `path` is a sharded checkpoint."""
    return (path / _TREE).is_file()


def walk(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return a tree of mappings, lists and tuples with `leaf` applied to everything else."""
    if isinstance(tree, Mapping):
        return {key: walk(value, leaf) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        found = [walk(value, leaf) for value in tree]
        return found if isinstance(tree, list) else tuple(found)
    return leaf(tree)


def split(tree: Any) -> tuple[Any, dict[int, dict[str, Any]]]:
    """Return a checkpoint with marks for its spread tensors, and this process's pieces of them by number.

    All tensors are copied to the CPU, so the training may go on while they are written.
    """
    from torch.distributed.tensor import DTensor

    pieces: dict[int, dict[str, Any]] = {}
    count = 0

    def leaf(value: Any) -> Any:
        nonlocal count
        if not isinstance(value, Tensor):
            return value
        if not isinstance(value, DTensor):
            return value.detach().to("cpu", copy=True)
        count += 1
        dim, start, mine = _cut(value)
        if mine:
            held = local(value).detach().to("cpu", copy=True)
            pieces[count - 1] = {"dim": dim, "start": start, "value": held}
        return {_MARK: count - 1, "shape": list(value.shape)}

    return walk(tree, leaf), pieces


def _cut(value: Any) -> tuple[int, int, bool]:
    """Return along which dimension a spread tensor is cut, where this process's piece begins, and whether it counts."""
    from torch.distributed.tensor import Replicate, Shard

    dim, start, mine = 0, 0, True
    cuts = [p for p in value.placements if isinstance(p, Shard)]
    if len(cuts) > 1 or not all(isinstance(p, Shard | Replicate) for p in value.placements):
        raise CheckpointError(f"a tensor spread as {value.placements} cannot be saved; cut it along one dimension")
    for axis, placement in enumerate(value.placements):
        place = value.device_mesh.get_local_rank(axis)
        if isinstance(placement, Shard):
            dim, size = placement.dim, value.shape[placement.dim]
            start = min(place * -(-size // value.device_mesh.size(axis)), size)
        else:
            mine = mine and place == 0  # the others hold the same
    return dim, start, mine


def write_part(folder: Path, rank: int, world: int, pieces: Mapping[int, Any]) -> None:
    """Write the pieces of one process into a folder that is not a checkpoint yet."""
    files.write({"pieces": dict(pieces)}, folder / _part(rank, world))


def _part(rank: int, world: int) -> str:
    return f"part-{rank:05d}-of-{world:05d}.pt"


def finish(folder: Path, tree: Any, world: int, path: Path, patience: float = PATIENCE) -> None:
    """Wait for the parts of all processes, write the tree, and give the folder the name `path` in one step.

    Raises:
        CheckpointError: When a part does not come; whatever was at `path` is untouched.
    """
    end = time.monotonic() + patience
    while missing := [name for rank in range(world) if not (folder / (name := _part(rank, world))).is_file()]:
        if time.monotonic() > end:
            raise CheckpointError(f"{path}: {missing[0]} was not written within {patience:.0f} s; is the disk common?")
        time.sleep(0.005)
    files.write({"tree": tree, "world": world}, folder / _TREE)
    if path.exists():
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        path.rename(old)
        folder.rename(path)
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    else:
        folder.rename(path)


@dataclass(frozen=True)
class Pieces:
    """A tensor that is still in the files of several processes.

    Arguments:
        shape: Of the whole.
        dim: Along which it is cut.
        parts: Where each piece begins, and the piece.
    """

    shape: tuple[int, ...]
    dim: int
    parts: tuple[tuple[int, Tensor], ...]

    def whole(self) -> Tensor:
        """Return the tensor; raises `CheckpointError` when its pieces do not fill it."""
        parts = [piece for _, piece in sorted(self.parts, key=lambda part: part[0]) if piece.numel()]
        found = torch.cat(parts, self.dim) if parts else torch.empty(self.shape)
        if tuple(found.shape) != self.shape:
            raise CheckpointError(f"a tensor of shape {self.shape} has pieces for {tuple(found.shape)} alone")
        return found


def read(folder: Path, lazy: bool = False) -> dict[str, Any]:
    """Return the content of a sharded checkpoint as that of an ordinary one.

    Arguments:
        folder: The checkpoint.
        lazy: Leave spread tensors as `Pieces`, for `assign`, instead of putting all of them together.

    Raises:
        CheckpointError: When files are missing or damaged.
    """
    try:
        about = torch.load(folder / _TREE, map_location="cpu", weights_only=True, mmap=True)
        world = int(about["world"])
        held = [
            torch.load(folder / _part(rank, world), map_location="cpu", weights_only=True, mmap=True)["pieces"]
            for rank in range(world)
        ]
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch raises whatever the damage leads to
        raise CheckpointError(f"{folder}: not a readable checkpoint ({type(error).__name__})") from error
    found = _joined(about["tree"], held, lazy)
    assert isinstance(found, dict)
    return found


def _joined(tree: Any, held: list[dict[int, Any]], lazy: bool) -> Any:
    if isinstance(tree, Mapping) and _MARK in tree:
        mine = [part[tree[_MARK]] for part in held if tree[_MARK] in part]
        dim = mine[0]["dim"] if mine else 0
        pieces = Pieces(tuple(tree["shape"]), dim, tuple((int(p["start"]), p["value"]) for p in mine))
        return pieces if lazy else pieces.whole()
    if isinstance(tree, Mapping):
        return {key: _joined(value, held, lazy) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_joined(value, held, lazy) for value in tree)
    return tree


@torch.no_grad()
def assign(target: Tensor, value: Tensor | Pieces) -> None:
    """Copy a whole tensor into one that may be spread, of which every process takes its piece."""
    whole = value.whole() if isinstance(value, Pieces) else value
    if whole.shape != target.shape:
        raise CheckpointError(f"a tensor of shape {tuple(whole.shape)} does not fit {tuple(target.shape)}")
    local(target).copy_(local(spread(whole, target)))


def spread(value: Tensor | Pieces, like: Tensor) -> Tensor:
    """Return a whole tensor spread like another one; nothing is sent, since every process has read it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = value.whole() if isinstance(value, Pieces) else value
    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def consolidate(path: Path, out: Path | None = None) -> Path:
    """Write a sharded checkpoint as one file, and return where; by default ``consolidated.ckpt`` beside it.

    Raises:
        CheckpointError: When it is a single file already, or damaged.
    """
    if not is_sharded(path):
        raise CheckpointError(f"{path}: one file already; only runs with trainer=fsdp write several")
    out = out or path.with_name("consolidated.ckpt")
    files.write(read(path), out)
    return out
