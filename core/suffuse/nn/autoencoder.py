"""ConvAutoencoder: a convolutional encoder to a smaller state and a decoder back, for one, two or three axes.

Residual blocks at falling resolution, attention at the coarsest where wanted, and two numbers per latent entry, mean
and logarithm of the variance ("High-Resolution Image Synthesis with Latent Diffusion Models", Rombach et al. 2022,
appendix E.1). No skip connection passes the bottleneck.

A causal one looks back along the first axis: the past before the first entry is that entry again, norms see one
position, and attention stays within an entry. With the factor f of that axis, entries come as L first ones and then by
f: n = L + k f make 1 + k latents, of which the j-th (from 0) depends on the first L + j f entries alone, and decodes to
the last of these. L is what the shape it is made for leaves: 1 for 1 + k f entries, so that the first can be encoded
alone ("Wan: Open and Advanced Large-Scale Video Generative Models", Wan Team 2025, section 4.1), and f for k f.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from suffuse.errors import ConfigError, check_whole
from suffuse.nn.attention import Attention
from suffuse.nn.conv import Factor, conv, factors_of, norm, shuffle, stilled, unshuffle
from suffuse.nn.embed import spatial

__all__ = ["ConvAutoencoder", "PatchDiscriminator"]


class _Block(nn.Module):
    """Residual block."""

    def __init__(self, axes: int, inputs: int, outputs: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs, causal), conv(axes, inputs, outputs, kernel, causal=causal)
        self.norm2, self.conv2 = norm(outputs, causal), conv(axes, outputs, outputs, kernel, True, causal)
        self.skip = conv(axes, inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class _Attend(nn.Module):
    """Self-attention over all positions, of a causal network over those of one entry of the first axis."""

    def __init__(self, width: int, head_dim: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm, self.attention = norm(width, causal), Attention(width, max(1, width // head_dim))
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.attention.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        h = self.norm(x)
        if self.causal:
            h = h.transpose(1, 2)
            found: Tensor = self.attention(h.flatten(0, 1).flatten(2).transpose(1, 2))
            return x + found.transpose(1, 2).reshape(h.shape).transpose(1, 2)
        found = self.attention(h.flatten(2).transpose(1, 2))
        return x + found.transpose(1, 2).reshape(x.shape)


class _Up(nn.Module):
    """Larger by a factor per axis: nearest neighbour, then a convolution, which leaves no checkerboard."""

    def __init__(self, axes: int, width: int, step: tuple[int, ...], kernel: int, causal: bool = False) -> None:
        super().__init__()
        self.step, self.conv = tuple(map(float, step)), conv(axes, width, width, kernel, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        """Return the larger state."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=self.step, mode="nearest"))
        return out


