"""Fréchet distance between two Gaussians fitted to features.

    d² = |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^(1/2))

for means m and covariances S. Source: M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a
Local Nash Equilibrium" (2017), equation 6, after D. Dowson and B. Landau, "The Fréchet distance between multivariate
normal distributions" (1982). With S = R^T R from a QR decomposition of the centred features, the trace of the root is
the sum of the singular values of R1 R2^T: no covariance is formed, so none of its digits are lost, and features may
outnumber the samples. All of it is float64.
"""

from __future__ import annotations

import torch

__all__ = ["frechet"]


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
