"""Auto: whichever figures the data allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suffuse.data import Data
from suffuse.text import captions_of
from torch import Tensor

from suffuse_audio.grammar import by_caption
from suffuse_audio.metrics.attributes import Attributes
from suffuse_audio.metrics.features import Features
from suffuse_audio.ragged import each

__all__ = ["Auto"]


class Auto:
    """`Attributes` for the embedded set's captions, `Features` for data with classes; nothing for other data.

    Arguments:
        train_steps: Batches of the classifier.
        seed: Seed of the classifier.
    """

    def __init__(self, train_steps: int = 600, seed: int = 0) -> None:
        self.attributes, self.features = Attributes(seed), Features(train_steps, seed)

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of samples (K, C, N) drawn for the conditions `cond`."""
        figures: dict[str, float] = {}
        if "text" in cond and any(caption in by_caption() for caption in captions_of(cond["text"])):
            figures |= self.attributes(samples, cond, data)
        if len(data.spec.labels) > 1 and len(each(samples)) > 1:
            figures |= self.features(samples, cond, data)
        return figures
