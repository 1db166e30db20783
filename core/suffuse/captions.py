"""Captions: the texts of the items of a data set, one or several each, and which of them a training step sees.

Item i in epoch e has the caption number h(seed, e, i) of its own, h a hash: a function of its arguments, not of the
process that computes it. With a probability `share` it is one of the rewritten ones, where the item has some: long,
accurate captions teach a model more, and a few of the original ones keep it able to read what people write ("Improving
Image Generation with Better Captions", Betker et al. 2023, section 3.3: 0.95). With a probability `dropout` there is
none. Outside of training an item has its first original caption.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.text import encoded

__all__ = ["Captions"]

OPTIONS = {"choice": "random", "share": 0.95, "dropout": 0.0}


class Captions:
    """Texts and how one is chosen.

    Arguments:
        texts: Captions of each item; an item may have none.
        rewritten: Further captions of each, written by a model; empty where there are none.
        choice: ``random``: one of several in each epoch; ``first``: always the first.
        share: Share of the steps that take a rewritten caption where there is one.
        dropout: Share of the steps without a caption, whatever happens to other conditions.
        seed: Seed of the choices.

    Raises:
        ConfigError: For an unknown choice, shares outside of [0, 1], or as many items of one kind as not of the other.
    """

    def __init__(
        self, texts: Sequence[Sequence[str]], rewritten: Sequence[Sequence[str]] = (), choice: str = "random",
        share: float = 0.95, dropout: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        if choice not in ("random", "first"):
            raise ConfigError(f"data.captions.choice={choice} is neither 'random' nor 'first'")
        for name, value in (("share", share), ("dropout", dropout)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigError(f"data.captions.{name}={value} must be in [0, 1]")
        if rewritten and len(rewritten) != len(texts):
            raise ConfigError(f"data: {len(rewritten)} items have rewritten captions, {len(texts)} have captions")
        self.texts = [tuple(own) for own in texts]
        self.rewritten = [tuple(own) for own in rewritten] or [()] * len(self.texts)
        self.choice, self.share, self.dropout, self.seed = choice, float(share), float(dropout), seed
        self._bytes: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def varied(self) -> bool:
        """Whether an item's caption differs from epoch to epoch."""
        several = any(len(own) + len(more) > 1 for own, more in zip(self.texts, self.rewritten, strict=True))
        return self.dropout > 0 or (self.choice == "random" and several)

    def chosen(self, index: int, epoch: int | None = None) -> str:
        """Return the caption of an item in an epoch of training; its first for None."""
        own, more = self.texts[index], self.rewritten[index]
        if epoch is None:
            return (own or more or ("",))[0]
        words = blake2b(struct.pack("<3Q", self.seed % 2**64, epoch % 2**64, index), digest_size=24).digest()
        drop, which, number = (value / 2**64 for value in struct.unpack("<3Q", words))
        if drop < self.dropout:
            return ""
        group = more if more and (not own or which < self.share) else own
        if not group:
            return ""
        return group[int(number * len(group)) if self.choice == "random" else 0]

    def encoded(self, index: int, epoch: int | None = None) -> Tensor:
        """Return the bytes of `chosen`, see `suffuse.text.encoded`."""
        text = self.chosen(index, epoch)
        if text not in self._bytes:
            if len(self._bytes) > 20_000:
                self._bytes.clear()
            self._bytes[text] = encoded(text)
        return self._bytes[text]

    def batch(self, keys: Sequence[Any]) -> Tensor:
        """Return the bytes of several items, uint8 (B, `LENGTH`); a key is an index or a pair (epoch, index)."""
        return torch.stack([self.encoded(*((k, None) if isinstance(k, int) else (k[1], k[0]))) for k in keys])

    def part(self, rows: Sequence[int]) -> Captions:
        """Return those of some items."""
        more = [self.rewritten[i] for i in rows] if any(self.rewritten) else ()
        return Captions([self.texts[i] for i in rows], more, self.choice, self.share, self.dropout, self.seed)
