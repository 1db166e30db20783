"""Checkpoint files through Lightning: written atomically, read without running a stranger's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from suffuse import checkpoint as files

__all__ = ["AtomicIO"]


class AtomicIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin over `suffuse.checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path` in one step."""
        files.write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read `path` with ``weights_only=True``."""
        return files.read(Path(path))
