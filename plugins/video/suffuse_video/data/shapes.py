"""Shapes: the embedded set, captioned clips of moving shapes that are rendered when a run starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, check_whole
from suffuse.text import encoded
from torch import Tensor
from torch.utils.data import Dataset

from suffuse_video.grammar import Clip, clips, held_out
from suffuse_video.render import render

__all__ = ["CLOCK", "WORDS", "Rendered", "Shapes"]

CLOCK = "start"
"""Condition that says how many frames of the story are over when a clip begins."""

WORDS = 8
"""Words that a model reads: those of a caption, and some room."""


class Rendered(Dataset[Any]):
    """Clips in memory.

    Arguments:
        pixels: uint8 (N, 3, T, H, W).
        captions: One per clip.
        starts: First frame of each clip.
        lengths: Frames of each clip, shape (N,), see `suffuse_video.ragged`; None where all have T.
    """

    def __init__(self, pixels: Tensor, captions: list[str], starts: list[int], lengths: Tensor | None = None) -> None:
        self.pixels, self.captions, self.lengths = pixels, captions, lengths
        self.starts = torch.tensor(starts, dtype=torch.float32)
        unique = list(dict.fromkeys(captions))
        self._texts, self._of = torch.stack([encoded(text) for text in unique]), [unique.index(c) for c in captions]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.batch([index])
        x = item["x"] if self.lengths is None else None
        one = {name: leaf[0] for name, leaf in item["x"].items()} if x is None else x[0]
        return {"x": one, "cond": {k: v[0] for k, v in item["cond"].items()}, "index": index}

    def batch(self, keys: list[int]) -> dict[str, Any]:
        """Return a whole batch."""
        text = self._texts[[self._of[i] for i in keys]]
        cond = {"text": text, CLOCK: self.starts[keys]}
        x: Any = self.pixels[keys].float() / 255
        if self.lengths is not None:
            mask = torch.arange(x.shape[2]) < self.lengths[keys][:, None]
            x = {"x": x * mask[:, None, :, None, None], "mask": mask}
        return {"x": x, "cond": cond, "index": torch.tensor(keys)}


class Shapes(Data):
    """One or two coloured shapes that move and bounce, with captions; float32 (3, frames, size, size) in [0, 1].

    Item i of a split is a function of i alone. Combinations of attributes that `grammar.held_out` names are in the
    validation split only. A caption says how a story begins; a share of the clips starts later in it, and the condition
    ``start`` says when, so that a model can go on with a story.

    Arguments:
        count: Training clips.
        frames: Frames of a clip.
        size: Side in pixels.
        later: Share of the clips that start after the beginning.
        fps: Frames per second, for the files.
        mask: Clips have lengths of their own, from half of `frames` on, see `suffuse_video.ragged`.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: For numbers out of range.
    """

    def __init__(
        self, count: int = 12_000, frames: int = 8, size: int = 24, later: float = 0.3, fps: float = 8.0,
        mask: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        for name, value, least in (("count", count, 1), ("frames", frames, 1), ("size", size, 16)):
            check_whole(f"data.{name}", value, least)
        if not 0 <= later < 1:
            raise ConfigError(f"data.later={later} must be a share from 0 to below 1")
        self.count, self.frames, self.size, self.later, self.fps = count, frames, size, later, float(fps)
        self.mask = mask

    def setup(self) -> None:
        """Render both splits."""
        if hasattr(self, "train"):
            return
        seen = [clip for clip in clips() if not held_out(clip)]
        unseen = [clip for clip in clips() if held_out(clip)]
        self.train = self._rendered(seen, self.count, 0, self.later)
        # Half of the validation split has known combinations: its loss is comparable with training's.
        half = max(len(unseen), min(300, self.count // 8))
        self.val = _joined(self._rendered(seen, half, 10**9), self._rendered(unseen, half, 2 * 10**9))
        about = {
            "frames": self.frames, "height": self.size, "width": self.size, "fps": self.fps, "text": True,
            "words": WORDS, "clock": CLOCK, "prompts": _prompts(seen, unseen),
        }  # fmt: skip
        if self.train.lengths is not None:
            about["lengths"] = sorted(set(self.train.lengths.tolist()))
        self.spec = Spec(scalars=(CLOCK,), about=about)

    def describe(self) -> str:
        """Return how many combinations there are."""
        kept = sum(held_out(clip) for clip in clips())
        return f"captions {len(clips()) - kept} combinations of attributes, {kept} more are held out"

    def _rendered(self, found: list[Clip], count: int, first: int, later: float = 0.0) -> Rendered:
        pixels = torch.empty(count, 3, self.frames, self.size, self.size, dtype=torch.uint8)
        captions, starts = [], []
        for i in range(count):
            random = np.random.default_rng([first + i, 7])
            clip = found[int(random.integers(len(found)))]
            start = int(random.integers(1, 4 * self.frames)) if random.random() < later else 0
            clear = render(clip, first + i, self.frames, self.size, start)
            pixels[i] = torch.from_numpy(np.rint(clear * 255).astype(np.uint8))
            captions.append(clip.caption)
            starts.append(start)
        lengths = [int(np.random.default_rng([first + i, 11]).integers(-(-self.frames // 2), self.frames + 1))
                   for i in range(count)]  # fmt: skip
        return Rendered(pixels, captions, starts, torch.tensor(lengths) if self.mask else None)


def _prompts(seen: list[Clip], unseen: list[Clip]) -> list[str]:
    """Return captions that samples are drawn for when none is asked for, every fourth one held out."""
    order = np.random.default_rng(5)
    known, new = ([of[int(i)].caption for i in order.permutation(len(of))] for of in (seen, unseen))
    found: list[str] = []
    for i, caption in enumerate(known):
        found.append(caption)
        if i % 3 == 2:
            found.append(new[(i // 3) % len(new)])
    return found


def _joined(a: Rendered, b: Rendered) -> Rendered:
    """Return two sets in turns, so that any even share of the whole has both."""
    order = torch.arange(2 * len(a)).view(2, -1).T.flatten()
    captions, starts = [*a.captions, *b.captions], torch.cat([a.starts, b.starts])
    return Rendered(
        torch.cat([a.pixels, b.pixels])[order], [captions[i] for i in order], [int(starts[i]) for i in order],
        None if a.lengths is None or b.lengths is None else torch.cat([a.lengths, b.lengths])[order],
    )  # fmt: skip
