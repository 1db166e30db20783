"""UNet: a convolutional network that looks at several resolutions, for one, two or three spatial axes.

Residual blocks with adaptive group norm ("Diffusion Models Beat GANs on Image Synthesis", Dhariwal and Nichol 2021,
eq. 3), attention at chosen levels, skip connections between equal resolutions. Output convolutions start at zero, so
every block is the identity and the network is zero before training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from suffuse.errors import ConfigError
from suffuse.nn.attention import Attention, CrossAttention, attended
from suffuse.nn.conv import POOL, Factor, conv, factors_of, norm, shuffle, unshuffle
from suffuse.nn.embed import Embedding, Placed, coordinates, resized, spatial

__all__ = ["UNet"]


class _Block(nn.Module):
    """Residual block, optionally followed by attention."""

    def __init__(
        self, axes: int, inputs: int, outputs: int, embed: int, dropout: float, head_dim: int | None, context: int = 0,
        kernel: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), conv(axes, inputs, outputs, kernel)
        self.modulate = nn.Linear(embed, 2 * outputs)
        self.norm2, self.conv2 = norm(outputs), conv(axes, outputs, outputs, kernel, zero=True)
        self.skip = conv(axes, inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.attention: Attention | None = None
        if head_dim is not None:
            self.attention_norm = norm(outputs)
            self.attention = Attention(outputs, max(1, outputs // head_dim))
            nn.init.zeros_(self.attention.out.weight)
            nn.init.zeros_(self.attention.out.bias)
        self.cross = CrossAttention(outputs, context, max(1, outputs // head_dim)) if context and head_dim else None

    def forward(self, x: Tensor, embedded: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the block's output."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = _spread(self.modulate(embedded), h).chunk(2, 1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        x = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        if self.attention is not None:
            tokens = self.attention_norm(x).flatten(2).transpose(1, 2)
            found = self.attention(tokens)
            if self.cross is not None:
                assert context is not None  # asked for in the network's forward
                found = found + self.cross(tokens, context, mask)
            x = x + found.transpose(1, 2).reshape(x.shape)
        return x


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """Return (B, C) or, per token of the first spatial axis, (B, T, C) as something that broadcasts against `like`."""
    if values.ndim == 2:
        return values.reshape(*values.shape, *[1] * (like.ndim - 2))
    return values.transpose(1, 2).reshape(values.shape[0], values.shape[2], -1, *[1] * (like.ndim - 3))


class UNet(nn.Module):
    """U-Net.

    Arguments:
        shape: Shape (C, *spatial) of a state; the spatial sizes may differ at run time.
        cond_dim: Size of the condition vector.
        width: Channels of the first level.
        multipliers: Channels of each level as multiples of the width.
        blocks: Residual blocks per level, on the way down; one more on the way up.
        attention: Levels with attention, 0 the finest; the middle has it when any level has.
        head_dim: Channels of an attention head.
        factors: Down-sampling between levels: a number, or a sequence with a number per axis, each for one step down.
        patch: Space-to-depth factor before the first convolution.
        coordinates: Feed each position's coordinates in, so that convolutions know where they are.
        dropout: Share of dropped activations in the residual blocks.
        checkpointing: Recompute blocks in the backward pass instead of storing them.
        self_condition: Take the previous estimate of x0 as further channels, see `suffuse.self_condition`.
        context_dim: Size of the tokens of a condition that blocks with attention attend to; 0 for none.
        kernel: Size of the convolutions, odd.
        placed: Width of a small network from position, noise level and condition to the first features, see `Placed`;
            0 for none.
        levels: Noise levels of a state that has several without an axis for them, all of which every position is told.
        extra: Channels of a picture ``cond["image"]`` that is looked at beside the state; 0 for none.

    Raises:
        ConfigError: For arguments that do not fit together; in `forward`, for sizes the total factor does not divide.
    """

    def __init__(
        self, shape: Sequence[int], cond_dim: int = 0, width: int = 64, multipliers: Sequence[float] = (1, 2),
        blocks: int = 1, attention: Sequence[int] = (1,), head_dim: int = 32, factors: Factor | Sequence[Factor] = 2,
        patch: Factor = 1, coordinates: bool = False, dropout: float = 0.0, checkpointing: bool = False,
        self_condition: bool = False, context_dim: int = 0, kernel: int = 3, placed: int = 0,
        levels: int = 1, extra: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.levels, self.extra = levels, extra
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"model.kernel={kernel} must be an odd number of at least 1")
        self.context = context_dim if attention else 0
        self.axes = spatial(shape)
        self.channels, self.checkpointing, self.coordinates = shape[0], checkpointing, coordinates
        self.self_condition = self_condition
        levels = len(multipliers)
        if levels < 1 or blocks < 1 or width < 8:
            raise ConfigError("model: needs at least one level (multipliers), one block and a width of 8")
        if any(not 0 <= level < levels for level in attention):
            raise ConfigError(f"model.attention={list(attention)} names levels outside 0..{levels - 1}")
        self.patch = factors_of(patch, self.axes, "patch")
        steps: list[Any] = [factors] * (levels - 1) if isinstance(factors, int) else list(factors)
        if len(steps) != levels - 1:
            raise ConfigError(f"model.factors={factors} must have one entry per step between the {levels} levels")
        self.steps = [factors_of(step, self.axes, "factors") for step in steps]
        self.factor = tuple(math.prod(f) for f in zip(self.patch, *self.steps, strict=True))

        embed = 4 * width
        self.embed = Embedding(embed, cond_dim, self.levels)
        widths = [round(width * m) for m in multipliers]
        inside = self.channels * math.prod(self.patch)
        more = extra * math.prod(self.patch) + self.axes * coordinates
        self.enter = conv(self.axes, inside * (1 + self_condition) + more, width)
        self.placed = Placed(self.axes, embed, placed, width) if placed else None

        def block(inputs: int, outputs: int, level: int) -> _Block:
            head = head_dim if level in attention else None
            return _Block(self.axes, inputs, outputs, embed, dropout, head, self.context, kernel)

        skips, now = [width], width
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(widths):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(now, channels, level))
                now = channels
                skips.append(now)
            self.down.append(stage)
            if level < levels - 1:
                skips.append(now)
        deepest = levels - 1 if attention else -1
        self.middle = nn.ModuleList(
            [
                _Block(self.axes, now, now, embed, dropout, head_dim if deepest >= 0 else None, self.context, kernel),
                _Block(self.axes, now, now, embed, dropout, None, 0, kernel),
            ]
        )
        for level, channels in reversed(list(enumerate(widths))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(block(now + skips.pop(), channels, level))
                now = channels
            self.up.append(stage)
        self.leave_norm, self.leave = norm(now), conv(self.axes, now, inside, zero=True)

    def forward(
        self, x: Tensor, noise: Tensor, cond: Mapping[str, Tensor] | None = None, previous: Tensor | None = None
    ) -> Tensor:
        """Return F of the shape of x.

        Arguments:
            x: Shape (B, C, *spatial).
            noise: Shape (B,), or (B, T) with one level per slice of the first spatial axis, which is then kept whole;
                (B, levels) with several.
            cond: Holds ``vector``, shape (B, cond_dim), for a conditional network; ``tokens``, shape (B, T,
                context_dim), and their ``mask`` for one that attends to them; ``image`` (B, extra, …) of any size.
            previous: Earlier estimate of x0, shaped like x; only with `self_condition`, None for zeros.
        """
        self._check(x, noise)
        embedded = self.embed(noise, cond), *attended(cond, self.context > 0)
        if self.self_condition:
            x = torch.cat([x, torch.zeros_like(x) if previous is None else previous], 1)
        if self.extra:
            x = torch.cat([x, resized(cond, self.extra, x)], 1)
        h = unshuffle(x, self.patch)
        if self.coordinates:
            h = torch.cat([h, coordinates(h.shape[2:], h).expand(len(h), *[-1] * (h.ndim - 1))], 1)
        h = self.enter(h)
        if self.placed is not None:
            h = h + self._place(h, embedded[0])
        skips = [h]
        for level, stage in enumerate(self.down):
            for block in stage:  # type: ignore[attr-defined]
                h = self._run(block, h, embedded)
                skips.append(h)
            if level < len(self.steps):
                h = POOL[self.axes](h, self.steps[level])
                skips.append(h)
        for block in self.middle:
            h = self._run(block, h, embedded)
        for level, stage in enumerate(self.up):
            for block in stage:  # type: ignore[attr-defined]
                h = self._run(block, torch.cat([h, skips.pop()], 1), embedded)
            if level < len(self.steps):
                step = self.steps[-1 - level]
                h = F.interpolate(h, scale_factor=tuple(map(float, step)), mode="nearest")
        return shuffle(self.leave(F.silu(self.leave_norm(h))), self.patch)

    def _place(self, h: Tensor, embedded: Tensor) -> Tensor:
        """Return what the condition says about each position, shaped like h."""
        assert self.placed is not None
        embedded = embedded[:, None] if embedded.ndim == 2 else embedded
        found: Tensor = self.placed(coordinates(h.shape[2:], h).flatten(1), embedded)
        return found.transpose(1, 2).reshape(h.shape)

    def _run(self, block: nn.Module, h: Tensor, given: tuple[Tensor, Tensor | None, Tensor | None]) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            kept: Tensor = checkpoint(block, h, *given, use_reentrant=False)
            return kept
        out: Tensor = block(h, *given)
        return out

    def _check(self, x: Tensor, noise: Tensor) -> None:
        sizes = tuple(x.shape[2:])
        if x.shape[1] != self.channels or len(sizes) != self.axes:
            raise ConfigError(
                f"model: made for {self.channels} channels and {self.axes} axes, not {tuple(x.shape[1:])}"
            )
        if any(size % factor for size, factor in zip(sizes, self.factor, strict=True)):
            raise ConfigError(f"model: size {sizes} is not divisible by the network's factor {self.factor}")
        if self.levels > 1:
            if noise.shape[1:] != (self.levels,):
                raise ConfigError(f"model: {self.levels} noise levels are wanted, not {tuple(noise.shape[1:])}")
        elif noise.ndim == 2 and (self.factor[0] != 1 or noise.shape[1] != sizes[0]):
            raise ConfigError(
                f"model: per-token noise of shape {tuple(noise.shape)} needs one level per slice of the first axis "
                f"({sizes[0]}) and a factor of 1 along it, not {self.factor[0]}"
            )
