"""HuggingFace: any audio data set that the ``datasets`` library reads, by its name on the hub or by a local path.

The library decodes nothing (it would need torchcodec and FFmpeg): the stored bytes go through the same `Decoder` as
files do. Which columns hold sound, class and caption is read off the features unless it is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError, suggest
from suffuse.listing import Record, held_out

from suffuse_audio.data.decode import Decoder
from suffuse_audio.data.files import FileSet, Reader, Sound
from suffuse_audio.data.folder import facts

__all__ = ["HuggingFace"]

TEXTS = ("text", "caption", "captions", "sentence", "transcription")
VAL = ("validation", "valid", "val", "test")


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
        rate: See `Folder`, as for `seconds`, `channels`, `normalise`, `lufs`, `val_fraction`, `cache`, `max_bad`.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning, or the library is not installed.
        DataError: In `setup`, when the data set, a split or a column cannot be used.
    """

    def __init__(
        self, path: str | None = None, subset: str | None = None, split: str = "train", val_split: str | None = None,
        audio: str | None = None, label: str | None = None, text: str | None = None, rate: int = 16_000,
        seconds: float = 2.048, channels: int = 1, normalise: str = "peak", lufs: float = -18.0,
        val_fraction: float = 0.1, cache: bool = True, max_bad: float = 0.01, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to a name on the Hugging Face hub or to a folder")
        self.path, self.subset, self.split, self.val_split = path, subset, split, val_split
        self.columns = {"audio": audio, "label": label, "text": text}
        self.val_fraction = val_fraction
        self.reader = Reader(Decoder(rate, seconds, channels, normalise, lufs=lufs), cache, max_bad)

    def setup(self) -> None:
        """Load the table and decode what is kept in memory."""
        if hasattr(self, "train"):
            return
        tables = _load(self.path, self.subset)
        if self.split not in tables:
            raise DataError(f"data.split={self.split}: no such split{suggest(self.split, tables, listing='splits')}")
        train = tables[self.split]
        name = self.val_split or next((n for n in VAL if n in tables and n != self.split), None)
        if name is not None and name not in tables:
            raise DataError(f"data.val_split={name}: no such split{suggest(name, tables, listing='splits')}")
        val = train if name is None else tables[name]
        rows = [list(range(len(train))), list(range(len(val)))]
        if name is None:
            held = held_out([Record(Path(), str(i)) for i in range(len(train))], self.val_fraction, "sound")
            rows = [[i for i in range(len(train)) if (str(i) in held) == inside] for inside in (False, True)]
        columns = self._found(train.features)
        names = getattr(train.features.get(columns["label"]), "names", None) if columns["label"] else None
        self.train = self._read(train, rows[0], columns, bool(names), True)
        self.val = self._read(val, rows[1], columns, bool(names), False)
        texts = sorted({s.text for s in (*self.train.sounds, *self.val.sounds) if s.text})
        self.spec = Spec(labels=tuple(names or ()), about=facts(self.reader.decoder, texts))

    def _found(self, features: Any) -> dict[str, str | None]:
        """Return the column of each role; those that were named must exist and be of the right kind."""
        kind = {name: type(feature).__name__ for name, feature in features.items()}
        for role, name in self.columns.items():
            if name is not None and name not in kind:
                raise DataError(f"data.{role}={name}: no such column{suggest(name, kind, listing='columns')}")
        chosen = {
            "audio": self.columns["audio"] or next((n for n, k in kind.items() if k == "Audio"), None),
            "label": self.columns["label"] or next((n for n, k in kind.items() if k == "ClassLabel"), None),
            "text": self.columns["text"] or next((n for n in TEXTS if n in kind), None),
        }
        if chosen["audio"] is None or kind[chosen["audio"]] != "Audio":
            raise DataError(f"data.audio={chosen['audio']}: no column of sounds; columns: {', '.join(kind)}")
        if chosen["label"] is not None and kind[chosen["label"]] != "ClassLabel":
            raise DataError(f"data.label={chosen['label']}: its feature is {kind[chosen['label']]}, not ClassLabel")
        return chosen

    def _read(
        self, table: Any, rows: Sequence[int], columns: dict[str, str | None], labels: bool, crop: bool
    ) -> FileSet:
        from datasets import Audio  # type: ignore[import-not-found, import-untyped]

        column = str(columns["audio"])
        table = table.cast_column(column, Audio(decode=False))
        sounds = []
        for i in rows:
            row = table[i]
            cell = row[column] or {}
            source = cell["bytes"] if cell.get("bytes") is not None else Path(cell.get("path") or "")
            label = row[columns["label"]] if columns["label"] else None
            text = row[columns["text"]] if columns["text"] else None
            sounds.append(Sound(source, f"row {i}", -1 if label is None else int(label), str(text or "")))
        return self.reader.read(sounds, self.seed, labels, bool(columns["text"]), crop)


def _load(path: str, subset: str | None) -> Any:
    """Return the splits of a data set by name."""
    try:
        import datasets  # type: ignore[import-not-found, import-untyped]
    except ImportError as error:
        raise ConfigError("data=audio/hf needs the datasets library: pip install 'suffuse-audio[hf]'") from error
    folder = Path(path)
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)
        if (folder / "state.json").is_file():
            return {"train": datasets.load_from_disk(path)}
        return datasets.load_dataset(path, subset)
    # The library and its file systems raise a dozen kinds for what a wrong name or a missing network causes.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise DataError(f"data.path={path}: the datasets library cannot load it ({text}); check the name") from error
