r"""Likeness: how near a set of clouds is to another, over whole sets.

"Learning Representations and Generative Models for 3D Point Clouds", Achlioptas et al. 2018, section 4: minimum
matching distance (mean over the reference of the distance to its nearest sample), coverage (share of the reference that
is the nearest one of some sample), Jensen-Shannon divergence of where points are. "PointFlow", Yang et al. 2019,
section 4.2: accuracy of a leave-one-out nearest neighbour in telling both sets apart, one half at best. For distances D
(samples by reference):

    MMD = mean_r min_s D(s, r),   COV = |{argmin_r D(s, r)}| / R,   JSD(P, Q) = H((P + Q) / 2) - (H(P) + H(Q)) / 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from suffuse.data import Data
from suffuse.errors import ConfigError, DataError, check_whole
from torch import Tensor

from suffuse_shapes.metrics.distances import DISTANCES, pairwise

__all__ = ["Likeness", "coverage", "divergence", "matching", "nearest"]


def matching(across: Tensor) -> float:
    """Return the minimum matching distance of distances (S, R)."""
    return float(across.amin(0).mean())


def coverage(across: Tensor) -> float:
    """Return the coverage of distances (S, R)."""
    return len(across.argmin(1).unique()) / across.shape[1]


def nearest(within: Tensor, across: Tensor, reference: Tensor) -> float:
    """Return the leave-one-out accuracy of the nearest neighbour, 1/2 where both sets are alike.

    Arguments:
        within: Distances of the samples among themselves, (S, S).
        across: Distances of samples to the reference, (S, R).
        reference: Distances of the reference among itself, (R, R).
    """
    whole = torch.cat([torch.cat([within, across], 1), torch.cat([across.T, reference], 1)])
    whole = whole.clone().fill_diagonal_(torch.inf)
    mine = torch.arange(len(whole), device=whole.device) < len(within)
    return float((mine[whole.argmin(1)] == mine).double().mean())


def divergence(xs: Tensor, ys: Tensor, cells: int = 28, extent: float = 1.0) -> float:
    """Return the Jensen-Shannon divergence, in nats, of the share of all points in each cell of a grid.

    Arguments:
        xs: Clouds (S, N, 3).
        ys: Clouds (R, M, 3).
        cells: Cells along each axis.
        extent: The grid spans [-extent, extent]; what lies outside counts in its outermost cells.
    """

    def shares(clouds: Tensor) -> Tensor:
        place = ((clouds.reshape(-1, 3) / extent + 1) / 2 * cells).floor().long().clamp(0, cells - 1)
        index = (place[:, 0] * cells + place[:, 1]) * cells + place[:, 2]
        count = torch.bincount(index, minlength=cells**3).double()
        return count / count.sum()

    def entropy(p: Tensor) -> Tensor:
        return -torch.special.xlogy(p, p).sum()

    p, q = shares(xs), shares(ys)
    return float(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2)


class Likeness:
    """``mmd``, ``coverage``, ``1nna`` and ``jsd`` of samples to held-out clouds, and of as many training clouds.

    The name of the distance is part of the figure's: ``mmd_chamfer``. ``…_real`` is what training clouds score, which
    is what a perfect model would.

    Arguments:
        distance: ``chamfer`` or ``emd``.
        limit: Most clouds of a set that are compared; time grows with its square.
        points: Most points of a cloud that are compared; time grows with its square, of ``emd`` faster.

    Raises:
        ConfigError: For an unknown distance, or a number below 1.
    """

    def __init__(self, distance: str = "chamfer", limit: int = 200, points: int = 2048) -> None:
        if distance not in DISTANCES:
            raise ConfigError(f"metrics.distance={distance} must be one of {', '.join(DISTANCES)}")
        for name, value in (("limit", limit), ("points", points)):
            check_whole(f"metrics.{name}", value)
        self.distance, self.limit, self.points = distance, limit, points

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of clouds (K, C, N) drawn for the conditions `cond`.

        Raises:
            DataError: With fewer than two clouds in a set.
        """
        held = self._taken([item["x"] for item in data.sample(self.limit, held_out=True)])
        real = self._taken([item["x"] for item in data.sample(len(held))])
        return self.compare(self._taken(list(samples[: self.limit].cpu())), held, real)

    def compare(self, drawn: Tensor, held: Tensor, real: Tensor | None = None) -> dict[str, float]:
        """Return the figures of clouds (S, N, 3) beside a reference (R, N, 3), and of other real ones."""
        if min(len(drawn), len(held)) < 2:
            raise DataError("metrics: fewer than two clouds to compare; raise metrics_num or add held-out shapes")
        reference = pairwise(held, held, self.distance)
        figures: dict[str, float] = {}
        for end, clouds in (("", drawn), ("_real", real)):
            if clouds is None or len(clouds) < 2:
                continue
            across = pairwise(clouds, held, self.distance)
            name = self.distance
            figures |= {
                f"mmd_{name}{end}": matching(across),
                f"coverage_{name}{end}": coverage(across),
                f"1nna_{name}{end}": nearest(pairwise(clouds, clouds, self.distance), across, reference),
                f"jsd{end}": divergence(clouds, held),
            }
        return figures

    def _taken(self, clouds: list[Tensor]) -> Tensor:
        """Return coordinates (K, N, 3) of at most `points` points."""
        if not clouds:
            return torch.zeros(0, 1, 3)
        count = min(self.points, min(cloud.shape[-1] for cloud in clouds))
        taken = []
        for cloud in clouds:
            order = torch.randperm(cloud.shape[-1], generator=torch.Generator().manual_seed(0))[:count]
            taken.append(cloud[:3, order].T.float().nan_to_num())
        return torch.stack(taken)
