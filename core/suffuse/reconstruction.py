r"""Reconstruction: what training an autoencoder minimises.

    L = E_{z ~ q(z | x)} [ l1 |x - x'| + l2 |x - x'|^2 + sum_k w_k d_k(x', x) ] + kl KL(q(z | x) || N(0, 1)),

x' = decode(z), all means over entries ("Auto-Encoding Variational Bayes", Kingma and Welling 2014, eq. 7, weighted).
The distances d_k are the modality's: spectra of a sound, features of a picture. Against a discriminator D, where one is
wanted, hinge losses ("Geometric GAN", Lim and Ye 2017) are added: the decoder's -w E D(x'), and D's own, whose
gradient reaches D alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse.errors import ConfigError
from suffuse.nn.autoencoder import PatchDiscriminator

__all__ = ["Adversarial", "Reconstruction", "Term"]


class Term(nn.Module):
    """A distance of a modality's own, called with (x', x) and returning one number per row, shape (B,).

    States are compared divided by their deviation, which is its `scale`.

    Arguments:
        weight: w of the sum.

    Raises:
        ConfigError: When `weight` is no finite number of at least 0.
    """

    scale: float = 1.0

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = _weight("weight", weight)


class Adversarial(nn.Module):
    """Hinge losses of a discriminator that is trained along.

    Arguments:
        shape: Shape (C, *spatial) of a state.
        weight: w of the decoder's part.
        start: Micro-batch from which the decoder hears of it; the discriminator learns from the first.
        width: Channels of the discriminator's first layer.
        depth: Its layers.
    """

    def __init__(
        self, shape: Sequence[int], weight: float = 0.1, start: int = 0, width: int = 32, depth: int = 3
    ) -> None:
        super().__init__()
        self.weight, self.start = _weight("weight", weight), start
        self.discriminator = PatchDiscriminator(shape, width, depth)

    def forward(self, drawn: Tensor, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the decoder's loss and the discriminator's, each (B,)."""
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = torch.func.functional_call(self.discriminator, frozen, (drawn,)).mean(1)
        weight = self.weight if step >= self.start else 0.0
        real, made = self.discriminator(x), self.discriminator(drawn.detach())
        return -weight * fooled, F.relu(1 - real).mean(1) + F.relu(1 + made).mean(1)


class Reconstruction(nn.Module):
    """Weighted sum of distances and of the bottleneck's cost.

    Arguments:
        l1: Weight of the absolute error.
        l2: Weight of the squared error.
        kl: Weight of the divergence, a mean over the latent's entries.
        terms: The modality's distances by name, each a `Term`.
        adversarial: An `Adversarial`, made for the state's shape; None for none.

    Raises:
        ConfigError: For weights that are no finite numbers of at least 0, or when nothing compares x' with x.
    """

    def __init__(
        self, l1: float = 1.0, l2: float = 0.0, kl: float = 1e-4, terms: Mapping[str, Term] | None = None,
        adversarial: Any = None, shape: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.l1, self.l2, self.kl = _weight("l1", l1), _weight("l2", l2), _weight("kl", kl)
        self.terms = nn.ModuleDict(dict(terms or {}))
        if not (self.l1 or self.l2 or any(term.weight for term in self.terms.values())):
            raise ConfigError("objective: every distance has the weight 0, so there is nothing to train")
        self.adversarial: Adversarial | None = None if adversarial is None else adversarial(shape=shape)

    def forward(self, drawn: Tensor, x: Tensor, mean: Tensor, log_var: Tensor, step: int = 0) -> tuple[Tensor, Tensor]:
        """Return the loss of each row, and what the discriminator adds to it, each (B,).

        Arguments:
            drawn: x', shape (B, ...).
            x: Shape (B, ...).
            mean: Of q, shape (B, ...).
            log_var: Of q, shaped like `mean`.
            step: Micro-batch.
        """
        away = (drawn - x).flatten(1)
        loss = self.l1 * away.abs().mean(1) + self.l2 * away.square().mean(1)
        loss = loss + self.kl * divergence(mean, log_var)
        for term in self.terms.values():
            loss = loss + term.weight * term(drawn, x)
        if self.adversarial is None:
            return loss, torch.zeros_like(loss)
        fooled, own = self.adversarial(drawn, x, step)
        return loss, fooled + own


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || N(0, 1)) of each row, a mean over its entries, shape (B,)."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).mean(1)


def _weight(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"objective: {name}={value} must be a number of at least 0")
    return float(value)
