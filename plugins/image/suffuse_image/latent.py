r"""Latent: latents of an autoencoder of pictures, standardised per channel.

It is one that ``task=autoencoder`` trained, or one of diffusers (``AutoencoderKL``, ``AutoencoderDC``,
``AutoencoderTiny``) from a folder or the hub. z = (E[z | 2 x - 1] - m) / s, see `suffuse.latent`; the autoencoder is
frozen and no part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from suffuse.diffusers_autoencoder import PicturesCoder
from suffuse.errors import ConfigError
from suffuse.latent import Given
from suffuse.tiles import tile_in
from torch import Tensor

from suffuse_image.codec import Pixels

__all__ = ["Latent"]


class Latent(Given):
    """Latents (B, D, H', W').

    Arguments:
        ckpt: Run directory or checkpoint of ``task=autoencoder``; or give `path`.
        path: Folder of an autoencoder of diffusers, its pipeline (with a folder ``vae``), or a name on the hub.
        download: Allow the hub; else only what is on disk.
        batch: Pictures that are encoded or decoded at a time.
        tile: Side in pixels of the overlapping squares that larger pictures are encoded and decoded in; None for whole
            pictures.
        statistics: ``data`` for m and s measured on the data, ``own`` for those that come with the autoencoder.
        about: Facts of the data: ``size``, ``channels``.
        height: Height of the pictures that are drawn; by default the data's.
        width: See `height`.
        place: See `suffuse_image.codec.Canvas`.

    Raises:
        ConfigError: Without exactly one of `ckpt` and `path`, without diffusers for the latter, for sizes that are no
            whole latents, or an argument out of range.
        CheckpointError: When there is no autoencoder at `ckpt`, or another one than the model was trained on.
    """

    def __init__(
        self, ckpt: str | None = None, path: str | None = None, download: bool = False, batch: int = 16,
        tile: int | None = None, statistics: str = "data", about: Mapping[str, Any] | None = None,
        height: int | None = None, width: int | None = None, place: str = "middle",
    ) -> None:  # fmt: skip
        facts = dict(about or {})
        pixels = Pixels(facts, height, width, place)
        super().__init__(
            ckpt, path, batch, statistics, facts, lambda name: PicturesCoder(name, download, pixels, batch)
        )  # fmt: skip
        if not path:
            # Of a picture that is given, the size that is asked for counts.
            inner = self.coder.codec
            if isinstance(inner, Pixels):
                inner.canvas = pixels.canvas
        self._check_channels(facts)
        self.shape = self._latent(pixels.canvas.size)
        if self.shape is not None:
            self.like = self._like
        if tile is not None:
            tile_in(self.coder, tile)
        self.eval()

    def encode(self, x: Tensor) -> Tensor:
        """Return standardised latents (B, D, H', W').

        Arguments:
            x: Pictures in [0, 1], shape (B, C, H, W).
        """
        self._latent((x.shape[-2], x.shape[-1]))
        return super().encode(x)

    def _latent(self, size: tuple[int, int] | None) -> tuple[int, ...] | None:
        """Return the shape of the latent of a picture."""
        if size is None:
            return None
        for name, side, factor in zip(("height", "width"), size, self.coder.factor, strict=True):
            if side % factor:
                near = " or ".join(str(n) for n in (side // factor * factor, -(-side // factor) * factor) if n)
                raise ConfigError(
                    f"codec: pictures of {size[0]} x {size[1]} (height x width) do not fill latents of "
                    f"{self.coder.factor[0]} x {self.coder.factor[1]} pixels; {name}={near} would"
                )
        return (self.coder.latent, *(side // f for side, f in zip(size, self.coder.factor, strict=True)))

    def _check_channels(self, facts: Mapping[str, Any]) -> None:
        own = getattr(self.coder, "channels", None)
        if own is not None and facts.get("channels", own) != own:
            raise ConfigError(
                f"{self.named} takes {own} channels, the data has {facts['channels']}; set data.channels={own}"
            )

    def _like(self, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> Tensor:
        """Return an empty state of the size that is drawn, one row per seed."""
        assert self.shape is not None  # else it is no method
        return torch.empty(len(seeds), *self.shape, device=device)
