"""Metrics: figures of a finished run, measured on samples against the run's own data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from suffuse.data import Data
from suffuse.state import leaves
from suffuse.text import captions_of

__all__ = ["Fidelity", "Metrics", "Suited"]


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


class Suited:
    """Whichever figures the data allows: those of captions that are known, those of classes; nothing for other data.

    Arguments:
        attributes: Measures samples that were drawn for known captions.
        features: Measures samples of data with classes, from two on.
        captions: Returns the known captions.
    """

    def __init__(self, attributes: Metrics, features: Metrics, captions: Callable[[], Collection[str]]) -> None:
        self.attributes, self.features, self.captions = attributes, features, captions

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of samples drawn for the conditions `cond`."""
        figures: dict[str, float] = {}
        if "text" in cond and any(caption in self.captions() for caption in captions_of(cond["text"])):
            figures |= self.attributes(samples, cond, data)
        if len(data.spec.labels) > 1 and len(next(leaves(samples))) > 1:
            figures |= self.features(samples, cond, data)
        return figures
