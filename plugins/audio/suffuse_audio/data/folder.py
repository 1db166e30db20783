"""Folder: sound files of any rate and length in a folder, with classes or captions where there are some.

The layouts are those of `suffuse.listing`: one subfolder per class, or ``metadata.csv`` / ``metadata.jsonl`` with
``file_name`` and ``label`` or ``text``. The class, and which files are held out, may also be in the files' names. A
text file of the same name beside a sound is its caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError, suggest
from suffuse.listing import Record, Source, class_names, held_out, splits

from suffuse_audio.data.augment import Augment
from suffuse_audio.data.decode import Decoder
from suffuse_audio.data.files import FileSet, Reader
from suffuse_audio.data.pattern import Pattern, chosen
from suffuse_audio.files import suffixes
from suffuse_audio.ragged import quantiles

__all__ = ["Folder", "facts"]


class Folder(Data):
    """A folder of sounds, shape (channels, samples).

    Arguments:
        path: The folder.
        rate: Samples per second that everything is resampled to.
        seconds: Length of a clip; rounded up to whole blocks of 1,024 samples.
        channels: 1 (mono) or 2 (stereo).
        normalise: ``none``, ``peak`` or ``lufs``, see `Decoder`.
        lufs: Loudness for ``normalise=lufs``.
        label: Pattern of the file names, as ``{label}_{speaker}_{index}``; by default the subfolder or the metadata.
        held_out: Which files are held out by the fields of the pattern, as ``{index: 0-4}``.
        val_fraction: Fraction held out when nothing else says it.
        crop: Take another stretch of a long file in each epoch.
        timing: Condition on ``seconds_start`` and ``seconds_total``, as Stable Audio does.
        mask: Shorter sounds end where they end, see `suffuse_audio.ragged`, instead of being followed by silence.
        augment: Variations of the training sounds, see `suffuse_audio.data.augment.Augment`: ``{gain: 6, shift: 0.1}``.
        cache: Keep decoded sounds in memory, up to 2 GiB.
        max_bad: Fraction of the files that may be damaged.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning.
        DataError: In `setup`, when the folder, its metadata or its files cannot be used.
    """

    def __init__(
        self, path: str | None = None, rate: int = 16_000, seconds: float = 2.048, channels: int = 1,
        normalise: str = "peak", lufs: float = -18.0, label: str | None = None,
        held_out: Mapping[str, Any] | None = None, val_fraction: float = 0.1, crop: bool = True, timing: bool = False,
        mask: bool = False, augment: Mapping[str, Any] | None = None, cache: bool = True, max_bad: float = 0.01,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to a folder with sounds")
        if not isinstance(val_fraction, float) or not 0 < val_fraction < 1:
            raise ConfigError(f"data.val_fraction={val_fraction} must lie between 0 and 1, for example 0.1")
        self.path, self.val_fraction, self.crop = Path(path).expanduser(), val_fraction, crop
        self.pattern, self.where = Pattern(label) if label else None, dict(held_out or {})
        if self.where and self.pattern is None:
            raise ConfigError("data.held_out needs data.label, the pattern whose fields it speaks of")
        for name in self.where:
            if self.pattern and name not in self.pattern.fields:
                raise ConfigError(f"data.held_out.{name}: no such field{suggest(name, self.pattern.fields)}")
        self.reader = Reader(
            Decoder(rate, seconds, channels, normalise, lufs=lufs), cache, max_bad, timing,
            augment=Augment.of(augment), mask=mask,
        )  # fmt: skip

    def setup(self) -> None:
        """List the folder and decode what is kept in memory."""
        if hasattr(self, "train"):
            return
        train, val = self._parted()
        labels = class_names(train + val)
        self.train, self.val = self._read(train, labels, True), self._read(val, labels, False)
        about = facts(self.reader.decoder, sorted({r.text for r in train + val if r.text}), self.train.lengths())
        self.spec = Spec(labels=labels, scalars=("seconds_start", "seconds_total") * self.reader.timing, about=about)

    def _parted(self) -> tuple[list[Record], list[Record]]:
        found = splits(self.path, suffixes(), "sounds", ".wav, .flac or .mp3")
        if "all" not in found:
            return self._named(found["train"]), self._named(found["val"])
        records = self._named(found["all"])
        if self.where and self.pattern:
            held = {r.key for r in records if chosen(self.pattern(Path(r.key).stem) or {}, self.where)}
            if not held or len(held) == len(records):
                raise DataError(f"data.held_out={self.where}: holds out {len(held)} of {len(records)} files")
        else:
            held = held_out(records, self.val_fraction, "sound")
        return [r for r in records if r.key not in held], [r for r in records if r.key in held]

    def _named(self, records: list[Record]) -> list[Record]:
        """Return the records with the class of their name, and the caption beside them."""
        found = []
        for record in records:
            beside = record.path.with_suffix(".txt")
            text = record.text or (beside.read_text(errors="replace").strip() if beside.is_file() else "")
            label = record.label
            if self.pattern is not None:
                fields = self.pattern(record.path.stem)
                if fields is None:
                    raise DataError(
                        f"data.label={self.pattern.text}: {record.key} does not match; change the pattern or rename it"
                    )
                label, text = fields.get("label", label), fields.get("text", text)
            found.append(replace(record, label=label, text=text))
        return found

    def _read(self, records: list[Record], labels: tuple[str, ...], train: bool) -> FileSet:
        number = {name: i for i, name in enumerate(labels)}
        sounds = [
            Source(r.path, r.key, number.get(r.label, -1) if r.label is not None else -1, r.text) for r in records
        ]
        crop = self.crop and train
        return self.reader.read(sounds, self.seed, bool(labels), any(r.text for r in records), crop, vary=train)

    def fingerprint(self) -> str:
        """Return names, sizes and times of the files, for a cache of what was made of them."""
        found = [r.sounds for r in (self.train, self.val) if isinstance(r, FileSet)]
        paths = [Path(s.source) for sounds in found for s in sounds if isinstance(s.source, str | Path)]
        return " ".join(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths)


def facts(decoder: Decoder, texts: list[str], lengths: Sequence[int] = ()) -> dict[str, Any]:
    """Return what codec, conditioner and preview must know of a data set; `lengths` in samples where they differ."""
    about: dict[str, Any] = {"rate": decoder.rate, "channels": decoder.channels, "samples": decoder.samples}
    if texts:
        step = max(1, len(texts) // 32)
        about |= {"text": True, "prompts": texts[::step][:32]}
    if lengths:
        about["lengths"] = quantiles(lengths)
    return about
