"""Shards: WebDataset tar files of clips; see `suffuse.shards` for their order and how a run goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from suffuse import shards
from suffuse.noise import mix
from torch import Tensor

from suffuse_video.data.clips import Clips
from suffuse_video.data.decode import MIDDLE, Decoder, Shape, sides, whole
from suffuse_video.data.folder import facts
from suffuse_video.files import ClipError, suffixes

__all__ = ["Shards"]


class Shards(shards.Shards):
    """WebDataset shards of ``.mp4``, ``.webm``, ``.gif`` and others, shape (3, frames, height, width).

    Arguments:
        path: See `suffuse.shards.Shards`, as for `val_path`, `labels`, `text`, `buffer`, `val_num` and `max_bad`.
        frames: See `Folder`, as for `size`, `fit`, `short` and `background`.
        fps: Frames per second that everything is brought to.
        crop: Take a random stretch of a long file; held-out ones give their middle.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning, or webdataset is not installed.
        DataError: In `setup`, when a shard cannot be read or holds no clip.
    """

    what: ClassVar[str] = "clips"
    need: ClassVar[str] = "data=video/webdataset"
    extra: ClassVar[str] = "suffuse-video[webdataset]"
    damaged: ClassVar[type[Exception]] = ClipError

    def __init__(
        self, path: str | None = None, val_path: str | None = None, labels: Sequence[str] = (), text: bool = True,
        buffer: int = 200, val_num: int = 200, frames: int = 16, size: int | Sequence[int] = 64, fps: float = 8.0,
        fit: str = "crop", short: str = "hold", background: str = "black", crop: bool = True, max_bad: float = 0.01,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(path, val_path, labels, text, buffer, val_num, max_bad, **options)
        self.decoder, self.crop = Decoder(float(fps), fit, short, background), crop
        self.shape = Shape(whole(frames, "data.frames"), *sides(size))

    def suffixes(self) -> Collection[str]:
        """Return the endings of clips."""
        return suffixes()

    def decode(self, raw: bytes, epoch: int, number: int) -> Tensor:
        """Return a stretch of a clip.

        Raises:
            ClipError: When it cannot be read, is one picture, or is too short.
        """
        head = self.decoder.probe(raw)
        if head.still and self.shape.frames > 1:
            raise ClipError("it is one picture")
        place = mix(self.seed, epoch, number, 31) / 2**62 if self.crop and epoch >= 0 else MIDDLE
        return self.decoder.clip(raw, head, self.shape, place).float() / 255

    def kept(self, items: list[dict[str, Any]], captions: list[str]) -> Clips:
        """Return clips in memory."""
        pixels = torch.stack([(item["x"] * 255).round().to(torch.uint8) for item in items])
        labels = torch.tensor([item["cond"]["label"] for item in items]) if self.labels else None
        return Clips(pixels, labels, captions)

    def facts(self, captions: list[str]) -> Mapping[str, Any]:
        """Return shape, rate and captions."""
        return facts(self.shape, float(self.decoder.fps or 8.0), captions)
