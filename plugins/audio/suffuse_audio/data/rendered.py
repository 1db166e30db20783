"""Rendered: the embedded set, captioned sounds of about a second that are synthesised when a run starts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, check_whole

from suffuse_audio.data.clips import Clips
from suffuse_audio.grammar import KINDS, Sound, held_out, sounds
from suffuse_audio.ragged import quantiles
from suffuse_audio.synth import render

__all__ = ["RATE", "SAMPLES", "Rendered"]

RATE, SAMPLES = 8000, 8192
"""Samples per second and per sound: 1.024 s."""

WORDS = 14
"""Words of a caption that are read; the longest here has thirteen."""

SHORTEST = 0.6
"""Of the longest sound; every tempo then beats often enough to be told."""


class Rendered(Data):
    """Notes, chords, slides and drums with captions, shape (1, 8192) at 8 kHz.

    Item i of a split is a function of i alone. Combinations of attributes that `grammar.held_out` names are in the
    validation split only.

    Arguments:
        count: Training sounds.
        kinds: Kinds of sounds that are rendered; by default all.
        samples: Length of the sounds, with `mask` of the longest.
        mask: Sounds have lengths of their own, from `SHORTEST` of `samples` on, see `suffuse_audio.ragged`.
        options: Arguments of `suffuse.data.Data`.

    Raises:
        ConfigError: When `count` is below 1 or a kind is unknown.
    """

    def __init__(
        self, count: int = 12_000, kinds: list[str] | None = None, samples: int = SAMPLES, mask: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        self.samples, self.mask = samples, mask
        check_whole("data.count", count)
        self.count, self.kinds = count, tuple(kinds or KINDS)
        if unknown := sorted(set(self.kinds) - set(KINDS)):
            raise ConfigError(f"data.kinds: no kind {unknown[0]!r}; kinds: {', '.join(KINDS)}")

    def setup(self) -> None:
        """Render both splits."""
        if hasattr(self, "train"):
            return
        seen = [s for s in sounds() if s.kind in self.kinds and not held_out(s)]
        unseen = [s for s in sounds() if s.kind in self.kinds and held_out(s)]
        self.train = self._rendered(seen, self.count, 0)
        # Half of the validation split has known combinations: its loss is comparable with training's.
        half = max(len(unseen), min(500, self.count // 8))
        self.val = _joined(self._rendered(seen, half, 10**9), self._rendered(unseen, half, 2 * 10**9))
        about = {
            "rate": RATE, "channels": 1, "samples": self.samples, "text": True, "words": WORDS,
            "prompts": _prompts(seen, unseen),
        }  # fmt: skip
        if self.train.lengths is not None:
            about["lengths"] = quantiles(self.train.lengths.tolist())
        self.spec = Spec(about=about)

    def describe(self) -> str:
        """Return how many combinations there are."""
        found = [s for s in sounds() if s.kind in self.kinds]
        kept = sum(held_out(s) for s in found)
        return f"captions {len(found) - kept} combinations of attributes, {kept} more are held out"

    def _rendered(self, found: list[Sound], count: int, first: int) -> Clips:
        chosen = [_drawn(found, first + i) for i in range(count)]
        samples = torch.zeros(count, 1, self.samples, dtype=torch.int16)
        lengths = [_length(first + i, self.samples) if self.mask else self.samples for i in range(count)]

        def fill(i: int) -> None:
            wave = render(chosen[i], first + i, RATE, lengths[i])
            samples[i, 0, : lengths[i]] = torch.from_numpy(np.round(wave * 32767).astype(np.int16))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, range(count)))
        own = torch.tensor(lengths) if self.mask else None
        return Clips(samples, captions=[sound.caption for sound in chosen], lengths=own)


def _length(seed: int, samples: int) -> int:
    """Return the length of an item."""
    return round(samples * float(np.random.default_rng([seed, 11]).uniform(SHORTEST, 1)))


def _drawn(found: list[Sound], seed: int) -> Sound:
    """Return the sound of an item: first a kind by its share, then one of its combinations."""
    random = np.random.default_rng([seed, 7])
    kinds = [kind for kind in KINDS if any(s.kind == kind for s in found)]
    share = np.array([KINDS[kind] for kind in kinds])
    kind = kinds[int(random.choice(len(kinds), p=share / share.sum()))]
    of = [s for s in found if s.kind == kind]
    return of[int(random.integers(len(of)))]


def _prompts(seen: list[Sound], unseen: list[Sound]) -> list[str]:
    """Return captions that samples are drawn for when none is asked for: kinds in turns, every fourth one held out."""
    order = np.random.default_rng(5)

    def mixed(found: list[Sound]) -> list[str]:
        by_kind = {kind: [s for s in found if s.kind == kind] for kind in KINDS}
        lists = [[of[int(i)] for i in order.permutation(len(of))] for of in by_kind.values() if of]
        longest = max((len(of) for of in lists), default=0)
        return [of[i].caption for i in range(longest) for of in lists if i < len(of)]

    known, new = mixed(seen), mixed(unseen)
    found: list[str] = []
    for i, caption in enumerate(known):
        found.append(caption)
        if i % 3 == 2 and i // 3 < len(new):
            found.append(new[i // 3])
    return found


def _joined(a: Clips, b: Clips) -> Clips:
    """Return two sets in turns, so that any even share of the whole has both."""
    order = torch.arange(2 * len(a)).view(2, -1).T.flatten()
    captions = [*a.captions, *b.captions]
    lengths = None if a.lengths is None or b.lengths is None else torch.cat([a.lengths, b.lengths])[order]
    return Clips(torch.cat([a.samples, b.samples])[order], captions=[captions[i] for i in order], lengths=lengths)
