"""ShapesText: the embedded captioned set, pictures of shapes that are rendered when a run starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from suffuse.captions import Captions
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, check_whole, suggest

from suffuse_image.data.folder import about
from suffuse_image.data.pictures import Pictures
from suffuse_image.grammar import KINDS, Scene, scenes
from suffuse_image.hints import Hint
from suffuse_image.render import render

__all__ = ["WORDS", "ShapesText", "prompts"]

WORDS = 16
"""Words that a model reads: those of a caption, and some room."""

SHARES = {"one": 0.4, "several": 0.1, "pair": 0.5}


class ShapesText(Data):
    """One object with a size and a place, several alike, or two with a relation; float32 (3, size, size) in [0, 1].

    Item i of a split is a function of i alone. What `Scene.held_out` names is in the validation split only. Pairs have
    two captions, one from either end.

    Arguments:
        count: Training pictures.
        size: Side in pixels.
        shares: Share of each kind (``one``, ``several``, ``pair``) among the pictures.
        captions: How one of several captions is chosen, see `suffuse.captions.Captions`.
        hint: What goes with a picture as a condition, see `suffuse_image.hints`.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: For numbers out of range.
    """

    def __init__(
        self, count: int = 30_000, size: int = 32, shares: Mapping[str, float] | None = None,
        captions: Mapping[str, Any] | None = None, hint: Hint | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        for name, value, least in (("count", count, 8), ("size", size, 24)):
            check_whole(f"data.{name}", value, least)
        self.shares = dict(SHARES if shares is None else shares)
        for name in self.shares:
            if name not in KINDS:
                raise ConfigError(f"data.shares.{name}: no such kind of picture{suggest(name, KINDS)}")
        if min(self.shares.values(), default=0) < 0 or sum(self.shares.values()) <= 0:
            raise ConfigError(f"data.shares={self.shares} must be shares of at least 0, not all 0")
        self.count, self.size, self.captions, self.hint = count, size, dict(captions or {}), hint

    def setup(self) -> None:
        """Render both splits."""
        if hasattr(self, "train"):
            return
        kinds = [kind for kind in KINDS if self.shares.get(kind, 0) > 0]
        seen = {kind: [scene for scene in scenes(kind) if not scene.held_out] for kind in kinds}
        unseen = {kind: [scene for scene in scenes(kind) if scene.held_out] for kind in kinds}
        self.train = self._rendered(seen, self.count, 0)
        # Half of the validation split has known combinations: its loss is comparable with training's.
        half = max(4, min(300, self.count // 8))
        self.val = self._rendered(seen, half, 10**9, unseen)
        facts = about((3, self.size, self.size), self.val, self.hint)
        self.spec = Spec(about={**facts, "words": WORDS, "prompts": prompts(kinds)})

    def describe(self) -> str:
        """Return how many combinations there are."""
        every = [scene for kind in KINDS if self.shares.get(kind, 0) > 0 for scene in scenes(kind)]
        kept = sum(scene.held_out for scene in every)
        return f"captions {len(every) - kept:,} combinations of attributes, {kept} more are held out"

    def _rendered(
        self, found: Mapping[str, Sequence[Scene]], count: int, first: int,
        other: Mapping[str, Sequence[Scene]] | None = None,
    ) -> Pictures:  # fmt: skip
        """Return `count` pictures of scenes, or of these and of others in turns."""
        groups = [found] if other is None else [found, other]
        weights = np.array([self.shares[kind] for kind in found])
        pixels = torch.empty(count * len(groups), 3, self.size, self.size, dtype=torch.uint8)
        texts = []
        for i in range(len(pixels)):
            random = np.random.default_rng([first + i, 11])
            kind = list(found)[int(random.choice(len(weights), p=weights / weights.sum()))]
            among = groups[i % len(groups)][kind]
            scene = among[int(random.integers(len(among)))]
            picture = render(scene, first + i, self.size)
            pixels[i] = torch.from_numpy(np.rint(picture * 255).astype(np.uint8))
            texts.append(scene.captions)
        told = Captions(texts, seed=self.seed, **self.captions)
        return Pictures(pixels, texts=told, seed=self.seed, hint=self.hint)


def prompts(kinds: Sequence[str], seed: int = 5) -> list[str]:
    """Return captions that samples are drawn for when none is asked for: kinds in turns, every second one held out."""
    random = np.random.default_rng(seed)
    columns = []
    for kind in kinds:
        for held in (False, True):
            of = [scene.caption for scene in scenes(kind) if scene.held_out == held]
            columns.append([of[int(i)] for i in random.permutation(len(of))])
    longest = max(map(len, columns))
    return [column[i % len(column)] for i in range(min(longest, 60)) for column in columns]
