"""Preview: how a modality shows its samples, as files, as one picture, and as W&B media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = ["Preview"]


@runtime_checkable
class Preview(Protocol):
    """What the core asks of a preview; `xs` is a decoded batch, one sample per row."""

    def save(self, x: Any, stem: Path) -> Path:
        """Write one sample to `stem` plus the modality's own suffix and return that path."""
        ...

    def overview(self, xs: Any, captions: Sequence[str], path: Path) -> Path:
        """Write one PNG that shows all samples with their captions and return its path."""
        ...

    def media(self, xs: Any, captions: Sequence[str]) -> list[Any] | Mapping[str, list[Any]]:
        """Return the samples as W&B media objects of one type, or lists of them by name."""
        ...
