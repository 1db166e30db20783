"""Metrics: figures of a finished run, measured on samples against the run's own data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from suffuse.data import Data

__all__ = ["Fidelity", "Metrics"]


@runtime_checkable
class Metrics(Protocol):
    """What the core asks of a modality's metrics."""

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> Mapping[str, float]:
        """Return named figures of the decoded `samples`, drawn for the conditions `cond`."""
        ...


class Fidelity:
    """Errors of reconstructions of the held-out items, which are compared as the data set yields them.

    ``psnr`` is 10 log10(range^2 / mean square error) in decibels with the range of the items looked at, a mean over
    items; ``mse`` and ``mae`` are means over entries.
    """

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> Mapping[str, float]:
        """Return the figures of reconstructions of held-out items, evenly spaced."""
        import torch

        items = [item["x"] for item in data.sample(len(samples), held_out=True)]
        x = torch.stack(items).to(samples.device, torch.float64)
        error = (samples.double() - x).flatten(1)
        spread = float(x.max() - x.min())
        psnr = 10 * (spread**2 / error.square().mean(1).clamp(min=1e-20)).log10()
        return {"psnr": float(psnr.mean()), "mse": float(error.square().mean()), "mae": float(error.abs().mean())}
