"""Joint: blocks in which the tokens of a state and those of a caption attend to each other as one sequence.

Each of the two has weights of its own, attention alone is shared ("Scaling Rectified Flow Transformers for High-
Resolution Image Synthesis", Esser et al. 2024, section 4, MM-DiT). Unlike with cross-attention, what is known of the
caption changes with the picture, layer by layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse.nn.attention import Attention, normalised, rotate
from suffuse.nn.blocks import Gated, gated, moved

__all__ = ["JointBlock"]


class _Stream(nn.Module):
    """The weights of one of the two."""

    def __init__(self, width: int, heads: int, ratio: float, dropout: float, last: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        # What is not asked for after the last block has only keys and values to give.
        self.feed = None if last else Gated(width, ratio, dropout)
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def parts(self, embedded: Tensor) -> tuple[Tensor, ...]:
        """Return scales, shifts and gates, each (B, G, 1, width)."""
        found: tuple[Tensor, ...] = self.modulate(embedded)[:, :, None].chunk(6, -1)
        return found

    def qkv(self, x: Tensor, scale: Tensor, shift: Tensor, table: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        """Return queries, keys and values, each (B, heads, N, head_dim)."""
        own = self.attention
        rows, tokens, _ = x.shape
        found = own.qkv(moved(self.norm(x), scale, shift)).view(rows, tokens, 3, own.heads, own.head_dim)
        q, k, v = found.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = normalised(q, own.q_norm), normalised(k, own.k_norm)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return [q, k.to(q.dtype), v.to(q.dtype)]


class JointBlock(nn.Module):
    """A block of both streams.

    Arguments:
        width: Channels of a token of either.
        heads: Attention heads.
        ratio: Hidden width of a plain feed-forward with as many weights.
        dropout: Share of dropped hidden activations.
        last: The caption's tokens are not needed any more.
    """

    def __init__(self, width: int, heads: int, ratio: float, dropout: float, last: bool = False) -> None:
        super().__init__()
        self.state = _Stream(width, heads, ratio, dropout, False)
        self.text = _Stream(width, heads, ratio, dropout, last)

    @property
    def attention(self) -> Attention:
        """That of the state."""
        return self.state.attention

    def forward(
        self, x: Tensor, text: Tensor, embedded: Tensor, table: tuple[Tensor, Tensor] | None,
        keys: Tensor | None, mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the tokens of both.

        Arguments:
            x: Tokens of the state, (B, N, width).
            text: Tokens of the caption, (B, T, width).
            embedded: Noise level and condition, (B, G, width) for G groups of equal size along N.
            table: Rotary positions of the state's tokens; words know their places by themselves.
            keys: Which of the state's tokens exist, boolean (B, N), or None for all.
            mask: Which words exist, boolean (B, T), or None for all.
        """
        own, said = self.state.parts(embedded), self.text.parts(embedded.mean(1, keepdim=True))
        a, b = self.state.qkv(x, own[0], own[1], table), self.text.qkv(text, said[0], said[1], None)
        q, k, v = (torch.cat(pair, 2) for pair in zip(a, b, strict=True))
        where = None
        if keys is not None or mask is not None:
            there = [
                torch.ones(z.shape[:2], dtype=torch.bool, device=z.device) if m is None else m
                for z, m in ((x, keys), (text, mask))
            ]
            where = torch.cat(there, 1)[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, where).transpose(1, 2).flatten(2)
        x = x + gated(self.state.attention.out(mixed[:, : x.shape[1]]), own[2])
        assert self.state.feed is not None
        x = x + gated(self.state.feed(moved(self.state.norm(x), own[3], own[4])), own[5])
        if self.text.feed is None:
            return x, text
        text = text + gated(self.text.attention.out(mixed[:, x.shape[1] :]), said[2])
        return x, text + gated(self.text.feed(moved(self.text.norm(text), said[3], said[4])), said[5])
