"""SurfaceNet: the signed distance of any place to the surface that a cloud was scanned from.

A place knows its nearest points (offsets, through a small network, mean and maximum over them, as in "PointNet++", Qi
et al. 2017, section 3.2) and, by attention, latents that have read the whole cloud: near a surface the neighbours say
how far it is, and the whole says on which side ("Convolutional Occupancy Networks", Peng et al. 2020, has the two as
well).
"""

from __future__ import annotations

from typing import Any

import torch
from suffuse.errors import ConfigError
from suffuse.nn.embed import fourier
from torch import Tensor, nn

from suffuse_shapes.nn.set import Across, feed

__all__ = ["SurfaceNet"]


class SurfaceNet(nn.Module):
    """Signed distance, negative inside.

    Arguments:
        width: Channels of places and of points.
        latents: Latents that read the cloud.
        depth: Layers among the latents.
        near: Nearest points that a place looks at.
        heads: Attention heads.
        fourier: Fourier features of each coordinate.
        reach: Distances are known up to here; beyond only the side is.
        shape: Ignored: any number of points will do.

    Raises:
        ConfigError: For numbers that do not fit.
    """

    def __init__(
        self, width: int = 64, latents: int = 16, depth: int = 2, near: int = 8, heads: int = 4, fourier: int = 12,
        reach: float = 0.2, shape: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(width, latents, depth, near, heads) < 1 or width % heads:
            raise ConfigError(f"model: {heads} heads do not divide width={width}, or a number is below 1")
        if not reach > 0:
            raise ConfigError(f"model.reach={reach} must be positive")
        self.near, self.fourier, self.reach = near, fourier, reach
        inputs = 3 + 3 * fourier
        self.point, self.place = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.first = nn.Parameter(torch.randn(latents, width) * 0.5)
        self.read, self.ask = Across(width, width, heads, width), Across(width, width, heads, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.think = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.local = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.join = nn.Linear(2 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.feed, self.out = feed(width, 2.0), nn.Linear(width, 1)

    def encode(self, xyz: Tensor) -> Tensor:
        """Return latents (B, L, width) of clouds (B, N, 3)."""
        h = self.norms[0](self.point(self._features(xyz)))
        z = self.first.expand(len(xyz), -1, -1)
        out: Tensor = self.think(z + self.read(z, h))
        return out

    def forward(self, xyz: Tensor, at: Tensor, latents: Tensor | None = None) -> Tensor:
        """Return signed distances (B, Q), within `reach` of 0.

        Arguments:
            xyz: Clouds (B, N, 3) in [-1, 1].
            at: Places (B, Q, 3).
            latents: Of the clouds, where they are known already.
        """
        z = self.encode(xyz) if latents is None else latents
        with torch.no_grad():
            away, index = torch.cdist(at, xyz).topk(min(self.near, xyz.shape[1]), 2, largest=False)
        rows = torch.arange(len(xyz), device=xyz.device)[:, None, None]
        offset = xyz[rows, index] - at[:, :, None]
        local = self.local(torch.cat([offset, away[..., None]], -1) * 8)
        h = self.place(self._features(at)) + self.join(torch.cat([local.mean(2), local.amax(2)], -1))
        h = h + self.ask(self.norms[1](h), z)
        h = h + self.feed(self.norms[2](h))
        return self.reach * torch.tanh(self.out(h)[..., 0])

    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([x, fourier(x, self.fourier, 1.0, 16.0).flatten(2).to(x)], -1)
