"""Sampling: the job that turns seeds and conditions into files.

Sample i of a job with seed S has the seed S + i and its own condition, so it does not matter which rank draws it, in
which batch, or in which order. Ranks take whole batches in turn; the first rank gathers and writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from suffuse.codec import empty
from suffuse.disk import named
from suffuse.edit import Edit
from suffuse.edit import Path as Between
from suffuse.errors import ConfigError
from suffuse.model import Model, Recipe
from suffuse.parts import Parts
from suffuse.rollout import Window
from suffuse.text import captions_of
from suffuse.training.progress import Progress, per_second, say

__all__ = ["Sampling", "take", "write_samples"]


class Sampling:
    """A model, a codec and a recipe, ready to draw.

    Arguments:
        model: The model with the weights to sample from.
        codec: Decodes the drawn states.
        recipe: Sampler, grid and guidance.
        seed: Seed of sample 0.
        edit: What is known of the samples.
        path: Where each sample stands between two ends, of as many rows as there are samples; all have the first seed.
        window: How samples of another length than the training data's are drawn.
        share: Samples in a row that have one seed: of n conditions that take turns, a grid of conditions by seeds.
    """

    def __init__(
        self, model: Model, codec: Any, recipe: Recipe, seed: int, edit: Edit | None = None,
        path: Between | None = None, window: Window | None = None, share: int = 1,
    ) -> None:  # fmt: skip
        self.window, self.share = window, share
        self.model, self.codec, self.recipe, self.seed = model, codec, recipe, seed
        self.edit, self.path = edit, path

    def batch(self, index: Tensor, raw: Mapping[str, Tensor]) -> Any:
        """Return the decoded samples number `index`, shape (B,), for their rows of `raw`."""
        mine, path = {k: v[index] for k, v in raw.items()}, self.path
        seeds = self.seed + index // self.share
        if path is not None:
            seeds = torch.full_like(index, self.seed)
            path = Between({k: v[index] for k, v in path.raw.items()}, path.seeds[index], path.weight[index])
        like = empty(self.codec, self.model.facts, seeds, mine, self.model.device)
        edit = None if self.edit is None else self.edit.of(index)
        return self.codec.decode(self.model.draw(self.recipe, seeds, mine, like, edit, path, self.window))

    def draw(self, index: Tensor, raw: Mapping[str, Tensor], batch: int, progress: Progress | None = None) -> Any:
        """Return the samples `index` in order, drawn `batch` at a time in this process."""
        began, done, parts = time.perf_counter(), 0, []
        for chunk in torch.split(index, batch):
            parts.append(_cpu(self.batch(chunk, raw)))
            done += len(chunk)
            if progress is not None:
                progress.update(done, rate=per_second(done, began))
        return _concatenate(parts)

    def run(self, trainer: Trainer, raw: Mapping[str, Tensor], batch: int, parts: Parts) -> Any:
        """Draw all of `raw` on the ranks of `trainer`; return them in order on the first rank.

        Arguments:
            trainer: Decides devices, strategy and precision.
            raw: Conditions, one row per sample.
            batch: Samples per step and rank.
            parts: Keeps the batches that are drawn, here or in an earlier attempt at the same job.
        """
        count = len(next(iter(raw.values())))
        chunks = list(torch.split(torch.arange(count), batch))
        loader = DataLoader(_Chunks(chunks), batch_size=None)
        trainer.predict(_Worker(self, raw, count, parts, len(chunks)), loader, return_predictions=False)
        trainer.strategy.barrier("samples")
        return _concatenate(parts.read(len(chunks))) if trainer.is_global_zero else None

    def rows(self, index: Tensor, raw: Mapping[str, Tensor], how: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return what the manifest says of each sample; `how` names sampler, grid, checkpoint and weights."""
        captions = self.model.conditioner.captions(raw)
        common = {**how, "steps": self.recipe.sampler.steps, "guidance": self.recipe.scale}
        kind = type(self.recipe.guidance).__name__
        common |= {} if kind == "CFG" else {"guidance_kind": kind}
        if self.path is not None:
            return [self._between(i, raw, captions[i]) | common for i in index.tolist()]
        return [
            {
                "index": i, "seed": self.seed + i // self.share, "condition": _condition(raw, i),
                "caption": captions[i], **common,
            }
            for i in index.tolist()
        ]  # fmt: skip

    def _between(self, i: int, raw: Mapping[str, Tensor], caption: str) -> dict[str, Any]:
        """Return what the manifest says of a sample between two ends."""
        assert self.path is not None
        weight, far = float(self.path.weight[i]), self.model.conditioner.captions(self.path.raw)[i]
        ends = {"condition": _condition(raw, i), "condition_to": _condition(self.path.raw, i)}
        caption = caption if caption == far else f"{caption} → {far} {100 * weight:.0f} %"
        seeds = {"seed": self.seed, "seed_to": int(self.path.seeds[i]), "weight": round(weight, 6)}
        return {"index": i, **seeds, **ends, "caption": caption}

    @staticmethod
    def check_free(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Raise `ConfigError` when `out` holds other samples than those about to be written again."""
        manifest = out / "manifest.jsonl"
        if not manifest.is_file():
            return
        old = [json.loads(line) for line in manifest.read_text().splitlines() if line.strip()]
        if [{k: v for k, v in row.items() if k != "file"} for row in old] != [dict(row) for row in rows]:
            raise ConfigError(f"out={out} already holds other samples; choose another directory or remove it")


def _condition(raw: Mapping[str, Tensor], row: int) -> dict[str, Any]:
    values = {name: value[row].item() for name, value in raw.items() if value.ndim == 1}
    said: dict[str, Any] = {name: value for name, value in values.items() if value == value and value != -1}
    if "text" in raw and raw["text"].dtype == torch.uint8:
        said["text"] = captions_of(raw["text"][row : row + 1])[0]
    return said


class _Chunks(torch.utils.data.Dataset[Tensor]):
    """The index batches of a job."""

    def __init__(self, chunks: list[Tensor]) -> None:
        self.chunks = chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Tensor:
        return self.chunks[number]


class _Worker(LightningModule):
    """Draws every world-th of the chunks that are missing."""

    def __init__(self, sampling: Sampling, raw: Mapping[str, Tensor], count: int, parts: Parts, chunks: int) -> None:
        super().__init__()
        self.model = sampling.model
        self._sampling, self._raw, self._count, self._parts, self._chunks = sampling, raw, count, parts, chunks

    def on_predict_start(self) -> None:
        """Agree on what is missing, and start the progress line."""
        parts, first = self._parts, self.trainer.is_global_zero
        # Each rank may have found another free directory; the first one's counts.
        found = (str(parts.out), parts.missing(self._chunks)) if first else None
        agreed: Any = self.trainer.strategy.broadcast(found)
        where, missing = agreed
        parts.out = Path(where)
        self._mine = set(missing[self.global_rank :: self.trainer.world_size])
        self._progress = Progress(self._count, word="sample")
        self._began, self._done = time.perf_counter(), 0
        if len(missing) < self._chunks:
            say(f"{self._chunks - len(missing)} of {self._chunks} batches are there already")

    def predict_step(self, index: Tensor, batch_idx: int) -> None:
        """Draw one chunk if it is this rank's."""
        self._done += len(index)
        if batch_idx in self._mine:
            self._parts.write(batch_idx, _cpu(self._sampling.batch(index.cpu(), self._raw)))
            self._progress.update(self._done, rate=per_second(self._done, self._began))


def write_samples(out: Path, xs: Any, rows: Sequence[dict[str, Any]], preview: Any) -> None:
    """Write one file per sample, ``overview.png`` and, last, ``manifest.jsonl``.

    Arguments:
        out: Directory, made when missing.
        xs: Decoded samples in the order of `rows`.
        rows: Manifest rows; each gets its ``file``.
        preview: The modality's preview. One with a method ``write(xs, rows, out)`` writes the files of all samples
            itself, and adds to their rows what it knows of them.
    """
    out.mkdir(parents=True, exist_ok=True)
    if hasattr(preview, "write"):
        with named(out / "the samples"):
            preview.write(xs, rows, out)
    else:
        for position, row in enumerate(rows):
            with named(out / f"{row['index']:05d}"):
                row["file"] = preview.save(take(xs, position), out / f"{row['index']:05d}").name
    with named(out / "overview.png"):
        preview.overview(xs, [row["caption"] for row in rows], out / "overview.png")
    temporary = out / ".manifest.jsonl.tmp"
    with named(out / "manifest.jsonl"):
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(out / "manifest.jsonl")


def take(xs: Any, rows: Any) -> Any:
    """Return one sample of a decoded batch, or a slice of them."""
    return {name: take(field, rows) for name, field in xs.items()} if isinstance(xs, Mapping) else xs[rows]


def _cpu(xs: Any) -> Any:
    return {name: _cpu(field) for name, field in xs.items()} if isinstance(xs, Mapping) else xs.cpu()


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {name: _concatenate([part[name] for part in parts]) for name in parts[0]}
    size = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
    return torch.cat([_padded(part, size) for part in parts])


def _padded(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return a batch with zeros behind, where batches of ragged samples differ in width."""
    missing = [wide - had for had, wide in zip(x.shape[1:], size, strict=True)]
    if not any(missing):
        return x
    return torch.nn.functional.pad(x, [n for wide in reversed(missing) for n in (0, wide)])
