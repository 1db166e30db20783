"""Folder: pictures of any size and format in a folder, with classes or captions where there are some.

The layouts are those of `suffuse.listing`. Without a ``val/`` folder of its own the held-out set is the
files whose hashed path falls below `val_fraction`: the same ones on every machine and for every seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from suffuse.captions import Captions
from suffuse.data import Data, Spec, spaced
from suffuse.errors import ConfigError
from suffuse.listing import Columns, Record, class_names, held_out, splits
from suffuse.text import words
from torch.utils.data import DataLoader

from suffuse_image.data.bucketed import Bucketed, Shape, assigned, automatic, listed, loaders
from suffuse_image.data.decode import Decoder, size_of, suffixes
from suffuse_image.data.pictures import Pictures
from suffuse_image.data.reading import Reader
from suffuse_image.hints import Hint

__all__ = ["Folder", "about", "check_fraction"]


class Folder(Data):
    """A folder of pictures, shape (channels, height, width).

    Arguments:
        path: The folder.
        size: Side, or [height, width], in pixels.
        fit: ``crop``, ``letterbox`` or ``stretch``, see `Decoder`.
        channels: 3 (RGB) or 1 (grey).
        background: Colour behind transparency and beside letterboxed pictures.
        flip: Mirror half of the training pictures, other ones in each epoch.
        val_fraction: Fraction held out when the folder has no ``val/``.
        cache: Decode once and keep the pictures in memory (up to 4 GiB), rather than whenever they are asked for.
        max_bad: Fraction of the files that may be damaged.
        text: Column of metadata with captions, or several; by default ``text`` or ``caption``.
        rewritten: Column with captions that a model wrote, or several.
        captions: How one of several captions is chosen, see `suffuse.captions.Captions`.
        hint: What goes with a picture as a condition, see `suffuse_image.hints`.
        buckets: [[height, width], …], or ``auto``: pictures of several proportions, see `suffuse_image.data.bucketed`;
            `size` then says how many pixels at most.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning.
        DataError: In `setup`, when the folder, its metadata or its files cannot be used.
    """

    def __init__(
        self, path: str | None = None, size: int | Sequence[int] = 64, fit: str = "crop", channels: int = 3,
        background: str = "white", flip: bool = False, val_fraction: float = 0.1, cache: bool = True,
        max_bad: float = 0.01, text: str | Sequence[str] | None = None, rewritten: str | Sequence[str] | None = None,
        captions: Mapping[str, Any] | None = None, hint: Hint | None = None,
        buckets: Sequence[Sequence[int]] | str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to a folder with images")
        self.columns = Columns(text, rewritten, getattr(hint, "column", None))
        self.captions, self.hint = dict(captions or {}), hint
        self.path, self.flip, self.val_fraction = Path(path), flip, check_fraction(val_fraction)
        self.reader = Reader(Decoder(size, channels, fit, background), cache, max_bad)
        self.asked, self.shapes = (None if buckets is None else listed(buckets)), list[Shape]()
        self.bucketed = buckets is not None

    def setup(self) -> None:
        """List the folder and decode what is kept in memory."""
        if hasattr(self, "train"):
            return
        found = splits(self.path, suffixes(), columns=self.columns)
        if "all" in found:
            held = held_out(found["all"], self.val_fraction)
            train, val = (_where(found["all"], held, inside) for inside in (False, True))
        else:
            train, val = found["train"], found["val"]
        told = any(r.texts or r.rewritten for r in train)
        self.spec = Spec(labels=class_names(train + val))
        if self.bucketed:
            self._fill(train, val, told)
            return
        self.train, self.val = self._read(train, self.flip, told), self._read(val, False, told)
        self.spec = replace(self.spec, about=about(self.reader.decoder.shape, self.val, self.hint))

    def describe(self) -> str:
        """Return the buckets, where there are several."""
        if not self.bucketed:
            return ""
        assert isinstance(self.train, Bucketed)
        shown = zip(self.train.buckets, self.train.parts, strict=True)
        return f"buckets {', '.join(f'{h} x {w} ({len(part):,})' for (h, w), part in shown)}"

    def sample(self, limit: int | None = None, held_out: bool = False) -> list[Any]:
        """Return at most `limit` items of one shape, evenly spaced."""
        split = self.val if held_out else self.train
        if not isinstance(split, Bucketed):
            return super().sample(limit, held_out)
        mine = split.main
        return [split[(0, mine[i]) if split.epochs else mine[i]] for i in spaced(len(mine), limit)]

    def train_loader(self, start: int = 0, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return the endless loader of training batches, each of one bucket."""
        if not isinstance(self.train, Bucketed):
            return super().train_loader(start, rank, world)
        return loaders(self, self.train, "train", start, rank, world)

    def val_loader(self, limit: int | None = None, rank: int = 0, world: int = 1) -> DataLoader[Any]:
        """Return one pass over held-out pictures, bucket by bucket."""
        if not isinstance(self.val, Bucketed):
            return super().val_loader(limit, rank, world)
        return loaders(self, self.val, "val", limit, rank, world)

    def _fill(self, train: list[Record], val: list[Record], told: bool) -> None:
        """Read the pictures of every bucket."""
        sizes = {record.key: size_of(record.path) or (1, 1) for record in (*train, *val)}
        _, height, width = self.reader.decoder.shape
        own = [sizes[record.key] for record in train]
        self.shapes = self.asked or automatic(own, (height, width), self.batch_size)
        sets: list[Bucketed] = []
        for records, flip in ((train, self.flip), (val, False)):
            parts, shapes = [], []
            for k, shape in enumerate(self.shapes):
                mine = [record for record in records if assigned(sizes[record.key], self.shapes) == k]
                if mine:
                    reader = replace(self.reader, decoder=replace(self.reader.decoder, size=shape))
                    parts.append(self._read(mine, flip, told, reader))
                    shapes.append(shape)
            sets.append(Bucketed(parts, shapes, sets[0].shape if sets else None))
        self.train, self.val = sets
        whole = (self.reader.decoder.channels, *sets[0].shape)
        facts = about(whole, sets[1].parts[0], self.hint) | {"buckets": [list(s) for s in sets[0].buckets]}
        self.spec = replace(self.spec, about=facts)

    def _read(self, records: list[Record], flip: bool, told: bool, reader: Reader | None = None) -> Pictures:
        number = {name: i for i, name in enumerate(self.spec.labels)}
        labels = [number.get(r.label, -1) if r.label is not None else -1 for r in records] if number else None
        more = [r.rewritten for r in records] if any(r.rewritten for r in records) else ()
        texts = Captions([r.texts for r in records], more, seed=self.seed, **self.captions) if told else None
        paths, keys, hints = [r.path for r in records], [r.key for r in records], [r.hint for r in records if r.hint]
        return (reader or self.reader).read(
            paths, keys, labels, texts, flip=flip, seed=self.seed, hint=self.hint, hints=hints or None
        )


