"""Auto: whichever figures the data allows."""

from __future__ import annotations

from suffuse.metrics import Suited

from suffuse_audio.grammar import by_caption
from suffuse_audio.metrics.attributes import Attributes
from suffuse_audio.metrics.features import Features

__all__ = ["Auto"]


class Auto(Suited):
    """`Attributes` for the embedded set's captions, `Features` for data with classes; nothing for other data.

    Arguments:
        train_steps: Batches of the classifier.
        seed: Seed of the classifier.
    """

    def __init__(self, train_steps: int = 600, seed: int = 0) -> None:
        super().__init__(Attributes(seed), Features(train_steps, seed), by_caption)
