"""SetTransformer: a network of clouds that costs linearly in their points and knows no order of them.

Points talk through a few latent tokens: latents read the points, think among themselves, and are read by the points
("Set Transformer", Lee et al. 2019, section 3.1, induced points; several rounds of it as in "Scalable Adaptive
Computation for Iterative Generation", Jabri et al. 2023). Words of a caption sit among the latents. A point enters by
Fourier features of its position ("Fourier Features Let Networks Learn High Frequency Functions", Tancik et al. 2020)
and its colour; noise level and condition modulate its layers (adaLN-zero, "Scalable Diffusion Models with
Transformers", Peebles and Xie 2023). With no position of its own in the list, a permutation of the points permutes the
output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from suffuse.errors import ConfigError
from suffuse.nn.attention import Attention, attended
from suffuse.nn.embed import Embedding, fourier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["Across", "SetTransformer", "feed"]


class Across(nn.Module):
    """Attention of one set to another, with normalised queries and keys."""

    def __init__(self, width: int, context: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, inner), nn.Linear(context, 2 * inner), nn.Linear(inner, width)
        self.q_norm, self.k_norm = (nn.LayerNorm(inner // heads, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what tokens (B, N, width) found in a context (B, T, ·), where its mask (B, T) is true."""
        rows = len(x)
        q = self.q_norm(self.q(x).view(rows, x.shape[1], self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).view(rows, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        where = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(q, self.k_norm(k), v, where)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def _directions() -> Tensor:
    """Return unit vectors (9, 3) along the axes and the diagonals of their planes.

    Latents see means over points. Of features of single axes these are marginals, which say little of how a square
    stands; waves along diagonals are products of both.
    """
    found = [*torch.eye(3).unbind(0)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        for sign in (1.0, -1.0):
            v = torch.zeros(3)
            v[i], v[j] = 0.5**0.5, sign * 0.5**0.5
            found.append(v)
    return torch.stack(found)


def _entrance(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


def feed(width: int, ratio: float) -> nn.Sequential:
    hidden = int(width * ratio)
    return nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))


class _Round(nn.Module):
    """Latents read the points, think, and are read by the points."""

    def __init__(
        self, width: int, latent: int, latents: int, heads: int, inner: int, ratio: float, thoughts: int
    ) -> None:
        super().__init__()
        self.pooled = latents
        self.read = Across(latent, width, heads, inner)
        self.thoughts = nn.ModuleList(_Thought(latent, heads, ratio) for _ in range(thoughts))
        self.write = Across(width, latent, heads, inner)
        self.feed = feed(width, ratio)
        self.norm, self.latent_norm = (nn.LayerNorm(n, elementwise_affine=False, eps=1e-6) for n in (width, latent))
        self.modulate = nn.Linear(latent, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(
        self, h: Tensor, z: Tensor, embedded: Tensor, given: Tensor | None, mask: Tensor | None, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return points and latents.

        Arguments:
            h: Points, (B, N, width).
            z: Latents, (B, T, latent).
            embedded: Noise level and condition, (B, latent).
            given: Points of a given cloud, (B, M, width).
            mask: Which latents exist, (B, T).
            kept: Which of all points, those of the cloud and the given ones, exist, (B, N + M).
        """
        points = self.norm(h)
        z = z + self.read(self.latent_norm(z), points if given is None else torch.cat([points, given], 1), kept)
        for thought in self.thoughts:
            z = thought(z, embedded, mask)
        # What was understood modulates the points too: a function of place and shape together needs products of them.
        known = F.silu(embedded + z[:, : self.pooled].mean(1))
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(known)[:, None].chunk(6, -1)
        h = torch.addcmul(h, gate1, self.write(_moved(points, scale1, shift1), self.latent_norm(z), mask))
        return torch.addcmul(h, gate2, self.feed(_moved(self.norm(h), scale2, shift2))), z


def _moved(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class _Thought(nn.Module):
    """Attention and feed-forward among the latents."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.attention, self.feed = Attention(width, heads), feed(width, ratio)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, z: Tensor, embedded: Tensor, mask: Tensor | None) -> Tensor:
        """Return the latents, (B, T, width)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(embedded)[:, None].chunk(6, -1)
        z = torch.addcmul(z, gate1, self.attention(_moved(self.norm(z), scale1, shift1), mask=mask))
        return torch.addcmul(z, gate2, self.feed(_moved(self.norm(z), scale2, shift2)))


class SetTransformer(nn.Module):
    """Permutation-equivariant transformer of clouds (B, C, N), C at least 3 and the first three x, y, z.

    Arguments:
        shape: Shape (C, N) of a state; N may differ at run time.
        cond_dim: Size of the condition vector.
        context_dim: Size of the tokens of a condition.
        width: Channels of a point.
        latent: Channels of a latent.
        latents: Number of latents.
        depth: Rounds of reading, thinking and writing.
        thoughts: Layers among the latents per round.
        heads: Attention heads.
        ratio: Hidden over outer width of feed-forward layers.
        fourier: Fourier features along each of nine directions.
        highest: Highest angular frequency of a feature, of positions with standard deviation 1.
        checkpointing: Recompute rounds in the backward pass instead of storing them.
        about: Facts of the data; with ``given`` the condition holds a cloud that the latents read as well.

    Raises:
        ConfigError: For arguments that do not fit together; in `forward`, for a state of other channels.
    """

    def __init__(
        self, shape: Sequence[int], cond_dim: int = 0, context_dim: int = 0, width: int = 96, latent: int = 192,
        latents: int = 24, depth: int = 4, thoughts: int = 1, heads: int = 4, ratio: float = 2.0, fourier: int = 8,
        highest: float = 16.0, checkpointing: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(shape) != 2 or shape[0] < 3:
            raise ConfigError(f"model: takes clouds (channels, points) with x, y, z first, not {tuple(shape)}")
        if heads < 1 or width % heads or latent % heads or latent // heads % 2:
            raise ConfigError(f"model: {heads} heads do not divide width={width} and latent={latent}")
        if fourier < 2 or fourier % 2:
            raise ConfigError(f"model.fourier={fourier} must be even and at least 2")
        self.channels, self.fourier, self.highest, self.checkpointing = int(shape[0]), fourier, highest, checkpointing
        self.context = context_dim
        self.directions: Tensor
        self.register_buffer("directions", _directions(), persistent=False)
        self.enter = _entrance(self.channels + len(_directions()) * fourier, width)
        self.embed = Embedding(latent, cond_dim, 1)
        self.first = nn.Parameter(torch.randn(latents, latent) * 0.5)
        self.words = nn.Linear(context_dim, latent) if context_dim else None
        # Given points are of another kind than those of the sample: they have a way in of their own.
        inputs = self.channels + len(_directions()) * fourier
        self.given = _entrance(inputs, width) if (about or {}).get("given") else None
        inner = min(width, latent)
        self.rounds = nn.ModuleList(_Round(width, latent, latents, heads, inner, ratio, thoughts) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulate, self.leave = nn.Linear(latent, 2 * width), nn.Linear(width, self.channels)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, noise: Tensor, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return F of the shape of x.

        Arguments:
            x: Clouds, (B, C, N).
            noise: Levels, (B,).
            cond: ``vector`` (B, cond_dim); ``tokens`` (B, T, context_dim) and ``mask`` (B, T); ``cloud`` (B, C, M) and
                ``there`` (B,) where clouds are given.
        """
        if x.ndim != 3 or x.shape[1] != self.channels:
            raise ConfigError(f"model: made for clouds of {self.channels} channels, not {tuple(x.shape[1:])}")
        h = self.enter(self._features(x))
        given, kept = self._given(cond, h)
        embedded = self.embed(noise, cond)
        z = self.first.to(h) + embedded[:, None]
        tokens, mask = attended(cond, self.context > 0)
        if self.words is not None:
            assert tokens is not None
            z = torch.cat([z, self.words(tokens)], 1)
            if mask is not None:
                mask = torch.cat([mask.new_ones(len(z), len(self.first)), mask], 1)
        for step in self.rounds:
            if self.checkpointing and torch.is_grad_enabled():
                h, z = checkpoint(step, h, z, embedded, given, mask, kept, use_reentrant=False)
            else:
                h, z = step(h, z, embedded, given, mask, kept)
        scale, shift = self.modulate(embedded)[:, None].chunk(2, -1)
        out: Tensor = self.leave(_moved(self.norm(h), scale, shift)).transpose(1, 2)
        return out

    def _features(self, x: Tensor) -> Tensor:
        p = x.transpose(1, 2)
        waves = fourier(p[..., :3] @ self.directions.T.to(p), self.fourier, 0.5, self.highest).flatten(2)
        return torch.cat([p, waves.to(p)], -1)

    def _given(self, cond: Mapping[str, Tensor] | None, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the points of given clouds, (B, M, width), and which of all points exist, (B, N + M)."""
        if self.given is None:
            return None, None
        if cond is None or "cloud" not in cond:
            raise ConfigError("model: a network of given clouds needs cond['cloud']; set conditioner=shapes/given")
        points = self.norm(self.given(self._features(cond["cloud"].to(h))))
        there = cond["there"][:, None].expand(-1, points.shape[1])
        return points, torch.cat([there.new_ones(h.shape[:2]), there], 1)