def about(shape: Sequence[int], val: Pictures, hint: Hint | None) -> dict[str, Any]:
    """Return what a model must know of pictures: their size, whether they have captions, and what goes with them.

    Arguments:
        shape: (C, H, W).
        val: The held-out pictures; samples are drawn for captions of theirs when none is asked for.
        hint: See `suffuse_image.hints`.
    """
    found: dict[str, Any] = {"size": list(shape[1:]), "channels": shape[0]}
    if val.texts is not None:
        told = [text for own in (*val.texts.texts, *val.texts.rewritten) for text in own]
        # As many words as captions have are read, and half as many more: the training set may have longer ones.
        found["words"] = min(64, max(8, *(len(words(text)) * 3 // 2 for text in told))) if told else 24
        some = [val.texts.chosen(i) for i in spaced(len(val), 200)]
        found |= {"text": True, "prompts": [text for text in dict.fromkeys(some) if text][:100]}
    if hint is not None:
        found["hint"] = hint.facts(tuple(shape))
    return found


def check_fraction(fraction: float) -> float:
    """Return `fraction`, or raise `ConfigError` when it is not between 0 and 1."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ConfigError(f"data.val_fraction={fraction} must lie between 0 and 1, for example 0.1")
    return float(fraction)


def _where(records: list[Record], keys: set[str], inside: bool) -> list[Record]:
    return [record for record in records if (record.key in keys) == inside]
