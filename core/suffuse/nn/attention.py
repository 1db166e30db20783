"""Attention: multi-head self-attention with normalised queries and keys, and rotary positions on any number of axes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse.errors import ConfigError

__all__ = ["Attention", "CrossAttention", "attended", "normalised", "rope", "rotate"]


def rope(sizes: tuple[int, ...], head_dim: int, device: torch.device, base: float = 100.0) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of rotary positions, each of shape (prod(sizes), head_dim / 2).

    The pairs of channels are shared out among the axes; each share turns with its own coordinate. Angles of two tokens
    differ by their distance alone. "RoFormer", Su et al. 2021, eq. 15, applied per axis.

    Arguments:
        sizes: Tokens along each axis.
        head_dim: Channels of a head, even, at least two per axis.
        device: Where the tables are made.
        base: Ratio of the slowest to the fastest turn.
    """
    pairs, axes = head_dim // 2, len(sizes)
    shares = [pairs // axes + (i < pairs % axes) for i in range(axes)]
    angles = []
    for axis, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        rates = base ** -(torch.arange(share, device=device, dtype=torch.float32) / max(share, 1))
        angle = torch.arange(size, device=device, dtype=torch.float32)[:, None] * rates
        view = [1] * axes + [share]
        view[axis] = size
        angles.append(angle.reshape(view).expand(*sizes, share).flatten(0, axes - 1))
    angle = torch.cat(angles, -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Return x of shape (..., N, head_dim) with each pair of channels (i, i + head_dim/2) turned by its angle."""
    cos, sin = (part.to(x.dtype) for part in table)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def normalised(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Return x normalised; the weight follows x, since under autocast a mixed call is not fused."""
    assert norm.weight is not None  # made with a weight
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.eps)


class Attention(nn.Module):
    """Self-attention over tokens (B, N, width).

    Queries and keys are normalised per head ("Scaling Vision Transformers to 22 Billion Parameters", Dehghani et al.
    2023, section 2).

    Arguments:
        width: Channels.
        heads: Number of heads.

    Raises:
        ConfigError: When the heads do not divide the width into even parts.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads or width // heads % 2:
            raise ConfigError(f"model: {heads} heads do not divide the width {width} into even parts")
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = nn.RMSNorm(self.head_dim, eps=1e-6), nn.RMSNorm(self.head_dim, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the attended tokens, shape (B, N, width).

        Arguments:
            x: Tokens.
            table: Rotary positions.
            mask: Boolean (B, N), true for what may be attended to; at least one of a row must.
        """
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = normalised(q, self.q_norm), normalised(k, self.k_norm)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        where = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), where)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return attended


class CrossAttention(nn.Module):
    """Attention of tokens (B, N, width) to a context (B, T, context), such as the words of a caption.

    It starts at zero, so a network with it starts as the same network without.

    Arguments:
        width: Channels.
        context: Channels of the context.
        heads: Number of heads.

    Raises:
        ConfigError: When the heads do not divide the width.
    """

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"model: {heads} heads do not divide the width {width}")
        self.heads, self.head_dim = heads, width // heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(context, 2 * width)
        self.q_norm, self.k_norm = nn.RMSNorm(self.head_dim, eps=1e-6), nn.RMSNorm(self.head_dim, eps=1e-6)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what was found, shape (B, N, width).

        Arguments:
            x: Tokens.
            context: What they attend to.
            mask: Boolean (B, T), true where the context exists; at least one of a row must.
        """
        rows, tokens, width = x.shape
        q = self.q(x).view(rows, tokens, self.heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(context).view(rows, -1, 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = normalised(q, self.q_norm), normalised(k, self.k_norm)
        where = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), where)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return attended


def attended(cond: Mapping[str, Tensor] | None, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the tokens of a condition and their mask, where a network attends to them.

    Raises:
        ConfigError: When the network needs them and the condition has none.
    """
    if not wanted:
        return None, None
    if cond is None or "tokens" not in cond:
        raise ConfigError("model: a network that attends to text needs cond['tokens']")
    return cond["tokens"], cond.get("mask")
