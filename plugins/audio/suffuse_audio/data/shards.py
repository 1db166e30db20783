"""Shards: WebDataset tar files of sounds; see `suffuse.shards` for their order and how a run goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from suffuse import shards
from torch import Tensor

from suffuse_audio.data.clips import Clips
from suffuse_audio.data.decode import Decoder, chance
from suffuse_audio.data.folder import facts
from suffuse_audio.files import SoundError, suffixes

__all__ = ["Shards"]


class Shards(shards.Shards):
    """WebDataset shards of ``.wav``, ``.flac``, ``.ogg`` or ``.mp3``, shape (channels, samples).

    Arguments:
        path: See `suffuse.shards.Shards`, as for `val_path`, `labels`, `text`, `buffer`, `val_num` and `max_bad`.
        rate: See `Folder`, as for `seconds`, `channels`, `normalise` and `lufs`.
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
        normalise: str = "peak", lufs: float = -18.0, max_bad: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(path, val_path, labels, text, buffer, val_num, max_bad, **options)
        self.decoder = Decoder(rate, seconds, channels, normalise, lufs=lufs)

    def suffixes(self) -> Collection[str]:
        """Return the endings of sounds."""
        return suffixes()

    def decode(self, raw: bytes, epoch: int, number: int) -> Tensor:
        """Return a stretch of a sound."""
        return self.decoder.stretch(raw, chance(self.seed, epoch, number))

    def kept(self, items: list[dict[str, Any]], captions: list[str]) -> Clips:
        """Return sounds in memory."""
        samples = torch.stack([(item["x"] * 32767).round().to(torch.int16) for item in items])
        labels = torch.tensor([item["cond"]["label"] for item in items]) if self.labels else None
        return Clips(samples, labels, captions)

    def facts(self, captions: list[str]) -> Mapping[str, Any]:
        """Return rate, channels, samples and captions."""
        return facts(self.decoder, captions)