class _Down(nn.Module):
    """Smaller by a factor per axis: space-to-depth, then a convolution, which loses nothing before it chooses."""

    def __init__(self, axes: int, width: int, step: tuple[int, ...], kernel: int, causal: bool = False) -> None:
        super().__init__()
        self.step, self.conv = step, conv(axes, width * math.prod(step), width, kernel, causal=causal)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller state."""
        out: Tensor = self.conv(unshuffle(x, self.step))
        return out


class ConvAutoencoder(nn.Module):
    """Encoder and decoder.

    Arguments:
        shape: Shape (C, *spatial) of a state; the spatial sizes may differ at run time.
        latent: Channels D of a latent.
        width: Channels of the first level.
        multipliers: Channels of each level as multiples of the width.
        factors: Down-sampling between levels: a number, or a sequence with a number per axis, each for one step down.
        patch: Space-to-depth factor before the first convolution.
        blocks: Residual blocks per level.
        attention: Attend to all positions at the coarsest level.
        head_dim: Channels of an attention head.
        kernel: Size of the convolutions, odd.
        checkpointing: Recompute levels in the backward pass instead of storing them.
        causal: Let no latent depend on later entries of the first axis.

    Raises:
        ConfigError: For arguments that do not fit together; in `encode` and `decode`, for sizes or channels that do not
            fit.
    """

    def __init__(
        self, shape: Sequence[int], latent: int = 8, width: int = 32, multipliers: Sequence[float] = (1, 2, 4),
        factors: Factor | Sequence[Factor] = 2, patch: Factor = 1, blocks: int = 1, attention: bool = False,
        head_dim: int = 32, kernel: int = 3, checkpointing: bool = False, causal: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("latent", latent), ("width", width), ("blocks", blocks), ("head_dim", head_dim)):
            check_whole(f"model.{name}", value)
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"model.kernel={kernel} must be an odd number of at least 1")
        self.axes, self.channels, self.latent = spatial(tuple(shape)), shape[0], latent
        self.patch = factors_of(patch, self.axes, "patch")
        levels = len(multipliers)
        steps: list[Any] = [factors] * (levels - 1) if isinstance(factors, int) else list(factors)
        if levels < 1 or len(steps) != levels - 1:
            raise ConfigError(f"model.factors={factors} must have one entry per step between the {levels} levels")
        self.steps = [factors_of(step, self.axes, "factors") for step in steps]
        self.factor = tuple(math.prod(f) for f in zip(self.patch, *self.steps, strict=True))
        self.checkpointing = checkpointing
        self.past = -shape[1] % self.factor[0] if causal else 0
        widths = [round(width * m) for m in multipliers]
        inside = self.channels * math.prod(self.patch)

        def level(inputs: int, outputs: int) -> list[nn.Module]:
            return [_Block(self.axes, inputs if i == 0 else outputs, outputs, kernel, causal) for i in range(blocks)]

        def attend() -> list[nn.Module]:
            return [_Attend(widths[-1], head_dim, causal)] if attention else []

        self.enter = conv(self.axes, inside, widths[0], kernel, causal=causal)
        down, now = [], widths[0]
        for i, channels in enumerate(widths):
            step = [_Down(self.axes, channels, self.steps[i], kernel, causal)] if i < levels - 1 else []
            down.append(nn.Sequential(*level(now, channels), *step))
            now = channels
        self.down = nn.ModuleList(down)
        self.narrow = nn.Sequential(*attend(), norm(now, causal), nn.SiLU(), conv(self.axes, now, 2 * latent, 1))
        self.widen = nn.Sequential(conv(self.axes, latent, now, kernel, causal=causal), *attend())
        up = []
        for i, channels in reversed(list(enumerate(widths))):
            step_up = [_Up(self.axes, channels, self.steps[i - 1], kernel, causal)] if i else []
            up.append(nn.Sequential(*level(now, channels), *step_up))
            now = channels
        self.up = nn.ModuleList(up)
        self.leave = nn.Sequential(norm(now, causal), nn.SiLU(), conv(self.axes, now, inside, kernel, causal=causal))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, each (B, D, *spatial / factor), rounded up when causal.

        Arguments:
            x: Shape (B, C, *spatial).
        """
        sizes = tuple(x.shape[2:])
        if x.shape[1] != self.channels or len(sizes) != self.axes:
            raise ConfigError(
                f"model: made for {self.channels} channels and {self.axes} axes, not {tuple(x.shape[1:])}"
            )
        whole = (sizes[0] + self.past, *sizes[1:])
        if any(size % factor for size, factor in zip(whole, self.factor, strict=True)):
            less = f", less {self.factor[0] - self.past} along the first axis," if self.past else ""
            raise ConfigError(f"model: size {sizes}{less} is not divisible by the autoencoder's factor {self.factor}")
        h = self.enter(unshuffle(stilled(x, self.past), self.patch))
        for level in self.down:
            h = self._run(level, h)
        mean, log_var = self.narrow(h).chunk(2, 1)
        return mean, log_var.clamp(-30, 10)

    def decode(self, z: Tensor) -> Tensor:
        """Return x (B, C, *spatial) of a latent (B, D, *spatial / factor)."""
        if z.ndim != 2 + self.axes or z.shape[1] != self.latent:
            raise ConfigError(f"model: a latent has {self.latent} channels and {self.axes} axes, not {tuple(z.shape)}")
        h = self.widen(z)
        for level in self.up:
            h = self._run(level, h)
        return shuffle(self.leave(h), self.patch)[:, :, self.past :]

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction by the mean."""
        return self.decode(self.encode(x)[0])

    def _run(self, level: nn.Module, h: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            kept: Tensor = checkpoint(level, h, use_reentrant=False)
            return kept
        out: Tensor = level(h)
        return out


class PatchDiscriminator(nn.Module):
    """Says of every patch how real it is ("Image-to-Image Translation with Conditional Adversarial Networks", Isola et
    al. 2017, section 3.2.2).

    Arguments:
        shape: Shape (C, *spatial) of a state.
        width: Channels of the first layer; each of the next has twice as many.
        depth: Layers, each halving every axis.
    """

    def __init__(self, shape: Sequence[int], width: int = 32, depth: int = 3) -> None:
        super().__init__()
        axes = spatial(tuple(shape))
        now, layers = shape[0], []
        for i in range(depth):
            layers += [_Down(axes, now, (2,) * axes, 3), conv(axes, now, width * 2**i, 3)]
            now = width * 2**i
            layers += [norm(now), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, conv(axes, now, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return a number per patch, (B, N)."""
        out: Tensor = self.layers(x).flatten(1)
        return out
