"""HuggingFace: any audio data set that the ``datasets`` library reads, by its name on the hub or by a local path.

The library decodes nothing (it would need torchcodec and FFmpeg): the stored bytes go through the same `Decoder` as
files do. Which columns hold sound, class and caption is read off the features unless it is said.
"""

from __future__ import annotations

from typing import Any

from suffuse.data import Data, Spec
from suffuse.errors import ConfigError
from suffuse.listing import Source
from suffuse.tables import Part, columns, load, parts, stored

from suffuse_audio.data.decode import Decoder
from suffuse_audio.data.files import FileSet, Reader
from suffuse_audio.data.folder import facts

__all__ = ["HuggingFace"]

TEXTS = ("text", "caption", "captions", "sentence", "transcription")


class HuggingFace(Data):
    """A data set of the ``datasets`` library, shape (channels, samples).

    Arguments:
        path: Name on the hub, or a local path.
        subset: Name of the configuration, where the data set has several.
        split: Split to train on.
        val_split: Split to hold out; by default the first of validation, valid, val, test, else `val_fraction`.
        audio: Column of the sounds; by default the first with the feature Audio.
        label: Column of the classes; by default the first with the feature ClassLabel.
        text: Column of the captions; by default the first of text, caption, sentence, transcription.
        rate: See `Folder`, as for `seconds`, `channels`, `normalise`, `lufs`, `val_fraction`, `mask`, `cache` and
            `max_bad`.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning, or the library is not installed.
        DataError: In `setup`, when the data set, a split or a column cannot be used.
    """

    def __init__(
        self, path: str | None = None, subset: str | None = None, split: str = "train", val_split: str | None = None,
        audio: str | None = None, label: str | None = None, text: str | None = None, rate: int = 16_000,
        seconds: float = 2.048, channels: int = 1, normalise: str = "peak", lufs: float = -18.0,
        val_fraction: float = 0.1, mask: bool = False, cache: bool = True, max_bad: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to a name on the Hugging Face hub or to a folder")
        self.path, self.subset, self.split, self.val_split = path, subset, split, val_split
        self.columns = {"audio": audio, "label": label, "text": text}
        self.val_fraction = val_fraction
        self.reader = Reader(Decoder(rate, seconds, channels, normalise, lufs=lufs), cache, max_bad, mask=mask)

    def setup(self) -> None:
        """Load the table and decode what is kept in memory."""
        if hasattr(self, "train"):
            return
        tables = load(self.path, self.subset, "data=audio/hf", "suffuse-audio[hf]")
        train, val = parts(tables, self.path, self.split, self.val_split, self.val_fraction)
        features = train.table.features
        found = columns(features, self.columns, "audio", "Audio", TEXTS)
        names = getattr(features.get(found["label"]), "names", None) if found["label"] else None
        self.train = self._read(train, found, bool(names), True)
        self.val = self._read(val, found, bool(names), False)
        texts = sorted({s.text for s in (*self.train.sounds, *self.val.sounds) if s.text})
        self.spec = Spec(labels=tuple(names or ()), about=facts(self.reader.decoder, texts, self.train.lengths()))

    def _read(self, part: Part, columns: dict[str, str | None], labels: bool, crop: bool) -> FileSet:
        from datasets import Audio  # type: ignore[import-not-found, import-untyped]

        column = str(columns["audio"])
        table = part.table.cast_column(column, Audio(decode=False))
        sounds = []
        for i in part.rows:
            row = table[i]
            label = row[columns["label"]] if columns["label"] else None
            text = row[columns["text"]] if columns["text"] else None
            sounds.append(Source(stored(row[column]), f"row {i}", -1 if label is None else int(label), str(text or "")))
        return self.reader.read(sounds, self.seed, labels, bool(columns["text"]), crop)
