"""Attributes: the share of clouds that show what their caption says, by analysis alone.

For the embedded set: `suffuse_shapes.reading` reads each attribute back. Captions of combinations that were never
trained on are counted apart, and so are captions swapped among the samples, which show what chance would score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from suffuse.data import Data
from suffuse.errors import DataError
from suffuse.text import captions_of
from torch import Tensor

from suffuse_shapes.data.solids import scan
from suffuse_shapes.grammar import Scene, held_out, parse
from suffuse_shapes.metrics.likeness import Likeness
from suffuse_shapes.reading import Seen, read

__all__ = ["Attributes", "figures"]


class Attributes:
    """Figures of samples drawn for captions of the embedded set.

    - ``right``: share of the samples with every attribute right, of combinations in the training set.
    - ``right_held_out``: the same for combinations that were never trained on.
    - ``right_swapped``: the same when captions are dealt out anew; what a model deaf to them would score.
    - ``right_one``, ``right_two``: the same for scenes of one and of two parts, seen or not.
    - ``right_NAME``: by attribute: colour, solid, form (of single parts), relation (of two).
    - ``residual``: median over the samples of the mean distance of points to their surfaces.
    - ``missing``: median of the mean distance of surfaces to their points.
    - ``…_real``: the same of clouds scanned for the same captions, and ``1nna_chamfer`` against them.

    Arguments:
        likeness: Compare with real clouds as sets, too.
        seed: Seed of the swapping and of the real clouds.
    """

    def __init__(self, likeness: bool = True, seed: int = 0) -> None:
        self.likeness, self.seed = likeness, seed

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures.

        Arguments:
            samples: Clouds (K, C, N).
            cond: Conditions of the samples, with ``text``.
            data: The data of the run.

        Raises:
            DataError: When no caption is one of the grammar's.
        """
        captions = captions_of(cond["text"]) if "text" in cond else []
        asked = [(scene, x) for text, x in zip(captions, samples, strict=True) if (scene := parse(text)) is not None]
        if not asked:
            raise DataError("metrics: no caption is one of the embedded set's; use metrics=shapes/likeness")
        scenes = [scene for scene, _ in asked]
        drawn = torch.stack([x for _, x in asked]).cpu()
        noise = float(getattr(data, "noise", 0.0))
        real = torch.stack([
            torch.from_numpy(scan(scene, samples.shape[-1], noise, np.random.default_rng([self.seed, i])))
            for i, scene in enumerate(scenes)
        ])  # fmt: skip
        found = figures(scenes, read(drawn[:, :6]), self.seed)
        of_real = figures(scenes, read(real), self.seed)
        found |= {f"{k}_real": of_real[k] for k in ("right", "residual", "missing") if k in of_real}
        if self.likeness and len(drawn) > 1:
            found |= Likeness().compare(drawn[:, :3].transpose(1, 2).float(), real[:, :3].transpose(1, 2))
        return found


def figures(asked: list[Scene], seen: list[Seen], seed: int = 0) -> dict[str, float]:
    """Return the figures of scenes that were asked for and what is seen in them."""
    agreed = [s.agrees(scene) for scene, s in zip(asked, seen, strict=True)]
    right = np.array([all(values.values()) for values in agreed])
    new = np.array([held_out(scene) for scene in asked])
    two = np.array([scene.second is not None for scene in asked])
    found: dict[str, float] = {}
    groups: tuple[tuple[str, Any], ...] = (
        ("right", ~new), ("right_held_out", new), ("right_one", ~two), ("right_two", two),
    )  # fmt: skip
    for name, mask in groups:
        if mask.any():
            found[name] = float(right[mask].mean())
    order = np.random.default_rng(seed).permutation(len(asked))
    found["right_swapped"] = float(np.mean([all(seen[i].agrees(asked[int(j)]).values()) for i, j in enumerate(order)]))
    for name in ("colour", "solid", "form", "relation"):
        values = [value[name] for value in agreed if name in value]
        if values:
            found[f"right_{name}"] = float(np.mean(values))
    found["residual"] = float(np.median([s.residual for s in seen]))
    found["missing"] = float(np.median([np.mean([p.missing for p in s.parts]) if s.parts else np.inf for s in seen]))
    return found
