"""DiT: a transformer over patches, for one, two or three spatial axes.

Blocks with adaptive layer norm that starts at zero ("Scalable Diffusion Models with Transformers", Peebles and Xie
2023, section 3.2), rotary positions per axis, normalised queries and keys, gated feed-forward ("GLU Variants Improve
Transformer", Shazeer 2020) of the same number of weights as a plain one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from suffuse.errors import ConfigError
from suffuse.nn.attention import Attention, CrossAttention, attended, rope
from suffuse.nn.embed import Embedding, Placed, coordinates, spatial

__all__ = ["DiT"]


class _Gated(nn.Module):
    """SwiGLU feed-forward."""

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


class _Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the embedding."""

    def __init__(self, width: int, heads: int, ratio: float, dropout: float, context: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention, self.feed = Attention(width, heads), _Gated(width, ratio, dropout)
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.cross: CrossAttention | None = None
        if context:
            self.cross_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
            self.cross = CrossAttention(width, context, heads)

    def forward(
        self, x: Tensor, embedded: Tensor, cos: Tensor, sin: Tensor, context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the tokens, (B, N, width); `embedded` is (B, 1, width) or (B, N, width)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(embedded).chunk(6, -1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, (cos, sin))
        if self.cross is not None:
            assert context is not None  # asked for in the network's forward
            x = x + self.cross(self.cross_norm(x), context, mask)
        out: Tensor = x + gate2 * self.feed(self.norm2(x) * (1 + scale2) + shift2)
        return out


class DiT(nn.Module):
    """Diffusion transformer.

    Arguments:
        shape: Shape (C, *spatial) of a state; the spatial sizes may differ at run time.
        cond_dim: Size of the condition vector.
        patch: Size of a patch, a number or one per axis.
        width: Channels of a token.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of a plain feed-forward with as many weights as ours.
        dropout: Share of dropped hidden activations.
        checkpointing: Recompute blocks in the backward pass instead of storing them.
        self_condition: Take the previous estimate of x0 as further channels, see `suffuse.self_condition`.
        context_dim: Size of the tokens of a condition that every block attends to; 0 for none.
        placed: Width of a small network from position, noise level and condition to the first features, see `Placed`;
            0 for none: tokens then know where they stand to each other, not where they are.

    Raises:
        ConfigError: For arguments that do not fit together; in `forward`, for sizes the patch does not divide.
    """

    def __init__(
        self, shape: Sequence[int], cond_dim: int = 0, patch: int | Sequence[int] = 2, width: int = 384,
        depth: int = 12, heads: int = 6, mlp_ratio: float = 4.0, dropout: float = 0.0, checkpointing: bool = False,
        self_condition: bool = False, context_dim: int = 0, placed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.context = context_dim
        self.axes = spatial(tuple(shape))
        self.patch = (patch,) * self.axes if isinstance(patch, int) else tuple(patch)
        if len(self.patch) != self.axes or min(self.patch) < 1:
            raise ConfigError(f"model.patch={patch} must be a whole number of at least 1, or {self.axes} of them")
        if width // max(heads, 1) < 2 * self.axes:
            raise ConfigError(f"model: heads of {width // max(heads, 1)} channels are too small for {self.axes} axes")
        self.channels, self.width, self.checkpointing = shape[0], width, checkpointing
        inside = self.channels * math.prod(self.patch)
        self.self_condition = self_condition
        self.enter = nn.Linear(inside * (1 + self_condition), width)
        self.embed = Embedding(width, cond_dim)
        self.placed = Placed(self.axes, width, placed, width) if placed else None
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio, dropout, context_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulate, self.leave = nn.Linear(width, 2 * width), nn.Linear(width, inside)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, noise: Tensor, cond: Mapping[str, Tensor] | None = None, previous: Tensor | None = None
    ) -> Tensor:
        """Return F of the shape of x.

        Arguments:
            x: Shape (B, C, *spatial).
            noise: Shape (B,), or (B, T): one level per token, or per slice of equal size along the first axis.
            cond: Holds ``vector``, shape (B, cond_dim), for a conditional network; ``tokens``, shape (B, T,
                context_dim), and their ``mask`` for one that attends to them.
            previous: Earlier estimate of x0, shaped like x; only with `self_condition`, None for zeros.
        """
        sizes = self._grid(x)
        tokens = self._cut(x, sizes)
        if self.self_condition:
            earlier = torch.zeros_like(tokens) if previous is None else self._cut(previous, sizes)
            tokens = torch.cat([tokens, earlier], -1)
        h = self.enter(tokens)
        embedded = self._tokens(self.embed(noise, cond), h.shape[1])
        if self.placed is not None:
            h = h + self.placed(coordinates(sizes, h).flatten(1), embedded)
        cos, sin = rope(sizes, self.width // self._heads, x.device)
        given = (embedded, cos, sin, *attended(cond, self.context > 0))
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, *given, use_reentrant=False)
            else:
                h = block(h, *given)
        scale, shift = self.modulate(embedded).chunk(2, -1)
        return self._join(self.leave(self.norm(h) * (1 + scale) + shift), sizes)

    @property
    def _heads(self) -> int:
        block = self.blocks[0]
        assert isinstance(block, _Block)
        return block.attention.heads

    def _grid(self, x: Tensor) -> tuple[int, ...]:
        sizes = tuple(x.shape[2:])
        if x.shape[1] != self.channels or len(sizes) != self.axes:
            raise ConfigError(
                f"model: made for {self.channels} channels and {self.axes} axes, not {tuple(x.shape[1:])}"
            )
        if any(size % p for size, p in zip(sizes, self.patch, strict=True)):
            raise ConfigError(f"model: size {sizes} is not divisible by the patch {self.patch}")
        return tuple(size // p for size, p in zip(sizes, self.patch, strict=True))

    @staticmethod
    def _tokens(embedded: Tensor, count: int) -> Tensor:
        """Return the embedding per token, (B, 1, width) or (B, count, width)."""
        if embedded.ndim == 2:
            return embedded[:, None]
        given = embedded.shape[1]
        if count % given:
            raise ConfigError(f"model: {given} noise levels per sample do not divide its {count} tokens")
        return embedded.repeat_interleave(count // given, 1)

    def _cut(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return the patches as tokens, (B, N, C prod(patch))."""
        parts = [part for pair in zip(sizes, self.patch, strict=True) for part in pair]
        axes = self.axes
        order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        return x.reshape(x.shape[0], self.channels, *parts).permute(order).flatten(1 + axes).flatten(1, axes)

    def _join(self, tokens: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Invert `_cut`."""
        axes = self.axes
        order = [0, axes + 1, *(i for k in range(axes) for i in (1 + k, axes + 2 + k))]
        whole = [size * p for size, p in zip(sizes, self.patch, strict=True)]
        cut = tokens.reshape(tokens.shape[0], *sizes, self.channels, *self.patch)
        return cut.permute(order).reshape(tokens.shape[0], self.channels, *whole)
