"""Folder: meshes and clouds in a folder or an archive, with classes or captions where there are some.

The layouts are those of `suffuse.listing`: one subfolder per class, or ``metadata.csv`` / ``metadata.jsonl`` with
``file_name`` and ``label`` or ``text``. A text file of the same name beside a file is its caption. A folder may hold
archives, whose subfolders are classes too; they are read where they are and never unpacked.

Each file is read once, into a bank of points; every epoch draws others of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from suffuse.damage import check_fraction, in_threads, judge
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError
from suffuse.listing import VAL, Record, class_names, held_out, splits
from suffuse.noise import mix
from suffuse.text import encoded
from torch import Tensor
from torch.utils.data import Dataset

from suffuse_shapes.data.given import Given
from suffuse_shapes.files import ARCHIVES, SUFFIXES, Cloud, FileError, members, resampled, unpacked
from suffuse_shapes.frame import Frame, upright

__all__ = ["Files", "Folder"]

FRAMES = ("each", "set", "none")


@dataclass(frozen=True)
class Item:
    """A shape that could be read."""

    record: Record
    cloud: Cloud


class Files(Dataset[dict[str, Any]]):
    """Clouds of files.

    Item i is ``{"x": float32 (C, N), "cond": {...}, "index": i, "frame": float64 (4,)}``: the frame is the centre and
    the scale that were taken out.

    Arguments:
        items: The shapes.
        labels: Names of the classes.
        texts: Whether items have a caption.
        points: Points of a cloud.
        normals: Whether clouds have normals behind the colours.
        turn: Turn each cloud by a random angle about `up`, another one in each epoch.
        up: Axis that points up in the files.
        given: What is given of each cloud.
        seed: Seed of all draws.
        epochs: Draw other points in each epoch.
    """

    def __init__(
        self, items: Sequence[Item], labels: Sequence[str], texts: bool, points: int, normals: bool, turn: bool,
        up: str, given: Given, seed: int, epochs: bool,
    ) -> None:  # fmt: skip
        self.items, self.labels, self.texts = list(items), tuple(labels), texts
        self.points, self.normals, self.turn, self.up, self.given = points, normals, turn, up, given
        self.seed, self.epochs = seed, epochs

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        epoch, index = key if self.epochs else (0, key)
        item, random = self.items[index], np.random.default_rng(mix(self.seed, epoch, index))
        cloud = resampled(item.cloud, self.points, random)
        x = self._tensor(cloud, 2 * math.pi * random.random() if self.turn and self.epochs else 0.0)
        record, cond = item.record, dict(self.given.of(x, random)) if self.given.kind != "none" else {}
        if self.labels:
            cond["label"] = self.labels.index(record.label) if record.label in self.labels else -1  # type: ignore[assignment]
        if self.texts:
            cond["text"] = encoded(record.text)
        frame = torch.tensor([*cloud.frame.centre, cloud.frame.scale], dtype=torch.float64)
        return {"x": x, "cond": cond, "index": index, "frame": frame}

    def _tensor(self, cloud: Cloud, angle: float) -> Tensor:
        turn = upright(self.up) @ _about_z(angle) if angle else upright(self.up)
        parts = [cloud.xyz @ turn, cloud.rgb, *([cloud.normals @ turn] if self.normals else [])]
        return torch.from_numpy(np.concatenate(parts, 1).T.astype(np.float32).copy())


class Folder(Data):
    """A folder or an archive of meshes and clouds, shape (6, points), or (9, points) with normals.

    Arguments:
        path: The folder, or an archive (.zip, .tar, .tar.gz).
        points: Points of a cloud; surfaces are sampled by area, clouds of fewer points repeat some.
        bank: Points that are kept of each file, from which every epoch draws its own; None for four times `points`.
        normals: Keep normals as three further channels.
        normalise: ``each``: every shape by its own bounding box; ``set``: all by the largest, which keeps their sizes;
            ``none``.
        up: Axis that points up in the files: ``z``, ``y`` or ``x``; the model's is z.
        turn: Turn every cloud about its up axis at random in training.
        given: What is given of each cloud: ``none``, ``coarse`` or ``partial``, see `suffuse_shapes.data.given`.
        given_points: Points that are given.
        jitter: Their error at most.
        val_fraction: Fraction held out when the folder has no ``val/``.
        max_bad: Fraction of the files that may be unusable.
        max_mb: Largest file that is read, in MiB.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When an argument has no meaning.
        DataError: In `setup`, when the folder, its metadata or its files cannot be used.
    """

    train: Files
    val: Files

    def __init__(
        self, path: str | None = None, points: int = 2048, bank: int | None = None, normals: bool = False,
        normalise: str = "each", up: str = "y", turn: bool = False, given: str = "none", given_points: int = 256,
        jitter: float = 0.02, val_fraction: float = 0.1, max_bad: float = 0.01, max_mb: float = 512, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if not path:
            raise ConfigError("data.path is not set; set data.path to a folder or an archive with meshes or clouds")
        if points < 8:
            raise ConfigError(f"data.points={points} must be at least 8")
        if bank is not None and bank < 1:
            raise ConfigError(f"data.bank={bank} must be at least 1")
        if normalise not in FRAMES:
            raise ConfigError(f"data.normalise={normalise} must be one of {', '.join(FRAMES)}")
        if up not in ("x", "y", "z"):
            raise ConfigError(f"data.up={up} must be x, y or z")
        if not 0 < val_fraction < 1:
            raise ConfigError(f"data.val_fraction={val_fraction} must lie between 0 and 1, for example 0.1")
        check_fraction(max_bad)
        self.path, self.points, self.bank = Path(path).expanduser(), points, bank or 4 * points
        self.normals, self.normalise, self.up, self.turn = normals, normalise, up, turn
        self.given, self.val_fraction, self.max_bad = Given(given, given_points, jitter), val_fraction, max_bad
        self.max_bytes = int(max_mb * 2**20)
        self.few = 0

    def setup(self) -> None:
        """Read every file once."""
        if hasattr(self, "train"):
            return
        found = self._parted()
        total = sum(len(part) for part in found)
        items: list[list[Item]] = []
        bad: dict[int, Exception] = {}
        names = [record.key for part in found for record, _ in part]
        for part in found:
            clouds = in_threads(self._read, part)
            first = sum(len(earlier) for earlier in found[: len(items)])
            items.append([Item(r, c) for (r, _), c in zip(part, clouds, strict=True) if isinstance(c, Cloud)])
            bad |= {first + i: c for i, c in enumerate(clouds) if isinstance(c, FileError)}
        judge(bad, names.__getitem__, total, self.max_bad, "data.path", "shapes cannot be used")
        if self.normalise == "set":
            items = _together(items)
        records = [item.record for part in items for item in part]
        self.few = sum(len(i.cloud.xyz) < self.points for part in items for i in part)
        labels, texts = class_names(records), sorted({r.text for r in records if r.text})
        about: dict[str, Any] = {"points": self.points, "normals": self.normals, **self.given.about()}
        if texts:
            step = max(1, len(texts) // 32)
            about |= {"text": True, "prompts": texts[::step][:32]}
        if self.normalise == "set" and records:
            about["frame"] = {**next(i for part in items for i in part).cloud.frame.record(), "up": self.up}
        self.train, self.val = (
            Files(
                part, labels, bool(texts), self.points, self.normals, self.turn, self.up, self.given,
                mix(self.seed, number), number == 0,
            )
            for number, part in enumerate(items)
        )  # fmt: skip
        self.spec = Spec(labels=labels, about=about)

    def describe(self) -> str:
        """Say how many clouds have to repeat points."""
        if not self.few:
            return ""
        return f"{self.few} clouds have fewer than {self.points} points; some of theirs are repeated"

    def fingerprint(self) -> str:
        """Return names, sizes and times of the files, for a cache of what was made of them."""
        paths = {item.record.path for part in (self.train, self.val) for item in part.items}
        stats = [(path.name, path.stat()) for path in sorted(paths)]
        return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)

    def _parted(self) -> list[list[tuple[Record, bytes | FileError | None]]]:
        """Return the files to train on and those held out, with their content where it is in an archive."""
        if self.path.is_file() and unpacked(self.path.name):
            found = {"all": self._inside(self.path, Record(self.path, ""))}
            names = {PurePosixPath(record.key).parts[0] for record, _ in found["all"]}
            val = next((name for name in VAL if name in names), None)
            if "train" in names and val and names <= {"train", *VAL}:
                whole = found["all"]
                found = {name: [p for p in whole if p[0].key.startswith(f"{where}/")]
                         for name, where in (("train", "train"), ("val", val))}  # fmt: skip
                found = {k: [(_below(r), c) for r, c in part] for k, part in found.items()}
            if not any(found.values()):
                raise DataError(f"data.path={self.path}: no meshes or clouds in it; it needs files like .obj or .ply")
        else:
            what = ("shapes", ".obj, .glb or .ply")
            listed = splits(self.path, (*SUFFIXES, *ARCHIVES, ".gz"), *what)
            found = {name: [pair for record in part for pair in self._one(record)] for name, part in listed.items()}
        if "all" not in found:
            return [found["train"], found["val"]]
        held = held_out([record for record, _ in found["all"]], self.val_fraction, "shape")
        return [[pair for pair in found["all"] if (pair[0].key in held) == inside] for inside in (False, True)]

    def _one(self, record: Record) -> list[tuple[Record, bytes | FileError | None]]:
        if unpacked(record.path.name):
            return self._inside(record.path, record)
        if record.path.suffix.lower() == ".gz":
            return []
        beside = record.path.with_suffix(".txt")
        text = record.text or (beside.read_text(errors="replace").strip() if beside.is_file() else "")
        return [(Record(record.path, record.key, record.label, text), None)]

    def _inside(self, path: Path, record: Record) -> list[tuple[Record, bytes | FileError | None]]:
        try:
            inside = list(members(path, self.max_bytes))
        except Exception as error:  # zipfile, tarfile and zlib have bases of their own for what is damaged
            text = " ".join(str(error).split())[:100]
            raise DataError(f"data.path={path}: cannot read the archive ({text}); repair or remove it") from error
        found: list[tuple[Record, bytes | FileError | None]] = []
        for name, content in inside:
            parts = PurePosixPath(name.replace("\\", "/")).parts
            label = record.label or (parts[0] if len(parts) > 1 else None)
            found.append((Record(path, f"{record.key}/{name}".lstrip("/"), label, record.text), content))
        return found

    def _read(self, pair: tuple[Record, bytes | FileError | None]) -> Cloud | FileError:
        record, content = pair
        if isinstance(content, FileError):
            return content
        try:
            source = record.path if content is None else content
            seed = mix(self.seed, *record.key.encode()) % 2**32
            return Cloud.read(source, record.key, self.bank, seed, self.max_bytes, self.normalise == "each")
        except FileError as error:
            return error


def _below(record: Record) -> Record:
    """Return a record of an archive with splits, with the class that its folder below the split says."""
    parts = PurePosixPath(record.key).parts
    return Record(record.path, record.key, parts[1] if len(parts) > 2 else None, record.text)


def _together(items: list[list[Item]]) -> list[list[Item]]:
    """Return shapes in one frame: that of all of their points."""
    corners = [item.cloud.xyz for part in items for item in part]
    if not corners:
        return items
    frame = Frame.of(np.stack([np.min([c.min(0) for c in corners], 0), np.max([c.max(0) for c in corners], 0)]))
    return [
        [Item(i.record, Cloud(frame.normalise(i.cloud.xyz), i.cloud.rgb, i.cloud.normals, frame, i.cloud.surface))
         for i in part]
        for part in items
    ]  # fmt: skip


def _about_z(angle: float) -> np.ndarray[Any, Any]:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
