"""Checkpoint: a file that holds everything needed to continue a run or to sample from it.

It is Lightning's file with the averaged weights in ``state_dict`` and the raw ones in ``current_model_state``, plus
the record ``suffuse``: the resolved config, the facts read off the data, the plugin that provided the modality, and the
last figures. Everything in it is plain, so it is read with ``weights_only=True``: a stranger's file runs no code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from suffuse.disk import is_full, named
from suffuse.errors import CheckpointError

__all__ = ["check_drawable", "check_installed", "in_order", "is_autoencoder", "link", "newest", "read", "write"]


def write(checkpoint: dict[str, Any], path: Path, then: str = "continue with ckpt=auto") -> None:
    """Write under a temporary name, flush to the disk, then rename: `path` is never a torn file.

    Arguments:
        checkpoint: What is written.
        path: The file.
        then: What to do once there is space again, for the message.

    Raises:
        CheckpointError: When the disk is full; whatever was at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        if not is_full(error, path.parent):
            raise
        raise CheckpointError(
            f"no space left on the disk of {path.parent} while writing {path.name}; what is there already is whole: "
            f"free some space and {then}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def link(target: Path, name: Path) -> None:
    """Make `name` another name of the file `target`, replacing what it named before in one step."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        if target.is_dir():  # a sharded checkpoint
            temporary.symlink_to(target.name, target_is_directory=True)
        else:
            os.link(target, temporary)
    except OSError:  # a file system without hard links
        try:
            with named(name):
                shutil.copyfile(target, temporary)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    temporary.replace(name)


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU.

    Raises:
        CheckpointError: When the file is not a checkpoint of suffuse, or is damaged.
    """
    if path.is_dir():
        from suffuse import sharded

        saved = sharded.read(path)
        return _checked(saved, path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch raises whatever the damage leads to
        others = [p for p in in_order(path.parent) if p != path]
        hint = f"; try {others[-1].name} beside it" if others else ""
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__}){hint}") from error
    return _checked(saved, path)


def _checked(saved: Any, path: Path) -> dict[str, Any]:
    if not isinstance(saved, dict) or "suffuse" not in saved or "state_dict" not in saved:
        raise CheckpointError(f"{path}: not a checkpoint written by suffuse")
    return saved


def in_order(folder: Path) -> list[Path]:
    """Return the checkpoints of single steps, oldest first: by their step, whatever a clock said of them."""
    found = [path for path in folder.glob("step-*.ckpt") if path.stem[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.stem[5:]))


def newest(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the newest whole checkpoint of a run, or None without any, and the damaged ones before it.

    A file that was cut short has lost its directory, which stands at its end, so the weights need not be read.

    Raises:
        CheckpointError: When there are checkpoints, and all of them are damaged.
    """
    damaged = []
    for path in [folder / "last.ckpt", *reversed(in_order(folder))]:
        if not path.exists():
            continue
        try:
            if path.is_dir():
                from suffuse import sharded

                sharded.read(path, lazy=True)
            else:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # torch raises whatever the damage leads to
            damaged.append(path)
            continue
        return path, damaged
    if damaged:
        raise CheckpointError(f"{folder}: no checkpoint there can be read; remove them to start anew")
    return None, []


def is_autoencoder(saved: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is of ``task=autoencoder``."""
    task = saved["suffuse"]["config"].get("task") or {}
    return str(task.get("_target_", "")).endswith(".Autoencoding")


def check_installed(saved: dict[str, Any], path: Path) -> None:
    """Raise `CheckpointError` when the plugin that a checkpoint needs is not installed."""
    from suffuse.plugins import registry

    record = saved["suffuse"]["plugin"]
    if record["modality"] not in registry().providers:
        raise CheckpointError(
            f"{path}: its modality {record['modality']!r} was trained with {record['dist']}, which is not installed; "
            f"pip install {record['dist'].split()[0]}"
        )


def check_drawable(saved: dict[str, Any], path: Path) -> None:
    """Raise `CheckpointError` when the plugin that a checkpoint needs is not installed, or when it draws nothing."""
    check_installed(saved, path)
    if is_autoencoder(saved):
        raise CheckpointError(f"{path}: an autoencoder, which draws nothing; train with codec=latent codec.ckpt={path}")
