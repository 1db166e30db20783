"""Films: a data set of video files, kept in memory when they are short and few, else read by stretches.

With `cache` every file is decoded once, in threads, and kept as uint8 at its bucket's size; a clip is then a stretch of
it. Without, or above 4 GiB, the stretch is read by seeking whenever it is asked for. Which stretch an epoch takes is a
function of (seed, epoch, index). A file that cannot be used is named in the log and left out, or, once training runs,
stands aside for the next of its bucket; more than the fraction `max_bad` of them is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from suffuse.damage import Tolerant, in_threads
from suffuse.listing import Source
from suffuse.noise import mix
from suffuse.text import encoded
from torch import Tensor
from torch.utils.data import Dataset

from suffuse_video.data.decode import MIDDLE, Decoder, Shape
from suffuse_video.files import ClipError, Head
from suffuse_video.ragged import item

__all__ = ["Films", "Reader"]


@dataclass(frozen=True)
class Reader(Tolerant):
    """Turns files into a data set.

    Arguments:
        decoder: Decodes one.
        cache: Keep decoded films in memory, up to 4 GiB.
        max_bad: Fraction of the files that may be damaged.
        key: The config key that names the files, for messages.
        mask: Clips of shorter files end where the files end, see `suffuse_video.ragged`.

    Raises:
        ConfigError: When `max_bad` is not in [0, 1).
    """

    what: ClassVar[str] = "clips"
    fault: ClassVar[type[Exception]] = ClipError
    decoder: Decoder
    cache: bool = True
    max_bad: float = 0.01
    key: str = "data.path"
    mask: bool = False

    def heads(self, films: Sequence[Source]) -> list[Head | None]:
        """Return what the heads of files say, None for those that cannot be read.

        Raises:
            DataError: When more than `max_bad` of them are damaged.
        """
        found = in_threads(lambda film: self.tried(self.decoder.probe, film.source), films)
        bad = {i: head for i, head in enumerate(found) if isinstance(head, ClipError)}
        self.judge(bad, lambda i: films[i].name, len(films))
        return [head if isinstance(head, Head) else None for head in found]

    def read(
        self, films: Sequence[Source], heads: Sequence[Head], shapes: Sequence[Shape], seed: int, *, labels: bool,
        texts: bool, crop: bool, flip: bool, total: int | None = None,
    ) -> Films:  # fmt: skip
        """Return the data set of files.

        Arguments:
            films: The files.
            heads: Of each.
            shapes: Shape of the clips of each.
            seed: Seed of the stretches and of mirroring.
            labels: Whether items have a class.
            texts: Whether items have a caption.
            crop: Take another stretch of a long file in each epoch; else the middle.
            flip: Mirror half of the clips, other ones in each epoch.
            total: How many files there are in all splits.

        Raises:
            DataError: When more than `max_bad` of `total` turn out damaged or too short.
        """
        decoder, places = self.decoder, range(len(films))
        sizes = (3 * s.height * s.width * h.count(decoder.fps) for s, h in zip(shapes, heads, strict=True))
        keep = self.keeps(sum(sizes))

        def one(i: int) -> Tensor | None:
            decoder.check(heads[i], shapes[i])
            return decoder.all(films[i].source, heads[i], shapes[i]) if keep else None

        kept = in_threads(lambda i: self.tried(one, i), places)
        bad = {i: x for i, x in enumerate(kept) if isinstance(x, ClipError)}
        self.judge(bad, lambda i: films[i].name, total or len(films))
        good = [i for i in places if i not in bad]
        found = Films(
            self, [films[i] for i in good], [heads[i] for i in good], [shapes[i] for i in good], seed, labels=labels,
            texts=texts, crop=crop, flip=flip,
        )  # fmt: skip
        found.kept = [x for x in (kept[i] for i in good) if isinstance(x, Tensor)]
        return found


class Films(Dataset[dict[str, Any]]):
    """Clips of files.

    Item i is ``{"x": float32 (3, T, H, W), "cond": {...}, "index": i}`` with ``label`` and ``text`` as the reader says.

    Arguments:
        reader: Decodes, and knows how many damaged ones there may be.
        films: The files.
        heads: See `Reader.read`, as for `shapes`, `seed`, `labels`, `texts`, `crop` and `flip`.

    Raises:
        DataError: On access, when more than `max_bad` of the files have turned out damaged.
    """

    kept: Sequence[Tensor] = ()
    """The decoded films, uint8 (3, n, H, W), or nothing to read them when asked."""

    def __init__(
        self, reader: Reader, films: Sequence[Source], heads: Sequence[Head], shapes: Sequence[Shape], seed: int, *,
        labels: bool = False, texts: bool = False, crop: bool = False, flip: bool = False,
    ) -> None:  # fmt: skip
        self.reader, self.films, self.heads, self.shapes = reader, list(films), list(heads), list(shapes)
        self.seed, self.labels, self.texts, self.crop, self.flip = seed, labels, texts, crop, flip
        self.epochs = crop or flip
        self.bad: dict[int, Exception] = {}

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = (None, key) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        drawn = epoch is not None and self.epochs
        place = mix(self.seed, epoch or 0, index, 31) / 2**62 if drawn and self.crop else MIDDLE
        pixels, index = self._fetch(index, place)
        x = pixels.float() / 255
        if drawn and self.flip and mix(self.seed, epoch or 0, index, 32) % 2:
            x = x.flip(-1)
        film = self.films[index]
        whole = item(x, self.frames(index)) if self.reader.mask else x
        cond: dict[str, Any] = {"label": film.label} if self.labels else {}
        if self.texts:
            cond["text"] = encoded(film.text)
        return {"x": whole, "cond": cond, "index": index}

    def frames(self, index: int) -> int:
        """Return how many frames of a clip its file has."""
        return max(1, min(self.heads[index].count(self.reader.decoder.fps), self.shapes[index].frames))

    def _fetch(self, index: int, place: float) -> tuple[Tensor, int]:
        """Return the pixels of an item, and the index of the item they belong to."""
        decoder, shape = self.reader.decoder, self.shapes[index]
        if self.kept:
            return decoder.cut(self.kept[index], shape.frames, place), index
        return self.reader.stand_in(
            lambda i: decoder.clip(self.films[i].source, self.heads[i], shape, place), index, len(self), self.bad,
            lambda i: self.films[i].name, lambda i: self.shapes[i] == shape,
        )  # fmt: skip
