r"""Distances between clouds, in torch and scipy, with no compiled extension.

Chamfer: mean over a of min over b of |a - b|^2, plus the same the other way round ("A Point Set Generation Network",
Fan et al. 2017, eq. 1, means in the place of sums). Earth mover's: min over one-to-one phi of the mean of |a - phi(a)|
(eq. 2), exact by assignment ("On implementing 2D rectangular assignment algorithms", Crouse 2016) up to `EXACT` points;
above that, and for clouds of unequal size, by entropy-regularised transport ("Sinkhorn Distances", Cuturi 2013) in the
log domain, its regularisation lowered in steps, and rounded to a transport ("Near-linear time approximation algorithms
for optimal transport", Altschuler et al. 2017, algorithm 2), so that it is never below the true distance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from suffuse.errors import ConfigError, suggest
from torch import Tensor

__all__ = ["DISTANCES", "EXACT", "chamfer", "emd", "pairwise", "sinkhorn"]

EXACT = 2048
"""Points up to which the earth mover's distance is exact."""
_CELLS = 2**24
"""Numbers of a table of distances that are held at a time."""


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Return the Chamfer distance of clouds, (B,).

    Arguments:
        a: Shape (B, N, 3).
        b: Shape (B, M, 3).
    """
    forth = torch.full(a.shape[:2], torch.inf, dtype=a.dtype, device=a.device)
    back = []
    for part in b.split(max(1, _CELLS // max(1, a.shape[0] * a.shape[1])), 1):
        square = torch.cdist(a, part, compute_mode="donot_use_mm_for_euclid_dist").square()
        forth = torch.minimum(forth, square.amin(2))
        back.append(square.amin(1))
    return forth.mean(1) + torch.cat(back, 1).mean(1)


def emd(a: Tensor, b: Tensor) -> Tensor:
    """Return the earth mover's distance of clouds, (B,): a mean distance per point.

    Arguments:
        a: Shape (B, N, 3).
        b: Shape (B, M, 3); exact for M = N up to `EXACT`.
    """
    if a.shape[1] != b.shape[1] or a.shape[1] > EXACT:
        return torch.stack([sinkhorn(x, y) for x, y in zip(a, b, strict=True)])
    from scipy.optimize import linear_sum_assignment

    found = []
    for x, y in zip(a, b, strict=True):
        cost = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
        rows, columns = linear_sum_assignment(cost)
        found.append(float(cost[rows, columns].mean()))
    return torch.tensor(found, dtype=a.dtype, device=a.device)


def sinkhorn(a: Tensor, b: Tensor, last: float = 0.003, steps: int = 30) -> Tensor:
    """Return the cost of a near-optimal transport between two clouds, shape ().

    Arguments:
        a: Shape (N, 3), with weights 1/N.
        b: Shape (M, 3), with weights 1/M.
        last: Regularisation at the end, as a share of the mean distance; each stage halves it from 1.
        steps: Iterations of each stage.
    """
    cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    scale = cost.mean().clamp(min=1e-12)
    f, g = a.new_zeros(len(a)), b.new_zeros(len(b))
    log_a, log_b = -np.log(len(a)), -np.log(len(b))
    epsilon = 1.0
    while True:
        e = float(epsilon) * scale
        for _ in range(steps):
            f = -e * torch.logsumexp((g - cost) / e + log_b, 1)
            g = -e * torch.logsumexp((f[:, None] - cost) / e + log_a, 0)
        if epsilon <= last:
            break
        epsilon = max(epsilon / 2, last)
    plan = ((f[:, None] + g - cost) / e + log_a + log_b).exp()
    plan = plan * (1 / len(a) / plan.sum(1).clamp(min=1e-30)).clamp(max=1)[:, None]
    plan = plan * (1 / len(b) / plan.sum(0).clamp(min=1e-30)).clamp(max=1)
    short_a, short_b = 1 / len(a) - plan.sum(1), 1 / len(b) - plan.sum(0)
    missing = short_a.sum()
    if missing > 0:
        plan = plan + short_a[:, None] * short_b / missing
    return (plan * cost).sum()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"chamfer": chamfer, "emd": emd}


def pairwise(xs: Tensor, ys: Tensor, kind: str = "chamfer") -> Tensor:
    """Return the distances of every cloud of `xs` to every one of `ys`, (K, L).

    Arguments:
        xs: Shape (K, N, 3).
        ys: Shape (L, M, 3).
        kind: ``chamfer`` or ``emd``.

    Raises:
        ConfigError: For another kind.
    """
    if kind not in DISTANCES:
        raise ConfigError(f"metrics.distance={kind}: no such distance{suggest(kind, DISTANCES, listing='distances')}")
    distance, rows = DISTANCES[kind], []
    for x in xs:
        parts = ys.split(max(1, _CELLS // max(1, len(x) * ys.shape[1])))
        rows.append(torch.cat([distance(x.expand(len(part), -1, -1), part) for part in parts]))
    return torch.stack(rows) if rows else xs.new_zeros(0, len(ys))
