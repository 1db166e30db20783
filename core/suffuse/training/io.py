"""Checkpoint files through Lightning: written atomically, read without running a stranger's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from suffuse import checkpoint as files
from suffuse.sharded import walk
from suffuse.training.background import Background

__all__ = ["AtomicIO"]


class AtomicIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin over `suffuse.checkpoint`.

    Arguments:
        background: Where files are written.
    """

    def __init__(self, background: Background | None = None) -> None:
        super().__init__()
        self.background = background or Background()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path` in one step."""
        self.background.begin()
        if self.background.threaded:
            checkpoint = walk(checkpoint, _copy)
        self.background.submit(lambda: files.write(checkpoint, Path(path)))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read `path` with ``weights_only=True``."""
        return files.read(Path(path))


def _copy(value: Any) -> Any:
    """Return a copy of a tensor that the training does not change any more."""
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
