r"""Targets: distributions whose denoiser is known, against which samplers and losses are measured.

For x_t = alpha x_0 + sigma eps and a Gaussian x_0 ~ N(m, c I) the posterior mean is

    E[x_0 | x_t] = m + alpha c / (alpha^2 c + sigma^2) (x_t - alpha m),

and the probability-flow ODE moves (x_t - alpha_t m) / sqrt(alpha_t^2 c + sigma_t^2) along unchanged. A mixture weights
the components' posterior means by their responsibilities p(k | x_t). States have the shape (B, D).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gaussian", "GaussianMixture"]


@dataclass(frozen=True)
class Gaussian:
    """N(mean, diag(variance)).

    Arguments:
        mean: Shape (D,).
        variance: Shape (D,).
    """

    mean: Tensor
    variance: Tensor

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x_t = x]; alpha and sigma broadcast against x."""
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return self.mean + gain * (x - alpha * self.mean)

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return log p_t(x), shape (B,)."""
        total = (alpha**2 * self.variance + sigma**2).expand_as(x)
        return -0.5 * ((x - alpha * self.mean) ** 2 / total + (2 * torch.pi * total).log()).sum(-1)

    def flow(self, x: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
        """Return where the probability-flow ODE takes x from (alpha, sigma) `start` to `end`: exact."""
        before = (start[0] ** 2 * self.variance + start[1] ** 2).sqrt()
        after = (end[0] ** 2 * self.variance + end[1] ** 2).sqrt()
        return end[0] * self.mean + after / before * (x - start[0] * self.mean)


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k weight_k N(mean_k, variance_k I).

    Arguments:
        means: Shape (K, D).
        variances: Shape (K,).
        weights: Shape (K,), summing to one.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x_t = x]; alpha and sigma are of shape (), (B, 1) or (1, 1)."""
        alpha, sigma = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        total = alpha**2 * self.variances + sigma**2
        share = torch.softmax(self._joint(x, alpha, total), -1)
        gain = alpha * self.variances / total
        # m_k + gain_k (x - alpha m_k), averaged over k.
        return (share * (1 - gain * alpha)) @ self.means + (share * gain).sum(-1, keepdim=True) * x

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return log p_t(x), shape (B,)."""
        alpha, sigma = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        return torch.logsumexp(self._joint(x, alpha, alpha**2 * self.variances + sigma**2), -1)

    def sample(self, seed: int, count: int) -> Tensor:
        """Return `count` draws, shape (count, D)."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        eps = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[which] + self.variances[which].sqrt()[:, None] * eps

    def _joint(self, x: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
        """Return log weight_k + log N(x; alpha m_k, total_k I), shape (B, K)."""
        square = ((x[:, None] - alpha[..., None] * self.means) ** 2).sum(-1)
        return self.weights.log() - 0.5 * (square / total + x.shape[1] * (2 * torch.pi * total).log())
