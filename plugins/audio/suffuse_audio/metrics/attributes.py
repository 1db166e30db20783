"""Attributes: the share of samples that are what their caption says, by analysis alone.

For the embedded set: `suffuse_audio.listen` reads each attribute back. Captions of combinations that were never trained
on are counted apart, and so are captions swapped among the samples of a kind, which show what chance would score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from suffuse.data import Data
from suffuse.errors import DataError
from suffuse.text import captions_of
from torch import Tensor

from suffuse_audio.grammar import Sound, by_caption, held_out
from suffuse_audio.listen import Heard, listen
from suffuse_audio.ragged import alone, each

__all__ = ["Attributes"]


class Attributes:
    """Figures of samples drawn for captions of the embedded set.

    - ``right``: share of the samples with every attribute right, of combinations in the training set.
    - ``right_held_out``: the same for combinations that were never trained on.
    - ``right_swapped``: the same when captions are dealt out anew within a kind; what a deaf model would score.
    - ``right_KIND``: by kind, both together.
    - ``cents``: median distance from the nearest note.
    - ``clean``: mean share of the energy that belongs to the sound; ``clean_real`` of as many held-out items.
    - ``right_real``: share of the real held-out items that the analysis gets right.

    Arguments:
        seed: Seed of the swapping.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures.

        Arguments:
            samples: Sounds (K, C, N), or of lengths of their own, see `suffuse_audio.ragged`.
            cond: Conditions of the samples, with ``text``.
            data: The data of the run.

        Raises:
            DataError: When no caption is one of the grammar's.
        """
        rate = int(data.spec.about.get("rate", 8000))
        found = _asked(each(samples), captions_of(cond["text"])) if "text" in cond else []
        if not found:
            raise DataError("metrics: no caption is one of the embedded set's; use metrics=audio/features")
        heard = [listen(y, sound, rate) for sound, y in found]
        right = np.array([h.values == sound.values for (sound, _), h in zip(found, heard, strict=True)])
        new = np.array([held_out(sound) for sound, _ in found])
        figures: dict[str, float] = {}
        for name, mask in (("right", ~new), ("right_held_out", new)):
            if mask.any():
                figures[name] = float(right[mask].mean())
        figures["right_swapped"] = self._swapped([sound for sound, _ in found], heard)
        for kind in dict.fromkeys(sound.kind for sound, _ in found):
            figures[f"right_{kind}"] = float(right[[sound.kind == kind for sound, _ in found]].mean())
        cents = np.array([abs(h.cents) for h in heard])
        if np.isfinite(cents).any():
            figures["cents"] = float(np.nanmedian(cents))
        figures["clean"] = float(np.mean([h.clean for h in heard]))
        val: Any = data.val
        real = [val[i * len(val) // min(len(val), 300)] for i in range(min(len(val), 300))]
        texts = [captions_of(item["cond"]["text"][None])[0] for item in real]
        pairs = _asked([alone(item["x"]) for item in real], texts)
        of_real = [listen(y, sound, rate) for sound, y in pairs]
        figures["right_real"] = float(np.mean([h.values == s.values for (s, _), h in zip(pairs, of_real, strict=True)]))
        figures["clean_real"] = float(np.mean([h.clean for h in of_real]))
        return figures

    def _swapped(self, found: list[Sound], heard: list[Heard]) -> float:
        """Return the share that is right for captions dealt out anew within a kind."""
        random, hits = np.random.default_rng(self.seed), []
        for kind in dict.fromkeys(sound.kind for sound in found):
            rows = [i for i, sound in enumerate(found) if sound.kind == kind]
            order = random.permutation(len(rows))
            hits += [heard[rows[a]].values == found[rows[int(b)]].values for a, b in enumerate(order)]
        return float(np.mean(hits))


def _asked(samples: Any, captions: list[str]) -> list[tuple[Sound, np.ndarray[Any, Any]]]:
    known = by_caption()
    return [
        (known[caption], x.mean(0).cpu().numpy())
        for x, caption in zip(samples, captions, strict=True)
        if caption in known
    ]
