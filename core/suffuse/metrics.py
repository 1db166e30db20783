"""Metrics: figures of a finished run, measured on samples against the run's own data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from suffuse.data import Data

__all__ = ["Metrics"]


@runtime_checkable
class Metrics(Protocol):
    """What the core asks of a modality's metrics."""

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> Mapping[str, float]:
        """Return named figures of the decoded `samples`, drawn for the conditions `cond`."""
        ...
