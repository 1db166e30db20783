"""Attributes: the share of clips that show what their caption says, by analysis alone.

For the embedded set: `suffuse_video.watch` reads each attribute back. Captions of combinations that were never trained
on are counted apart, and so are captions swapped among the samples, which show what chance would score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from suffuse.data import Data
from suffuse.errors import DataError
from suffuse.text import captions_of
from torch import Tensor

from suffuse_video.grammar import Clip, by_caption, held_out
from suffuse_video.ragged import alone, each
from suffuse_video.watch import Seen, watch

__all__ = ["Attributes", "figures"]


class Attributes:
    """Figures of samples drawn for captions of the embedded set.

    - ``right``: share of the samples with every attribute right, of combinations in the training set.
    - ``right_held_out``: the same for combinations that were never trained on.
    - ``right_swapped``: the same when captions are dealt out anew; what a model deaf to them would score.
    - ``right_NAME``: by attribute, both together.
    - ``straight``: share of the samples whose objects keep one speed between bounces.
    - ``jitter``: median distance of objects from their straight lines, in pixels.
    - ``grain``: median deviation of the background, of pixels in [0, 1].
    - ``flicker``: median deviation of the objects' area over time, as a share of it.
    - ``right_real``, ``jitter_real``, ``grain_real``, ``flicker_real``: the same of held-out items.

    Arguments:
        seed: Seed of the swapping.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures.

        Arguments:
            samples: Clips (K, 3, T, H, W) in [0, 1], or of lengths of their own, see `suffuse_video.ragged`.
            cond: Conditions of the samples, with ``text``.
            data: The data of the run.

        Raises:
            DataError: When no caption is one of the grammar's.
        """
        found = _asked(each(samples), captions_of(cond["text"])) if "text" in cond else []
        if not found:
            raise DataError("metrics: no caption is one of the embedded set's; use metrics=video/features")
        seen = [watch(x) for _, x in found]
        result = figures([clip for clip, _ in found], seen, self.seed)
        real = data.sample(200, held_out=True)
        texts = [captions_of(item["cond"]["text"][None])[0] for item in real]
        pairs = _asked([alone(item["x"]) for item in real], texts)
        of_real = [watch(x) for _, x in pairs]
        whole = figures([clip for clip, _ in pairs], of_real, self.seed)
        right = np.mean([s.values == clip.values for (clip, _), s in zip(pairs, of_real, strict=True)])
        return result | {"right_real": float(right)} | {f"{k}_real": whole[k] for k in ("jitter", "grain", "flicker")}


def figures(asked: list[Clip], seen: list[Seen], seed: int = 0) -> dict[str, float]:
    """Return the figures of clips that were asked for and what is seen in them."""
    pairs = zip(asked, seen, strict=True)
    hits: np.ndarray[Any, Any] = np.array([np.equal(s.values, clip.values) for clip, s in pairs])
    right = np.asarray(hits.all(1))
    new = np.array([held_out(clip) for clip in asked])
    found: dict[str, float] = {}
    for name, mask in (("right", ~new), ("right_held_out", new)):
        if mask.any():
            found[name] = float(right[mask].mean())
    order = np.random.default_rng(seed).permutation(len(asked))
    found["right_swapped"] = float(np.mean([seen[i].values == asked[int(j)].values for i, j in enumerate(order)]))
    for i, name in enumerate(Clip.NAMES):
        found[f"right_{name}"] = float(hits[:, i].mean())
    found["straight"] = float(np.mean([s.straight for s in seen]))
    for name in ("jitter", "grain", "flicker"):
        found[name] = float(np.median([getattr(s, name) for s in seen]))
    return found


def _asked(samples: Any, captions: list[str]) -> list[tuple[Clip, np.ndarray[Any, Any]]]:
    known = by_caption()
    return [(known[caption], x.cpu().numpy()) for x, caption in zip(samples, captions, strict=True) if caption in known]
