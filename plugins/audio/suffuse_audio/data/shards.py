"""Shards: WebDataset tar files of sounds; see `suffuse.shards` for their order and how a run goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from suffuse import shards

from suffuse_audio.data.clips import Clips
from suffuse_audio.data.decode import Decoder, chance
from suffuse_audio.data.folder import facts
from suffuse_audio.files import SoundError, suffixes
from suffuse_audio.ragged import item

__all__ = ["Shards"]


class Shards(shards.Shards):
    """WebDataset shards of ``.wav``, ``.flac``, ``.ogg`` or ``.mp3``, shape (channels, samples).

    Arguments:
        path: See `suffuse.shards.Shards`, as for `val_path`, `labels`, `text`, `buffer`, `val_num` and `max_bad`.
        rate: See `Folder`, as for `seconds`, `channels`, `normalise`, `lufs` and `mask`. Lengths that are drawn when
            none is asked for are those of the held-out sounds.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning, or webdataset is not installed.
        DataError: In `setup`, when a shard cannot be read or holds no sound.
    """

    what: ClassVar[str] = "sounds"
    need: ClassVar[str] = "data=audio/webdataset"
    extra: ClassVar[str] = "suffuse-audio[webdataset]"
    damaged: ClassVar[type[Exception]] = SoundError

    def __init__(
        self, path: str | None = None, val_path: str | None = None, labels: Sequence[str] = (), text: bool = True,
        buffer: int = 1000, val_num: int = 500, rate: int = 16_000, seconds: float = 2.048, channels: int = 1,
        normalise: str = "peak", lufs: float = -18.0, mask: bool = False, max_bad: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(path, val_path, labels, text, buffer, val_num, max_bad, **options)
        self.decoder, self.mask = Decoder(rate, seconds, channels, normalise, lufs=lufs), mask
        self._lengths: list[int] = []

    def suffixes(self) -> Collection[str]:
        """Return the endings of sounds."""
        return suffixes()

    def decode(self, raw: bytes, epoch: int, number: int) -> Any:
        """Return a stretch of a sound, with its mask where lengths differ."""
        place = chance(self.seed, epoch, number)
        if not self.mask:
            return self.decoder.stretch(raw, place)
        return item(self.decoder.part(raw, place), self.decoder.samples)

    def kept(self, items: list[dict[str, Any]], captions: list[str]) -> Clips:
        """Return sounds in memory."""
        sounds = [found["x"]["x"] if self.mask else found["x"] for found in items]
        samples = torch.stack([(x * 32767).round().to(torch.int16) for x in sounds])
        labels = torch.tensor([found["cond"]["label"] for found in items]) if self.labels else None
        lengths = torch.stack([found["x"]["mask"].sum() for found in items]) if self.mask else None
        self._lengths = [] if lengths is None else lengths.tolist()
        return Clips(samples, labels, captions, lengths=lengths)

    def facts(self, captions: list[str]) -> Mapping[str, Any]:
        """Return rate, channels, samples and captions."""
        return facts(self.decoder, captions, self._lengths)
