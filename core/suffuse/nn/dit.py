"""DiT: a transformer over patches, for one, two or three spatial axes.

Blocks with adaptive layer norm that starts at zero ("Scalable Diffusion Models with Transformers", Peebles and Xie
2023, section 3.2), rotary positions per axis, normalised queries and keys, gated feed-forward ("GLU Variants Improve
Transformer", Shazeer 2020) of the same number of weights as a plain one.

Slices of the first axis may have noise levels of their own, and may be missing: a state ``{"x": …, "mask": (B, T)}``
says which of them exist, and nothing is attended to that does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from suffuse.errors import ConfigError
from suffuse.nn.attention import Attention, CrossAttention, attended, rope
from suffuse.nn.blocks import Gated, gated, moved
from suffuse.nn.embed import Embedding, Placed, coordinates, resized, spatial
from suffuse.nn.joint import JointBlock
from suffuse.nn.refine import Refine
from suffuse.state import State

__all__ = ["DiT"]


class _Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the embedding."""

    def __init__(self, width: int, heads: int, ratio: float, dropout: float, context: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention, self.feed = Attention(width, heads), Gated(width, ratio, dropout)
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.cross: CrossAttention | None = None
        if context:
            self.cross = CrossAttention(width, context, heads)

    def forward(self, x: Tensor, embedded: Tensor, within: _Within, *context: Tensor | None) -> Tensor:
        """Return the tokens, (B, N, width); `embedded` is (B, G, width) for G groups of equal size along N."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(embedded)[:, :, None].chunk(6, -1)
        x = x + gated(within(self.attention, moved(self.norm(x), scale1, shift1)), gate1)
        if self.cross is not None:
            assert context[0] is not None  # asked for in the network's forward
            x = x + self.cross(self.norm(x), *context)
        return x + gated(self.feed(moved(self.norm(x), scale2, shift2)), gate2)


class _Within(NamedTuple):
    """Which tokens attend to each other: all, those at one place of the first axis, or those along it.

    Arguments:
        sizes: Tokens along each axis.
        table: Rotary positions of the tokens that attend to each other.
        mask: Which slices of the first axis exist, boolean (B, T), or None for all.
        axis: None for all, 0 for along the first axis, 1 for within its slices.
    """

    sizes: tuple[int, ...]
    table: tuple[Tensor, Tensor]
    mask: Tensor | None
    axis: int | None

    def __call__(self, attention: nn.Module, x: Tensor) -> Tensor:
        """Return attended tokens (B, N, width)."""
        rows, _, width = x.shape
        first, rest = self.sizes[0], math.prod(self.sizes[1:])
        mask = self.mask
        if self.axis is None:
            keys = None if mask is None else mask.repeat_interleave(rest, 1)
            out: Tensor = attention(x, self.table, keys)
            return out
        if self.axis == 1:
            found = attention(x.reshape(rows * first, rest, width), self.table)
            return found.reshape(x.shape)  # type: ignore[no-any-return]
        across = x.reshape(rows, first, rest, width).transpose(1, 2).reshape(rows * rest, first, width)
        found = attention(across, self.table, None if mask is None else mask.repeat_interleave(rest, 0))
        return found.reshape(rows, rest, first, width).transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]


class DiT(nn.Module):
    """Diffusion transformer.

    Arguments:
        shape: Shape (C, *spatial) of a state; the spatial sizes may differ at run time. Of named fields, those of
            ``x``, of its ``mask``, and of frozen ones that are of no interest here.
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
            0 for none: tokens then know where they stand to each other, not where they are. With a mask a token's place
            along the first axis is its share of what exists, and beside it its share of the length of `shape`.
        attention: ``full``: all tokens attend to each other; ``axial``: blocks attend in turns within the slices of the
            first axis and along it, which costs less where there are many ("ViViT", Arnab et al. 2021, model 3);
            ``joint``: the tokens of the condition are tokens like the others, see `suffuse.nn.joint`.
        levels: Noise levels that a patch has: 1, or patch[0] when every slice of the first axis has its own.
        extra: Channels of a picture ``cond["image"]`` that is looked at beside the state; 0 for none.
        refine: Channels of convolutions over the joined patches, see `suffuse.nn.refine`; 0 for none.
        refine_depth: How many of them there are between the first and the last.

    Raises:
        ConfigError: For arguments that do not fit together; in `forward`, for sizes the patch does not divide.
    """

    def __init__(
        self, shape: Sequence[int] | Mapping[str, Sequence[int]], cond_dim: int = 0, patch: int | Sequence[int] = 2,
        width: int = 384, depth: int = 12, heads: int = 6, mlp_ratio: float = 4.0, dropout: float = 0.0,
        checkpointing: bool = False, self_condition: bool = False, context_dim: int = 0, placed: int = 0,
        attention: str = "full", levels: int = 1, extra: int = 0, refine: int = 0, refine_depth: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.masked = False
        if isinstance(shape, Mapping):
            if not {"x", "mask"} <= set(shape):
                raise ConfigError(f"model: takes one tensor, or the fields x and mask, not {sorted(shape)}")
            self.masked, shape = True, shape["x"]
        self.context, self.trained = context_dim, int(shape[1])
        self.axes = spatial(tuple(shape))
        self.patch = (patch,) * self.axes if isinstance(patch, int) else tuple(patch)
        if len(self.patch) != self.axes or min(self.patch) < 1:
            raise ConfigError(f"model.patch={patch} must be a whole number of at least 1, or {self.axes} of them")
        if width // max(heads, 1) < 2 * self.axes:
            raise ConfigError(f"model: heads of {width // max(heads, 1)} channels are too small for {self.axes} axes")
        if attention not in ("full", "axial", "joint") or (attention == "axial" and self.axes < 2):
            raise ConfigError(
                f"model.attention={attention} must be full, joint, or axial for a state of two axes or more"
            )
        if attention == "joint" and not context_dim:
            raise ConfigError("model.attention=joint needs captions and a conditioner that reads them, as text_learned")
        if levels not in (1, self.patch[0]):
            raise ConfigError(f"model.levels={levels} must be 1, or {self.patch[0]}, the patch along the first axis")
        self.axial, self.levels = attention == "axial", levels
        self.channels, self.width, self.checkpointing = shape[0], width, checkpointing
        inside = self.channels * math.prod(self.patch)
        self.self_condition = self_condition
        self.extra = extra
        self.enter = nn.Linear(inside * (1 + self_condition) + extra * math.prod(self.patch), width)
        self.embed = Embedding(width, cond_dim, levels)
        self.placed = Placed(self.axes + self.masked, width, placed, width) if placed else None
        self.read = nn.Linear(context_dim, width) if attention == "joint" else None
        self.blocks = nn.ModuleList(
            _Block(width, heads, mlp_ratio, dropout, context_dim) if self.read is None
            else JointBlock(width, heads, mlp_ratio, dropout, last=number == depth - 1)
            for number in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulate, self.leave = nn.Linear(width, 2 * width), nn.Linear(width, inside)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.refine = Refine(self.channels, self.axes, refine, refine_depth, cond_dim) if refine else None

    def forward(
        self, x: State, noise: Tensor, cond: Mapping[str, Tensor] | None = None, previous: State | None = None
    ) -> State:
        """Return F of the shape of x.

        Arguments:
            x: Shape (B, C, *spatial), or ``{"x": …, "mask": …}`` with a boolean mask (B, T) of the slices of the first
                axis that exist; a patch exists when one of its slices does.
            noise: Shape (B,), or (B, T): one level per token, or per slice of equal size along the first axis.
            cond: Holds ``vector``, shape (B, cond_dim), for a conditional network; ``tokens``, shape (B, T,
                context_dim), and their ``mask`` for one that attends to them; ``image`` (B, extra, …) of any size.
            previous: Earlier estimate of x0, shaped like x; only with `self_condition`, None for zeros.
        """
        if isinstance(x, Mapping):
            earlier = previous["x"] if isinstance(previous, Mapping) else previous
            mask = x["mask"]
            assert isinstance(mask, Tensor)
            return {"x": self._forward(x["x"], noise, cond, earlier, mask.bool())}
        return self._forward(x, noise, cond, previous)

    def _forward(
        self, x: State, noise: Tensor, cond: Mapping[str, Tensor] | None, previous: State | None,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert isinstance(x, Tensor)
        sizes = self._grid(x)
        # A patch exists when one of its slices does.
        there = None if mask is None else mask.reshape(len(mask), sizes[0], self.patch[0]).any(-1)
        tokens = self._cut(x, sizes)
        if self.self_condition:
            earlier = torch.zeros_like(tokens) if previous is None else self._cut(previous, sizes)  # type: ignore[arg-type]
            tokens = torch.cat([tokens, earlier], -1)
        if self.extra:
            tokens = torch.cat([tokens, self._cut(resized(cond, self.extra, x), sizes)], -1)
        h = self.enter(tokens)
        embedded = self._groups(self.embed(self._levels(noise, sizes), cond), h.shape[1])
        if self.placed is not None:
            h = h + self.placed(self._places(sizes, h, there), embedded)
        ways, context = self._ways(sizes, x.device, there), attended(cond, self.context > 0)
        if self.read is not None:
            h = self._joint(h, embedded, ways[0], *context)
        for number, block in enumerate(self.blocks if self.read is None else ()):
            given = (embedded, ways[number % len(ways)], *context)
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, *given, use_reentrant=False)
            else:
                h = block(h, *given)
        scale, shift = self.modulate(embedded)[:, :, None].chunk(2, -1)
        out = self._join(self.leave(moved(self.norm(h), scale, shift)), sizes)
        return out if self.refine is None else out + self.refine(out, x, noise, cond, mask)

    def _joint(
        self, h: Tensor, embedded: Tensor, within: _Within, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return the tokens after all blocks, of which the condition's tokens are a part."""
        assert self.read is not None and context is not None  # asked for in `attended`
        text = self.read(context).to(h.dtype)
        keys = None if within.mask is None else within.mask.repeat_interleave(math.prod(within.sizes[1:]), 1)
        for block in self.blocks:
            given = (h, text, embedded, within.table, keys, mask)
            if self.checkpointing and torch.is_grad_enabled():
                h, text = checkpoint(block, *given, use_reentrant=False)
            else:
                h, text = block(*given)
        return h

    def _levels(self, noise: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return the levels as they are embedded: (B,), (B, G), or (B, levels) and (B, G, levels) with several."""
        if self.levels == 1:
            return noise
        if noise.ndim == 1:
            return noise[:, None].expand(-1, self.levels)
        if noise.shape[1] != sizes[0] * self.levels:
            raise ConfigError(
                f"model: {noise.shape[1]} noise levels per sample are not those of its {sizes[0] * self.levels} slices"
            )
        return noise.reshape(len(noise), sizes[0], self.levels)

    def _places(self, sizes: tuple[int, ...], h: Tensor, there: Tensor | None) -> Tensor:
        """Return the tokens' coordinates, (axes, N); where they may be missing (B, axes + 1, N).

        Both coordinates along the first axis are in [-1, 1]: the first over what exists, so that a token knows how far
        the end is, the last over the length of training, so that it knows how much came before.
        """
        if not self.masked:
            return coordinates(sizes, h).flatten(1)
        index = torch.arange(sizes[0], device=h.device, dtype=torch.float32)
        of = max(self.trained // self.patch[0] - 1, 1)
        last = index[-1:] if there is None else (index * there).amax(1, keepdim=True)
        own = (2 * index / last.clamp(min=1) - 1).expand(len(h), -1)
        along = torch.stack([own, (2 * index / of - 1).expand_as(own)], 1)
        along = along.reshape(len(h), 2, sizes[0], *[1] * (self.axes - 1)).expand(-1, -1, *sizes)
        rest = coordinates(sizes, index)[None, 1:].expand(len(h), -1, *sizes)
        return torch.cat([along[:, :1], rest, along[:, 1:]], 1).flatten(2)

    def _ways(self, sizes: tuple[int, ...], device: torch.device, mask: Tensor | None) -> list[_Within]:
        """Return which tokens attend to each other, of blocks in turns; `mask` is (B, T) in patches."""
        head = self.width // self._heads
        if not self.axial:
            return [_Within(sizes, rope(sizes, head, device), mask, None)]
        along, within = rope(sizes[:1], head, device), rope(sizes[1:], head, device)
        return [_Within(sizes, within, mask, 1), _Within(sizes, along, mask, 0)]

    @property
    def _heads(self) -> int:
        block = self.blocks[0]
        assert isinstance(block, _Block | JointBlock)
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
    def _groups(embedded: Tensor, count: int) -> Tensor:
        """Return the embedding of every group of equal size of the tokens, (B, G, width)."""
        if embedded.ndim == 2:
            return embedded[:, None]
        if count % embedded.shape[1]:
            raise ConfigError(f"model: {embedded.shape[1]} noise levels per sample do not divide its {count} tokens")
        return embedded

    def _cut(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return the patches as tokens, (B, N, C prod(patch))."""
        parts = [part for pair in zip(sizes, self.patch, strict=True) for part in pair]
        axes = self.axes
        order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        return x.reshape(x.shape[0], x.shape[1], *parts).permute(order).flatten(1 + axes).flatten(1, axes)

    def _join(self, tokens: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Invert `_cut`."""
        axes = self.axes
        order = [0, axes + 1, *(i for k in range(axes) for i in (1 + k, axes + 2 + k))]
        whole = [size * p for size, p in zip(sizes, self.patch, strict=True)]
        cut = tokens.reshape(tokens.shape[0], *sizes, self.channels, *self.patch)
        return cut.permute(order).reshape(tokens.shape[0], self.channels, *whole)
