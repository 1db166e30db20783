r"""Categorical processes: tokens 0 … K-1 that turn into a mask or into any token.

With alpha_t the probability that a token is still itself (see `suffuse.rates`) and alpha_{t|s} = alpha_t / alpha_s,

    Masked:   q(x_t | x_0) = alpha_t [x_t = x_0] + (1 - alpha_t) [x_t = mask]
    Uniform:  q(x_t | x_0) = alpha_t [x_t = x_0] + (1 - alpha_t) / K

The denoiser predicts p(x_0 | x_t) as logits, and one reverse step from t to s draws from the exact posterior
sum_{x_0} q(x_s | x_t, x_0) p(x_0 | x_t). "Structured Denoising Diffusion Models in Discrete State-Spaces", Austin et
al. 2021, eq. 3; "Simple and Effective Masked Diffusion Language Models", Sahoo et al. 2024, eq. 5 and 10.

Draws are in two stages, first whether a token moves and then where to: a race of all K tokens in float32 would lose
moves of small probability. Tokens are int64 of shape (B, ...); the mask is the token K.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.process import Process
from suffuse.rates import LogLinear
from suffuse.schedule import Schedule

__all__ = ["Categorical", "Masked", "Uniform", "choose", "limited", "scales"]


@dataclass(frozen=True)
class Categorical(Process):
    """A process on tokens.

    Arguments:
        schedule: Its alpha is the probability that a token is still itself.
        space: Geometry of the field.
        classes: K, number of tokens.
        loss: ``nelbo``, the negative evidence bound in nats per token where times are uniform, or ``ce``, the
            cross-entropy without its weight.

    Raises:
        ConfigError: For fewer than 2 classes or another loss.
    """

    schedule: Schedule = field(default_factory=LogLinear)
    classes: int = 2
    loss: str = "nelbo"

    def __post_init__(self) -> None:
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or self.classes < 2:
            raise ConfigError(f"process.classes={self.classes} must be a whole number of at least 2")
        if self.loss not in ("nelbo", "ce"):
            raise ConfigError(f"process.loss={self.loss} is neither 'nelbo' nor 'ce'")

    def draw(self, like: Tensor, noise: KeyedNoise, step: int, stream: int = 0) -> Tensor:
        """Return two uniform numbers per token, float32, shape (*like.shape, 2)."""
        two = torch.empty(*like.shape, 2, device=like.device)
        keyed, shape = self.space.keyed(noise, two)
        return self.space.white(self.space.placed(keyed.uniform(two.new_empty(shape), step, stream), two))

    def corrupt(self, x0: Tensor, t: float | Tensor, eps: Tensor, source: Tensor | None = None) -> Tensor:
        """Return x_t given x_0; `source`, where given, takes the place of the noise tokens."""
        return self._moved(x0, self.schedule(t).alpha, eps, source)

    def transition(self, x_s: Tensor, s: float | Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """Return x_t given x_s."""
        return self._moved(x_s, self.schedule(t).alpha / self.schedule(s).alpha, eps, None)

    def prior(self, like: Tensor, eps: Tensor, t: float | Tensor = 1.0) -> Tensor:
        """Return tokens of pure noise; what alpha at t would keep is what the schedule's end makes small."""
        return self.space.project(self.noise_tokens(like, eps))

    def _moved(self, x: Tensor, keep: Tensor, eps: Tensor, source: Tensor | None) -> Tensor:
        stays = eps[..., 0].double() < self.space.expand(keep.to(x.device), x)
        noise = self.noise_tokens(x, eps) if source is None else source
        return self.space.project(torch.where(stays, x, noise))

    @abstractmethod
    def noise_tokens(self, like: Tensor, eps: Tensor) -> Tensor:
        """Return what tokens turn into."""

    @abstractmethod
    def moves(self, x: Tensor, logits: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability that a token changes from t to s, (B, ...), and of what it changes to, (B, ..., K).

        The second sums to one over K; both are float64.
        """

    @abstractmethod
    def nelbo(self, x0: Tensor, x: Tensor, logits: Tensor, t: Tensor) -> Tensor:
        """Return the integrand of the negative evidence bound over t in [0, 1], nats, one per token, float32."""

    def errors(self, x0: Tensor, x: Tensor, logits: Tensor, t: Tensor) -> Tensor:
        """Return the loss of every token, float32, shaped like x0."""
        if self.loss == "nelbo":
            return self.nelbo(x0, x, logits, t)
        return -torch.log_softmax(logits.float(), -1).gather(-1, x0[..., None])[..., 0]

    def _rates(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and -d alpha / dt against a field, float64."""
        alpha, rate = self.schedule(t).alpha, -self.schedule.rates(t).alpha
        return self.space.expand(alpha.to(like.device), like), self.space.expand(rate.to(like.device), like)


@dataclass(frozen=True)
class Masked(Categorical):
    """Tokens turn into the mask K and, backwards, out of it once; one that is no mask stays."""

    def noise_tokens(self, like: Tensor, eps: Tensor) -> Tensor:
        """Return the mask."""
        return torch.full_like(like, self.classes)

    def moves(self, x: Tensor, logits: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha_s - alpha_t) / (1 - alpha_t) where there is a mask, and p(x_0 | x_t)."""
        share = (alpha_s - alpha_t) / (1 - alpha_t).clamp(min=1e-300)
        moved = torch.where(x == self.classes, share, torch.zeros_like(share))
        return moved, torch.softmax(logits.double(), -1)

    def nelbo(self, x0: Tensor, x: Tensor, logits: Tensor, t: Tensor) -> Tensor:
        """Return -alpha'/(1 - alpha) times the cross-entropy where there is a mask. Sahoo et al. 2024, eq. 10."""
        alpha, rate = self._rates(t, x0)
        entropy = -torch.log_softmax(logits.float(), -1).gather(-1, x0[..., None])[..., 0]
        weight = (rate / (1 - alpha).clamp(min=1e-12)).float()
        return torch.where(x == self.classes, weight * entropy, torch.zeros_like(entropy))


@dataclass(frozen=True)
class Uniform(Categorical):
    """Tokens turn into any token, themselves included, and may do so again."""

    def noise_tokens(self, like: Tensor, eps: Tensor) -> Tensor:
        """Return uniform tokens."""
        return (eps[..., 1].double() * self.classes).long().clamp(max=self.classes - 1).to(like.dtype)

    def moves(self, x: Tensor, logits: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the exact posterior's probability of another token, and of which."""
        here = torch.nn.functional.one_hot(x, self.classes).double()
        alpha_t, alpha_s = alpha_t[..., None], alpha_s[..., None]
        k, between = self.classes, alpha_t / alpha_s.clamp(min=1e-300)
        # sum over x_0 of p(x_0) q(x_s | x_0) / q(x_t | x_0), for every x_s.
        share = torch.softmax(logits.double(), -1) / (alpha_t * here + (1 - alpha_t) / k).clamp(min=1e-300)
        after = alpha_s * share + (1 - alpha_s) / k * share.sum(-1, keepdim=True)
        # Only tokens other than x_t: what stays is one minus these, so a small move keeps its digits.
        others = (1 - between) / k * after * (1 - here)
        moved = others.sum(-1)
        even = (1 - here) / (k - 1)
        found = torch.where(moved[..., None] > 0, others / moved[..., None].clamp(min=1e-300), even)
        return moved.clamp(max=1.0), found

    def nelbo(self, x0: Tensor, x: Tensor, logits: Tensor, t: Tensor) -> Tensor:
        r"""Return the integrand of "A Continuous Time Framework for Discrete Denoising Models", Campbell et al. 2022.

        Proposition 2: with i = x_t and, for another token j, the ratio rho_j = q(j | x_0) / q(i | x_0) and the
        predicted r_j = sum_k p(k) q(j | k) / q(i | k), it is

            -alpha' / (K alpha) sum_{j != i} [rho_j log(rho_j / r_j) - rho_j + r_j].
        """
        alpha, rate = (value[..., None] for value in self._rates(t, x0))
        k = self.classes
        here = torch.nn.functional.one_hot(x, k).double()
        clean = torch.nn.functional.one_hot(x0, k).double()
        shares = torch.softmax(logits.double(), -1)
        none = (1 - alpha).clamp(min=1e-12)  # K times the probability of a token that x_0 is not
        rho = (none + k * alpha * clean) / (none + k * alpha * (clean * here).sum(-1, keepdim=True))
        r = none * (shares / (none + k * alpha * here)).sum(-1, keepdim=True) + k * alpha * shares / none
        terms = rho * (rho / r).log() - rho + r
        total = (terms * (1 - here)).sum(-1)
        return (rate[..., 0] / (k * alpha[..., 0].clamp(min=1e-6)) * total).float()


def choose(shares: Tensor, u: Tensor) -> Tensor:
    """Return one token per place by the inverse of the distribution function.

    Arguments:
        shares: Probabilities, shape (..., K), float64, summing to one.
        u: Uniform numbers, shape (...).
    """
    cumulative = shares.cumsum(-1)
    total = cumulative[..., -1:]
    return (cumulative < u.double()[..., None] * total).sum(-1).clamp(max=shares.shape[-1] - 1)


def limited(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Return logits with their temperature, without what top-k or top-p leaves out."""
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p is not None and top_p < 1:
        ranked, order = logits.sort(-1, descending=True)
        before = torch.softmax(ranked, -1).cumsum(-1) - torch.softmax(ranked, -1)
        ranked = ranked.masked_fill(before >= top_p, -math.inf)
        logits = torch.full_like(logits, -math.inf).scatter(-1, order, ranked)
    return logits


def scales(value: Any, process: Process, like: Tensor) -> Tensor:
    """Return a coefficient of a row, a number or (1, T), against a field, float64, of its shape."""
    if isinstance(value, float):  # filled on the device: nothing is copied there
        return torch.full(like.shape, value, dtype=torch.float64, device=like.device)
    tensor = value.to(like.device, torch.float64)
    return process.space.expand(tensor.expand(like.shape[0], -1), like).expand(like.shape)
