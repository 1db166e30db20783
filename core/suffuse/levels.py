r"""Levels: noise levels of the tokens of one sample, where they may differ.

    t = (t_1, ..., t_T),    each t_i from the objective's density, equal, or 0 for a clean token

A model that is trained on all of them can be sampled with any: the whole at once, a token after the other, or with
given tokens kept clean. "Diffusion Forcing: Next-token Prediction Meets Full-Sequence Diffusion", Chen et al. 2024,
algorithm 1 (independent levels); given tokens are the case that matters for extension and interpolation, so they have a
share of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.space import per_token

__all__ = ["CLEAN", "TokenLevels"]

CLEAN = 15.0
"""Half log-SNR of a clean token."""

STREAM = 110
"""First noise stream of what is drawn here."""


@dataclass(frozen=True)
class TokenLevels:
    """How the levels of a sample's tokens differ in training; the rest of the rows has one level for all.

    Arguments:
        independent: Share of the rows whose tokens all have levels of their own.
        given: Share of the rows of which some tokens are clean and the rest has one level: half of the time those at
            the beginning, a quarter those at both ends, a quarter any.

    Raises:
        ConfigError: Unless both are at least 0 and at most 1 together.
    """

    independent: float = 0.25
    given: float = 0.25

    def __post_init__(self) -> None:
        for name in ("independent", "given"):
            if not 0 <= getattr(self, name) <= 1 - (self.given if name == "independent" else 0.0):
                raise ConfigError(f"objective.tokens.{name}={getattr(self, name)}: two shares, together at most 1")

    def quantiles(
        self, noise: KeyedNoise, step: int, rows: Tensor, count: int, there: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return quantiles of the density for every token, (B, T), and which tokens are clean, boolean (B, T).

        Arguments:
            noise: One stream per row.
            step: Which draw.
            rows: Quantiles of the rows, shape (B,).
            count: Number of tokens T.
            there: Which tokens exist, boolean (B, T), those that do in front; None for all. The others change nothing.
        """
        like = torch.empty(len(rows), count, dtype=rows.dtype, device=rows.device)
        kind, how = (noise.uniform(rows, step, STREAM + i)[:, None] for i in range(2))
        if there is None:
            own, place = (noise.uniform(like, step, STREAM + 2 + i) for i in range(2))
        else:
            # One stream per token: how many there are in the batch must not change a row's numbers.
            tokens, shape = per_token(noise, like, (1,))
            each = like.new_empty(shape)
            own, place = (tokens.uniform(each, step, STREAM + 2 + i).view(like.shape) for i in range(2))
        u = torch.where(kind < self.independent, own, rows[:, None].expand_as(own))
        if there is None:
            there = torch.ones_like(u, dtype=torch.bool)
        many = there.sum(1, keepdim=True).to(rows.dtype)
        # From one to all but one of the tokens are given.
        number = 1 + (noise.uniform(rows, step, STREAM + 4)[:, None] * (many - 1)).floor()
        index = torch.arange(count, device=rows.device, dtype=rows.dtype)[None]
        first = index < number
        before = 1 + ((number - 1) * noise.uniform(rows, step, STREAM + 5)[:, None]).floor()
        ends = (index < before) | (index >= many - (number - before))
        any_of = torch.where(there, place, 2.0).argsort(1).argsort(1) < number
        chosen = torch.where(how < 0.5, first, torch.where(how < 0.75, ends, any_of)) & there & (many > 1)
        return u, chosen & (kind >= self.independent) & (kind < self.independent + self.given)
