"""TorchAudio: the data sets whose metadata torchaudio knows: which files, which class, which text, which split.

Only the metadata is torchaudio's (``get_metadata``); the files go through the same `Decoder` as all others, since
``torchaudio.load`` needs torchcodec and FFmpeg. Nothing is downloaded unless asked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError, suggest
from suffuse.listing import Record, Source, class_names, held_out

from suffuse_audio import dsp
from suffuse_audio.data.decode import Decoder
from suffuse_audio.data.files import FileSet, Reader
from suffuse_audio.data.folder import facts

__all__ = ["SETS", "TorchAudio"]

Meta = tuple[Any, ...]
SETS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, Callable[[Meta], tuple[str | None, str]]]] = {
    # name: options of the training split, of the held-out one (None: a share), and (class, caption) of an item.
    "SPEECHCOMMANDS": ({"subset": "training"}, {"subset": "validation"}, lambda m: (str(m[2]), "")),
    "GTZAN": ({"subset": "training"}, {"subset": "validation"}, lambda m: (str(m[2]), "")),
    "YESNO": ({}, None, lambda m: (None, " ".join("yes" if v else "no" for v in m[2]))),
    "LIBRISPEECH": ({"url": "train-clean-100"}, {"url": "dev-clean"}, lambda m: (None, str(m[2]).lower())),
    "LJSPEECH": ({}, None, lambda m: (None, str(m[-1]))),
}
"""Data sets that are known here."""


class TorchAudio(Data):
    """A data set of torchaudio, shape (channels, samples).

    Arguments:
        name: ``SPEECHCOMMANDS``, ``GTZAN``, ``YESNO``, ``LIBRISPEECH`` or ``LJSPEECH``.
        root: Folder that torchaudio would use.
        download: Fetch what is missing.
        rate: See `Folder`, as for `seconds`, `channels`, `normalise`, `lufs`, `val_fraction`, `mask`, `cache` and
            `max_bad`.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: For an unknown name.
        DataError: In `setup`, when the files are not there.
    """

    def __init__(
        self, name: str = "SPEECHCOMMANDS", root: str = "data", download: bool = False, rate: int = 16_000,
        seconds: float = 1.024, channels: int = 1, normalise: str = "peak", lufs: float = -18.0,
        val_fraction: float = 0.1, mask: bool = False, cache: bool = True, max_bad: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if name not in SETS:
            raise ConfigError(f"data.name={name}: no such data set{suggest(name, SETS, listing='data sets')}")
        self.name, self.root, self.download, self.val_fraction = name, Path(root), download, val_fraction
        decoder = Decoder(rate, seconds, channels, normalise, lufs=lufs)
        self.reader = Reader(decoder, cache, max_bad, key="data.root", mask=mask)

    def setup(self) -> None:
        """Read the metadata and decode what is kept in memory."""
        if hasattr(self, "train"):
            return
        one, two, read = SETS[self.name]
        train = self._records(one, read)
        if two is None:
            held = held_out([r for r, _ in train], self.val_fraction, "sound")
            val = [pair for pair in train if pair[0].key in held]
            train = [pair for pair in train if pair[0].key not in held]
        else:
            val = self._records(two, read)
        labels = class_names([r for r, _ in train + val])
        self.train, self.val = self._read(train, labels, True), self._read(val, labels, False)
        texts = sorted({r.text for r, _ in train + val if r.text})
        self.spec = Spec(labels=labels, about=facts(self.reader.decoder, texts, self.train.lengths()))

    def _records(
        self, how: dict[str, Any], read: Callable[[Meta], tuple[str | None, str]]
    ) -> list[tuple[Record, Path]]:
        kind = getattr(dsp.torchaudio().datasets, self.name)
        try:
            self.root.mkdir(parents=True, exist_ok=True) if self.download else None
            found = kind(str(self.root), download=self.download, **how)
        except (RuntimeError, OSError, ValueError) as error:
            text = " ".join(str(error).split())[:150]
            raise DataError(
                f"data.root={self.root}: no {self.name} there ({text}); set data.root to its folder, or "
                "data.download=true"
            ) from error
        records = []
        where = getattr(found, "_archive", None) or getattr(found, "_path", None) or self.root
        base = Path(str(where))
        for i in range(len(found)):
            meta = found.get_metadata(i) if hasattr(found, "get_metadata") else self._walked(found, i)
            path = self._path(base, str(meta[0]))
            label, text = read(meta)
            records.append((Record(path, str(meta[0]), label, text), path))
        return records

    def _path(self, base: Path, name: str) -> Path:
        for folder in (base, self.root, base.parent, Path()):
            if (folder / name).is_file():
                return folder / name
        return base / name

    def _walked(self, found: Any, i: int) -> Meta:
        """Return (path, rate, what else) of sets that have no metadata method, from the lists they keep."""
        if self.name == "YESNO":
            stem = found._walker[i]
            return (str(Path(found._path) / f"{stem}.wav"), 8000, [int(c) for c in stem.split("_")])
        if self.name == "GTZAN":
            stem = found._walker[i]
            return (f"{stem.split('.')[0]}/{stem}.wav", 22_050, stem.split(".")[0])
        row = found._flist[i]
        return (str(Path(found._path) / f"{row[0]}.wav"), 22_050, row[-1])

    def _read(self, pairs: list[tuple[Record, Path]], labels: tuple[str, ...], crop: bool) -> FileSet:
        number = {name: i for i, name in enumerate(labels)}
        sounds = [Source(p, r.key, number.get(r.label, -1) if r.label else -1, r.text) for r, p in pairs]
        return self.reader.read(sounds, self.seed, bool(labels), any(r.text for r, _ in pairs), crop)
