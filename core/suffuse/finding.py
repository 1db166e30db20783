"""Finding: which file is meant by what stands behind ``ckpt=``."""

from __future__ import annotations

from pathlib import Path

from suffuse.errors import CheckpointError, suggest

__all__ = ["find_checkpoint"]


def find_checkpoint(where: str) -> Path:
    """Return the checkpoint file of a run directory, or the file itself.

    Raises:
        CheckpointError: When there is none; names the nearest existing run.
    """
    path = Path(where).expanduser()
    if _is_checkpoint(path):
        return path
    for candidate in (path / "checkpoints" / "last.ckpt", path / "last.ckpt"):
        if _is_checkpoint(candidate):
            return candidate
    if path.is_dir():
        raise CheckpointError(f"ckpt={where}: no checkpoint there (looked for checkpoints/last.ckpt)")
    runs = [str(last.parents[1]) for last in Path("outputs").glob("*/*/checkpoints/last.ckpt")]
    raise CheckpointError(f"ckpt={where}: no such run directory or file{suggest(where, runs, listing='runs here')}")


def _is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint: a file, or the folder of a sharded one."""
    return path.is_file() or (path / "tree.pt").is_file()
