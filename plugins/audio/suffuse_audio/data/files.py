"""Files: a data set of sound files, kept in memory when they are short and few, else read by stretches.

With `cache` every file is decoded once, in threads, and kept as 16-bit numbers; a clip is then a stretch of it.
Without, or above 2 GiB, the stretch is read by seeking whenever it is asked for. Which stretch of a long file an epoch
takes is a function of (seed, epoch, index). A file that cannot be used is named in the log and left out, or, once
training runs, stands aside for the next; more than the fraction `max_bad` of them is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from suffuse.damage import Tolerant, in_threads
from suffuse.listing import Source
from suffuse.text import encoded
from torch import Tensor
from torch.utils.data import Dataset

from suffuse_audio.data.augment import Augment
from suffuse_audio.data.decode import Decoder, chance
from suffuse_audio.files import Info, SoundError
from suffuse_audio.ragged import item

__all__ = ["FileSet", "Reader"]


@dataclass(frozen=True)
class Reader(Tolerant):
    """Turns sounds into a data set.

    Arguments:
        decoder: Decodes one.
        cache: Keep decoded sounds in memory, up to 2 GiB.
        max_bad: Fraction of the sounds that may be damaged.
        timing: Give each item ``seconds_start`` and ``seconds_total``.
        key: The config key that names the sounds, for messages.
        augment: What training sounds are varied by.
        mask: Sounds keep their own lengths, up to the decoder's, see `suffuse_audio.ragged`; else silence follows.

    Raises:
        ConfigError: When `max_bad` is not in [0, 1).
    """

    what: ClassVar[str] = "sounds"
    fault: ClassVar[type[Exception]] = SoundError
    memory: ClassVar[int] = 2 * 2**30
    decoder: Decoder
    cache: bool = True
    max_bad: float = 0.01
    timing: bool = False
    key: str = "data.path"
    augment: Augment | None = None
    mask: bool = False

    def read(
        self, sounds: Sequence[Source], seed: int, labels: bool, texts: bool, crop: bool, vary: bool = False
    ) -> FileSet:
        """Return the data set of the sounds that can be read.

        Arguments:
            sounds: What is decoded.
            seed: Seed of the stretches.
            labels: Whether items have a class.
            texts: Whether items have a caption.
            crop: Take another stretch of a long sound in each epoch; else the first.
            vary: Augment.

        Raises:
            DataError: When more than `max_bad` of them are damaged.
        """
        decoder = self.decoder
        heads = in_threads(lambda sound: self.tried(decoder.head, sound.source), sounds)
        keep = self.keeps(sum(2 * decoder.channels * h.seconds * decoder.rate for h in heads if isinstance(h, Info)))

        def whole(sound: Source) -> Tensor:
            return (decoder.whole(sound.source) * 32767).round().to(torch.int16)

        kept = in_threads(lambda sound: self.tried(whole, sound), sounds if keep else [])
        bad = {i: found for part in (heads, kept) for i, found in enumerate(part) if isinstance(found, SoundError)}
        self.judge(bad, lambda i: sounds[i].name, len(sounds))
        good = [i for i in range(len(sounds)) if i not in bad]
        return FileSet(
            self, [sounds[i] for i in good], [h.seconds for h in (heads[i] for i in good) if isinstance(h, Info)],
            [x for i, x in enumerate(kept) if i not in bad and isinstance(x, Tensor)], seed, labels, texts, crop, vary,
        )  # fmt: skip


class FileSet(Dataset[dict[str, Any]]):
    """Sounds of files.

    Item i is ``{"x": float32 (C, N), "cond": {...}, "index": i}`` with ``label``, ``text``, ``seconds_start`` and
    ``seconds_total`` as the reader says.

    Arguments:
        reader: Decodes, and knows how many damaged ones there may be.
        sounds: The sounds.
        seconds: Length of each.
        kept: The decoded sounds, int16 (C, n), or nothing to read them when asked.
        seed: Seed of the stretches.
        labels: See `Reader.read`.
        texts: See `Reader.read`.
        crop: See `Reader.read`.
        vary: See `Reader.read`.

    Raises:
        DataError: On access, when more than `max_bad` of the sounds have turned out damaged.
    """

    def __init__(
        self, reader: Reader, sounds: Sequence[Source], seconds: Sequence[float], kept: Sequence[Tensor], seed: int,
        labels: bool, texts: bool, crop: bool, vary: bool = False,
    ) -> None:  # fmt: skip
        self.reader, self.sounds, self.seconds, self.kept = reader, list(sounds), list(seconds), list(kept)
        self.seed, self.labels, self.texts, self.crop = seed, labels, texts, crop
        self.augment = reader.augment if vary else None
        self.epochs = crop or self.augment is not None
        self.bad: dict[int, Exception] = {}

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = (None, key) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        place = 0.0 if epoch is None or not self.crop else chance(self.seed, epoch, index)
        x, index = self._fetch(index, place)
        if self.augment is not None and epoch is not None:
            x = self.augment(x, self.reader.decoder.rate, self.seed, epoch, index)
        whole = item(x, self.reader.decoder.samples) if self.reader.mask else x
        sound = self.sounds[index]
        cond: dict[str, Any] = {"label": sound.label} if self.labels else {}
        if self.texts:
            cond["text"] = encoded(sound.text)
        if self.reader.timing:
            length = self.reader.decoder.samples / self.reader.decoder.rate
            cond["seconds_start"] = place * max(0.0, self.seconds[index] - length)
            cond["seconds_total"] = self.seconds[index]
        return {"x": whole, "cond": cond, "index": index}

    def lengths(self) -> list[int]:
        """Return how many samples the items have; nothing where all have the same."""
        if not self.reader.mask:
            return []
        decoder = self.reader.decoder
        own = [x.shape[1] for x in self.kept] or [max(1, round(s * decoder.rate)) for s in self.seconds]
        return [min(n, decoder.samples) for n in own]

    def _fetch(self, index: int, place: float) -> tuple[Tensor, int]:
        """Return the clip of an item, and the index of the item it belongs to."""
        decoder, mask = self.reader.decoder, self.reader.mask
        if self.kept:
            whole = self.kept[index].float() / 32767
            return decoder.cropped(whole, place) if mask else decoder.fitted(whole, place), index
        read = decoder.part if mask else decoder.stretch
        return self.reader.stand_in(
            lambda i: read(self.sounds[i].source, place), index, len(self), self.bad, lambda i: self.sounds[i].name
        )  # fmt: skip
