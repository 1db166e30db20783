"""Folder: video files of any rate, size and length in a folder, with classes or captions where there are some.

The layouts are those of `suffuse.listing`: one subfolder per class, or ``metadata.csv`` / ``metadata.jsonl`` with
``file_name`` and ``label`` or ``text``. A text file of the same name beside a file is its caption. A folder of numbered
pictures is one clip. Files that are one picture are used where clips of one frame are: with ``frames=1``, or a bucket.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from suffuse.data import Data, Spec, spaced
from suffuse.errors import ConfigError, DataError
from suffuse.listing import Record, Source, class_names, held_out, splits
from torch.utils.data import DataLoader

from suffuse_video.data.buckets import BucketStream, assigned, automatic, grouped, listed, rows
from suffuse_video.data.decode import Decoder, Shape, sides, whole
from suffuse_video.data.films import Films, Reader
from suffuse_video.files import Head, suffixes
from suffuse_video.stills import PICTURES, numbered

__all__ = ["Folder", "facts"]

_log = logging.getLogger(__name__)


class Folder(Data):
    """A folder of videos, shape (3, frames, height, width).

    Arguments:
        path: The folder.
        frames: Frames of a clip.
        size: Side, or [height, width], in pixels.
        fps: Frames per second that everything is brought to; None takes the frames as they follow one another.
        fit: ``crop``, ``letterbox`` or ``stretch``.
        short: What follows the end of a file that is shorter than a clip: ``hold``, ``repeat`` or ``error``.
        mask: Nothing follows it: clips have lengths of their own, up to `frames`, see `suffuse_video.ragged`.
        background: Colour behind transparency and beside letterboxed clips.
        buckets: Shapes [[frames, height, width], …] in place of one, ``auto`` for a few that suit the files within
            `frames` and the pixels of `size`, or None.
        scale_batch: Make batches of smaller buckets larger, so that all cost about the same.
        crop: Take another stretch of a long file in each epoch; held-out files give their middle.
        flip: Mirror half of the training clips, other ones in each epoch.
        frame_folders: Take a folder of numbered pictures for one clip rather than for many pictures.
        val_fraction: Fraction held out when the folder has no ``val/``.
        cache: Keep decoded files in memory, up to 4 GiB.
        max_bad: Fraction of the files that may be damaged.
        options: Arguments of `suffuse.data.Data`; `batch_size` counts clips of the largest bucket.

    Raises:
        ConfigError: When an argument has no meaning.
        DataError: In `setup`, when the folder, its metadata or its files cannot be used.
    """

    train: Films
    val: Films

    def __init__(
        self, path: str | None = None, frames: int = 16, size: int | Sequence[int] = 64, fps: float | None = 8.0,
        fit: str = "crop", short: str = "hold", background: str = "black", buckets: Any = None,
        scale_batch: bool = False, crop: bool = True, flip: bool = False, frame_folders: bool = True,
        val_fraction: float = 0.1, mask: bool = False, cache: bool = True, max_bad: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to a folder with videos")
        if isinstance(val_fraction, bool) or not isinstance(val_fraction, int | float) or not 0 < val_fraction < 1:
            raise ConfigError(f"data.val_fraction={val_fraction} must lie between 0 and 1, for example 0.1")
        self.path, self.val_fraction, self.frame_folders = Path(path).expanduser(), float(val_fraction), frame_folders
        self.shape = Shape(whole(frames, "data.frames"), *sides(size))
        self.asked = None if buckets in (None, "auto") else listed(buckets)
        self.auto, self.scale_batch, self.crop, self.flip = buckets == "auto", scale_batch, crop, flip
        self.reader = Reader(Decoder(fps, fit, "hold" if mask else short, background), cache, max_bad, mask=mask)

    def setup(self) -> None:
        """List the folder, choose the buckets, and decode what is kept in memory."""
        if hasattr(self, "train"):
            return
        parts = self._parted()
        found = iter(self.reader.heads([_film(record) for part in parts for record in part]))
        pairs = [[(record, head) for record in part if (head := next(found)) is not None] for part in parts]
        self.shapes = self._buckets([head for _, head in pairs[0]])
        chosen = [self._chosen(part) for part in pairs]
        records = [record for part in chosen for record, _, _ in part]
        labels = class_names(records)
        texts = sorted({record.text for record in records if record.text})
        split = [
            self.reader.read(
                [_film(record, labels) for record, _, _ in part], [head for _, head, _ in part],
                [self.shapes[k] for _, _, k in part], self.seed, labels=bool(labels), texts=bool(texts),
                crop=self.crop and train, flip=self.flip and train, total=len(records),
            )
            for train, part in zip((True, False), chosen, strict=True)
        ]  # fmt: skip
        self.train, self.val = split
        about = facts(self._largest(self.train), self._rate(), texts)
        if len(self.shapes) > 1:
            about["buckets"] = [list(shape) for shape in self.shapes]
        if self.reader.mask:
            about["lengths"] = sorted({self.train.frames(i) for i in range(len(self.train))})
        self.spec = Spec(labels=labels, about=about)

    def describe(self) -> str:
        """Return the buckets, where there are several."""
        if len(self.shapes) < 2:
            return ""
        counts, batch = self._counts(self.train), self._batch()
        parts = [f"{s} ({n:,} in batches of {b})" for s, n, b in zip(self.shapes, counts, batch, strict=True)]
        return f"buckets {', '.join(parts)}"

    def sample(self, limit: int | None = None, held_out: bool = False) -> list[Any]:
        """Return at most `limit` items of the largest bucket, evenly spaced."""
        split = self.val if held_out else self.train
        shapes = getattr(split, "shapes", None)
        if len(self.shapes) < 2 or shapes is None:
            return super().sample(limit, held_out)
        shape = self._largest(split)
        mine = [i for i in range(len(split)) if shapes[i] == shape]
        return [split[(0, mine[i]) if split.epochs else mine[i]] for i in spaced(len(mine), limit)]

    def train_loader(self, start: int = 0, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return the endless loader of training batches from micro-batch `start` on, each of one bucket."""
        if len(self.shapes) < 2:
            return super().train_loader(start, rank, world)
        bucket = [self.shapes.index(shape) for shape in self.train.shapes]
        how = (self.seed, start, rank, world, self.train.epochs, self.past, self.batch_size)
        stream = BucketStream(bucket, self._batch(), *how)
        return self._loader(self.train, stream)  # type: ignore[arg-type]

    def val_loader(self, limit: int | None = None, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return one pass over this rank's share of `limit` held-out clips, evenly spaced, bucket by bucket."""
        if len(self.shapes) < 2:
            return super().val_loader(limit, rank, world)
        bucket = [self.shapes.index(shape) for shape in self.val.shapes]
        batches = grouped(spaced(len(self.val), limit)[rank::world], bucket, self._batch())
        return DataLoader(self.val, batch_sampler=batches)

    def fingerprint(self) -> str:
        """Return names, sizes and times of the files, for a cache of what was made of them."""
        paths = [film.source for part in (self.train, self.val) for film in part.films]
        stats = [(path.name, path.stat()) for path in paths if isinstance(path, Path)]
        return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)

    def _parted(self) -> tuple[list[Record], list[Record]]:
        found = splits(self.path, suffixes(), "videos", ".mp4, .webm or .gif", folders=True)
        parts = {name: self._clips(records) for name, records in found.items()}
        if "all" not in parts:
            return parts["train"], parts["val"]
        held = held_out(parts["all"], self.val_fraction, "clip")
        return [r for r in parts["all"] if r.key not in held], [r for r in parts["all"] if r.key in held]

    def _clips(self, records: list[Record]) -> list[Record]:
        """Return the records with frame folders as one each, and with the captions beside them."""
        found: dict[str, Record] = {}
        clips: dict[Path, bool] = {}
        for record in records:
            folder, key = record.path.parent, PurePosixPath(record.key).parent
            if self.frame_folders and record.path.suffix.lower() in PICTURES and len(key.parts):
                if folder not in clips:
                    clips[folder] = bool(numbered(folder))
                if clips[folder]:
                    # A folder of frames is a class only where it lies in one.
                    label = record.label if len(key.parts) > 1 else None
                    record = Record(folder, str(key), label)
            if record.key not in found:
                beside = record.path.with_name(f"{record.path.name if record.path.is_dir() else record.path.stem}.txt")
                text = record.text or (beside.read_text(errors="replace").strip() if beside.is_file() else "")
                found[record.key] = replace(record, text=text)
        return list(found.values())

    def _buckets(self, heads: list[Head]) -> list[Shape]:
        if self.asked is not None:
            return self.asked
        if not self.auto:
            return [self.shape]
        counts = [head.count(self.reader.decoder.fps) for head in heads]
        size = (self.shape.height, self.shape.width)
        return automatic(heads, counts, self.shape.frames, size, self.batch_size)

    def _chosen(self, pairs: list[tuple[Record, Head]]) -> list[tuple[Record, Head, int]]:
        """Return the files that have a bucket, with its number."""
        fps = self.reader.decoder.fps
        found = [(record, head, assigned(head, head.count(fps), self.shapes)) for record, head in pairs]
        left = [record.key for record, _, k in found if k is None]
        if left:
            if len(left) == len(pairs):
                raise DataError(
                    f"data.path={self.path}: there are only pictures, as {left[0]}, and no clips; set data.frames=1, "
                    "or data.buckets with a bucket of one frame"
                )
            _log.warning("%d pictures are left out: there is no bucket of one frame (%s, …)", len(left), left[0])
        return [(record, head, k) for record, head, k in found if k is not None]

    def _rate(self) -> float:
        rates = [head.fps for head in self.train.heads if head.fps]
        return float(self.reader.decoder.fps or (np.median(rates) if rates else 8.0))

    def _counts(self, split: Films) -> list[int]:
        return [split.shapes.count(shape) for shape in self.shapes]

    def _batch(self) -> list[int]:
        return rows(self.shapes, self._counts(self.train), self.batch_size, self.scale_batch)

    def _largest(self, split: Films) -> Shape:
        return max(set(split.shapes), key=lambda shape: (shape.cost, shape), default=self.shape)


def facts(shape: Shape, fps: float, texts: Sequence[str]) -> dict[str, Any]:
    """Return what codec, conditioner and preview must know of a data set."""
    about: dict[str, Any] = {"frames": shape.frames, "height": shape.height, "width": shape.width, "fps": float(fps)}
    if texts:
        step = max(1, len(texts) // 32)
        about |= {"text": True, "prompts": list(texts)[::step][:32]}
    return about


def _film(record: Record, labels: Sequence[str] = ()) -> Source:
    label = labels.index(record.label) if record.label in labels else -1
    return Source(record.path, record.key, label, record.text)
