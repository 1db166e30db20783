"""Blocks: what transformer blocks share: the feed-forward, and modulation of tokens by groups."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Gated", "gated", "moved"]


class Gated(nn.Module):
    """SwiGLU feed-forward with as many weights as a plain one of `ratio`."""

    def __init__(self, width: int, ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = -(-int(width * ratio * 2 / 3) // 8) * 8
        self.enter, self.leave = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feed-forward of tokens."""
        gate, value = self.enter(x).chunk(2, -1)
        out: Tensor = self.leave(self.dropout(F.silu(gate) * value))
        return out


def moved(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return tokens (B, N, width) scaled and shifted by groups (B, G, 1, width)."""
    return (_grouped(x, scale) * (1 + scale) + shift).reshape(x.shape)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """Return tokens (B, N, width) times their group's gate (B, G, 1, width)."""
    return (_grouped(x, gate) * gate).reshape(x.shape)


def _grouped(x: Tensor, like: Tensor) -> Tensor:
    return x.reshape(x.shape[0], like.shape[1], -1, x.shape[2])
