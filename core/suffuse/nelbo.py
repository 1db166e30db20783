r"""NELBO: an upper bound of -log p(x_0) of categorical fields, in nats.

    -log p(x_0) <= sum over tokens of \int_0^1 E_{x_t ~ q(x_t | x_0)} [ l(x_0, x_t, p(. | x_t), t) ] dt

with the integrand l of each process (`suffuse.categorical`); the bound is tight when the reverse process is exact. The
schedule must lose everything at t = 1 and nothing at t = 0, or what is left there would have to be added. "Simple and
Effective Masked Diffusion Language Models", Sahoo et al. 2024, eq. 10; Campbell et al. 2022, proposition 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.categorical import Categorical
from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.process import Process, bound, rows, streams
from suffuse.state import State, leaves, map_state

__all__ = ["nelbo"]

TIME_STREAM = 100
"""Noise stream of the times; fields use those below."""


@torch.no_grad()
def nelbo(denoiser: Denoiser, x0: State, cond: Any, noise: KeyedNoise, times: int = 64) -> Tensor:
    """Return an unbiased estimate of the bound per sample, shape (B,), float64.

    Arguments:
        denoiser: Predicts the logits of p(x_0 | x_t).
        x0: Clean tokens, shape (B, ...), or named fields of which every one that is noised is categorical.
        cond: Embedded condition.
        noise: One stream per row.
        times: Times per row, one in each equal share of [0, 1]; as many calls of the denoiser.

    Raises:
        ConfigError: For a field with Gaussian noise (see `suffuse.likelihood`), and fewer than one time.
    """
    if times < 1:
        raise ConfigError(f"nelbo: times={times} must be at least 1")
    process = bound(denoiser.process, x0)
    if any(p.noised and not isinstance(p, Categorical) for p in leaves(process)):
        raise ConfigError("nelbo: a field has Gaussian noise; its density is that of suffuse.likelihood")
    count, device = rows(process, x0), next(leaves(x0)).device
    total = torch.zeros(count, dtype=torch.float64, device=device)
    for i in range(times):
        u = noise.uniform(torch.empty(count, device=device), i, TIME_STREAM).double()
        t = (i + u) / times
        eps = map_state(lambda x, p, k, i=i: p.draw(x, noise, i, k), x0, process, streams(process))
        x = map_state(lambda leaf, e, p, t=t: p.corrupt(leaf, t, e), x0, eps, process)
        logits = denoiser(x, t, cond).x0

        def each(clean: Tensor, noisy: Tensor, found: Tensor, p: Process, t: Tensor = t) -> Tensor:
            if not isinstance(p, Categorical):
                return torch.zeros(count, dtype=torch.float64, device=device)
            integrand = p.nelbo(clean, noisy, p.space.project(found), t)
            return p.space.mean(integrand).double() * p.space.dof(clean).to(device).double()

        fields = map_state(each, x0, x, logits, process)
        total += torch.stack(list(leaves(fields))).sum(0) / times
    return total
