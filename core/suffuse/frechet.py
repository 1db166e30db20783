"""Fréchet distance between two Gaussians fitted to features.

    d² = |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^(1/2))

for means m and covariances S. Source: M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a
Local Nash Equilibrium" (2017), equation 6, after D. Dowson and B. Landau, "The Fréchet distance between multivariate
normal distributions" (1982). With S = R^T R from a QR decomposition of the centred features, the trace of the root is
the sum of the singular values of R1 R2^T: no covariance is formed, so none of its digits are lost, and features may
outnumber the samples. All of it is float64.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from suffuse.data import Data, spaced
from suffuse.errors import DataError

__all__ = ["beside_real", "frechet"]

_log = logging.getLogger(__name__)


def beside_real(
    name: str, features: Callable[[Sequence[Any]], torch.Tensor], samples: Sequence[Any], data: Data,
    item: Callable[[Any], Any], reference: int, batch: int, what: str,
) -> dict[str, float]:  # fmt: skip
    """Return ``NAME``, the distance of samples to training items, ``NAME_real``, that of held-out items, ``NAME_num``.

    Arguments:
        name: What the figures are called.
        features: Of some samples or items, shape (K, D).
        samples: The samples.
        data: Of the run.
        item: What `features` takes of an item's ``x``.
        reference: Training items that are looked at, evenly spaced.
        batch: Items that are read at a time.
        what: Their name, for messages.

    Raises:
        DataError: With fewer than two samples or held-out items.
    """
    held: Any = data.val
    count = min(len(samples), len(held))
    if count < 2:
        raise DataError(f"metrics: {count} {what} are too few for a distance; raise metrics_num or hold out more")

    def real(split: Any, number: int) -> torch.Tensor:
        chosen = spaced(len(split), number)
        parts = [[item(split[k]["x"]) for k in chosen[i : i + batch]] for i in range(0, len(chosen), batch)]
        return torch.cat([features(part) for part in parts])

    of_train = real(data.train, reference)
    _log.info("metrics: Fréchet distances of %d %s to %d training items", count, what, len(of_train))
    return {
        name: frechet(features(samples[:count]), of_train),
        f"{name}_real": frechet(real(held, count), of_train),
        f"{name}_num": float(count),
    }


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return d² between two sets of features.

    Arguments:
        a: Features, shape (N, D), N ≥ 2.
        b: Features, shape (M, D), M ≥ 2.

    Raises:
        ValueError: When there are fewer than two rows, or a value is not finite.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a covariance needs at least two rows")
    mean_a, root_a = _fit(a)
    mean_b, root_b = _fit(b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def _fit(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean, and R with R^T R the unbiased covariance."""
    x = x.double().cpu()
    if not torch.isfinite(x).all():
        raise ValueError("features that are not finite have no mean")
    mean = x.mean(0)
    return mean, torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r").R
