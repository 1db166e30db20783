"""Attributes: the share of pictures that show what their caption says, by analysis alone.

For the embedded captioned set: `suffuse_image.look` reads each attribute back. Captions of combinations that were never
trained on are counted apart, and so are captions swapped among the samples, which show what chance would score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from suffuse.data import Data
from suffuse.errors import DataError
from suffuse.text import captions_of
from torch import Tensor

from suffuse_image.grammar import KINDS, Scene, by_caption
from suffuse_image.look import Seen, look

__all__ = ["Attributes", "figures", "right"]


class Attributes:
    """Figures of samples drawn for captions of the embedded captioned set.

    - ``right_KIND``: share of the samples with every attribute right, of combinations in the training set; the kinds
      are one, several and pair.
    - ``held_out_KIND``: the same for combinations that were never trained on.
    - ``swapped_KIND``: the same when captions are dealt out anew within a kind; what a model deaf to them would score.
    - ``right_NAME``: by attribute, of all samples that were asked for it.
    - ``error``: median difference of a sample's objects to clean drawings of them, of pixels in [0, 1].
    - ``grain``: median deviation of the background.
    - ``right_real``, ``error_real``, ``grain_real``: of held-out items.

    Arguments:
        seed: Seed of the swapping.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures.

        Arguments:
            samples: Pictures (N, 3, H, W) in [0, 1].
            cond: Conditions of the samples, with ``text``.
            data: The data of the run.

        Raises:
            DataError: When no caption is one of the grammar's.
        """
        found = _asked(samples, captions_of(cond["text"])) if "text" in cond else []
        if not found:
            raise DataError("metrics: no caption is one of the embedded set's; use metrics=image/features")
        result = figures([scene for scene, _ in found], [look(x, scene.kind) for scene, x in found], self.seed)
        items = data.sample(200, held_out=True)
        real = _asked([item["x"] for item in items], [captions_of(item["cond"]["text"][None])[0] for item in items])
        seen = [look(x, scene.kind) for scene, x in real]
        share = float(np.mean([right(scene, s).all() for (scene, _), s in zip(real, seen, strict=True)]))
        whole = {f"{name}_real": _median(seen, name) for name in ("error", "grain")}
        return result | {"right_real": share} | whole


def right(scene: Scene, seen: Seen) -> np.ndarray[Any, Any]:
    """Return which attributes of a scene are seen; a pair may be told from either end."""
    told = [scene] if scene.kind != "pair" else [scene, scene.turned]
    return np.asarray(max((np.equal(seen.values, one.values) for one in told), key=np.sum))


def figures(asked: list[Scene], seen: list[Seen], seed: int = 0) -> dict[str, float]:
    """Return the figures of scenes that were asked for and what is seen in the pictures."""
    hits = [right(scene, s) for scene, s in zip(asked, seen, strict=True)]
    whole = np.array([hit.all() for hit in hits])
    kinds = np.array([scene.kind for scene in asked])
    new = np.array([scene.held_out for scene in asked])
    found: dict[str, float] = {}
    for kind in KINDS:
        for name, mask in (("right", ~new), ("held_out", new)):
            if (mask & (kinds == kind)).any():
                found[f"{name}_{kind}"] = float(whole[mask & (kinds == kind)].mean())
        here = np.flatnonzero(kinds == kind)
        if len(here) > 1:
            order = np.random.default_rng(seed).permutation(here)
            swapped = [right(asked[int(i)], seen[int(j)]).all() for i, j in zip(here, order, strict=True)]
            found[f"swapped_{kind}"] = float(np.mean(swapped))
    for name in ("count", "colour", "shape", "size", "place", "relation"):
        values = [
            hit[[i for i, n in enumerate(Scene.NAMES[scene.kind]) if n == name]].all()
            for scene, hit in zip(asked, hits, strict=True) if name in Scene.NAMES[scene.kind]
        ]  # fmt: skip
        if values:
            found[f"right_{name}"] = float(np.mean(values))
    return found | {name: _median(seen, name) for name in ("error", "grain")}


def _median(seen: list[Seen], name: str) -> float:
    return float(np.median([getattr(s, name) for s in seen]))


def _asked(samples: Any, captions: list[str]) -> list[tuple[Scene, np.ndarray[Any, Any]]]:
    known = by_caption()
    return [(known[caption], x.cpu().numpy()) for x, caption in zip(samples, captions, strict=True) if caption in known]
