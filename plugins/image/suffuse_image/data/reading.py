"""Reading: from sources (paths, or the bytes of files) to `Pictures`, when some of the sources may be damaged.

With `cache` every source is decoded once, in threads, and kept as uint8; without, each is decoded whenever it is
asked for. A source that cannot be decoded is named in the log and left out, or, once training runs, stands aside for
the next readable one; more than a fraction `max_bad` of them is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from suffuse.captions import Captions
from suffuse.damage import Tolerant, in_threads
from suffuse.errors import ConfigError, DataError

from suffuse_image.data.decode import Decoder, PictureError, check
from suffuse_image.data.pictures import Pictures
from suffuse_image.hints import Hint

__all__ = ["Reader", "Sources", "Streamed"]


class Sources(Protocol):
    """Paths or bytes by position."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int, /) -> Path | bytes:
        """Return one."""
        ...


@dataclass(frozen=True)
class Reader(Tolerant):
    """Turns sources into a data set.

    Arguments:
        decoder: Decodes one.
        cache: Keep decoded pictures in memory, up to 4 GiB.
        max_bad: Fraction of the sources that may be damaged.
        key: The config key that names the sources, for messages.

    Raises:
        ConfigError: When `max_bad` is not in [0, 1).
    """

    what: ClassVar[str] = "images"
    fails: ClassVar[str] = "cannot be read"
    fault: ClassVar[type[Exception]] = PictureError
    decoder: Decoder
    cache: bool = True
    max_bad: float = 0.01
    key: str = "data.path"

    def read(
        self, sources: Sources, names: Sequence[str], labels: Sequence[int] | None = None,
        texts: Captions | None = None, flip: bool = False, seed: int = 0, hint: Hint | None = None,
        hints: Sources | None = None,
    ) -> Pictures:  # fmt: skip
        """Return the data set of the sources that can be read.

        Arguments:
            sources: What is decoded.
            names: How each is called in messages.
            labels: Class of each, -1 where none is known; None without classes.
            texts: Captions of each, or None.
            flip: See `Pictures`, as for `seed` and `hint`.
            hints: What a hint is made from, where it is not the picture itself; as many as sources.

        Raises:
            DataError: When more than `max_bad` of them are damaged.
        """
        keep = self.keeps(len(sources) * math.prod(self.decoder.shape))
        look: Callable[[Path | bytes], object] = self.decoder if keep else check
        found = in_threads(lambda i: self.tried(look, sources[i]), range(len(sources)))
        bad = {i: result for i, result in enumerate(found) if isinstance(result, PictureError)}
        self.judge(bad, names.__getitem__, len(sources))
        good = [i for i in range(len(sources)) if i not in bad]
        y = None if labels is None else torch.tensor([labels[i] for i in good], dtype=torch.long)
        told = texts.part(good) if texts is not None else None
        if keep:
            whole = torch.stack([p for p in (found[i] for i in good) if isinstance(p, torch.Tensor)])
            given = None if hints is None else torch.stack([self._hint(hints[i], names[i]) for i in good])
            return Pictures(whole, y, told, flip=flip, seed=seed, hint=hint, hints=given)
        if hints is not None:
            raise ConfigError("data.hint: pictures of their own as hints need data.cache=true")
        names = [names[i] for i in good]
        return Streamed(self, sources, good, names, y, told, flip=flip, seed=seed, hint=hint)

    def _hint(self, source: Path | bytes, name: str) -> torch.Tensor:
        try:
            return self.decoder(source)
        except PictureError as error:
            raise DataError(f"{self.key}: the hint of {name} cannot be read: {error}") from error


class Streamed(Pictures):
    """Pictures that are decoded whenever they are asked for.

    A damaged one is answered with the next readable one, the same in every process.

    Arguments:
        reader: Decodes, and knows how many damaged ones there may be.
        sources: What is decoded.
        good: Positions in `sources` whose headers are sound; item i is source ``good[i]``.
        names: How each item is called in messages.
        labels: See `Pictures`.
        texts: See `Pictures`, as for `flip`, `seed` and `hint`.

    Raises:
        DataError: On access, when more than `max_bad` of the pictures have turned out damaged.
    """

    def __init__(
        self, reader: Reader, sources: Sources, good: Sequence[int], names: Sequence[str],
        labels: torch.Tensor | None = None, texts: Captions | None = None, *, flip: bool = False, seed: int = 0,
        hint: Hint | None = None,
    ) -> None:  # fmt: skip
        self.batch = None  # type: ignore[assignment]  # one picture at a time, on its own process
        empty = torch.empty(0, *reader.decoder.shape)
        super().__init__(empty, labels, texts, flip=flip, seed=seed, hint=hint)
        self.reader, self.sources, self.good, self.names = reader, sources, list(good), list(names)
        self.bad: dict[int, Exception] = {}

    def __len__(self) -> int:
        return len(self.good)

    def _fetch(self, index: int) -> tuple[torch.Tensor, int]:
        return self.reader.stand_in(
            lambda i: self.reader.decoder(self.sources[self.good[i]]), index, len(self), self.bad,
            self.names.__getitem__,
        )  # fmt: skip
