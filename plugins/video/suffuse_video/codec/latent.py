r"""Latent: latents of an autoencoder of clips or of pictures, standardised per channel.

It is one that ``task=autoencoder`` trained, or one of diffusers, from a folder or the hub (safetensors only): of clips,
as ``AutoencoderKLWan``, ``AutoencoderKLLTXVideo``, ``AutoencoderKLHunyuanVideo`` and ``AutoencoderKLCogVideoX``, or of
pictures, as ``AutoencoderKL``, ``AutoencoderTiny`` and ``AutoencoderDC``, which encodes every frame by itself.
z = (E[z | 2 x - 1] - m) / s, see `suffuse.latent`. The autoencoder is frozen and no part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from suffuse.autoencoder import Coder, Frozen
from suffuse.errors import ConfigError
from suffuse.latent import Latent as Base
from suffuse.latent import checked, moments
from torch import Tensor, nn

from suffuse_video.codec.pixels import wanted
from suffuse_video.codec.pretrained import Pretrained
from suffuse_video.codec.sizes import Sizes
from suffuse_video.codec.tiles import tile_in

__all__ = ["Latent"]


class Latent(Base):
    """Latents (B, D, T', H', W').

    Arguments:
        ckpt: Run directory or checkpoint of ``task=autoencoder``; or give `path`.
        path: Folder of an autoencoder of diffusers, its pipeline (with a folder ``vae``), or a name on the hub.
        download: Allow the hub; else only what is on disk.
        batch: Clips that are encoded or decoded at a time.
        tile: Side in pixels of the overlapping squares that larger frames are encoded and decoded in; None for whole
            frames.
        statistics: ``data`` for m and s measured on the data, ``own`` for those that come with the autoencoder.
        about: Facts of the data: ``frames``, ``height``, ``width``.
        frames: Frames of the samples that are drawn; by default those of the training data.

    Raises:
        ConfigError: Without exactly one of `ckpt` and `path`, without diffusers for the latter, when clips of the data
            or of `frames` do not come back from the autoencoder in their size, or an argument is out of range.
        CheckpointError: When there is no autoencoder at `ckpt`, or another one than the model was trained on.
    """

    def __init__(
        self, ckpt: str | None = None, path: str | None = None, download: bool = False, batch: int = 8,
        tile: int | None = None, statistics: str = "data", about: Mapping[str, Any] | None = None,
        frames: int | None = None,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        if bool(ckpt) == bool(path):
            raise ConfigError(
                "codec: give either codec.ckpt, a run of task=autoencoder, or codec.path, an autoencoder of diffusers"
            )
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ConfigError(f"codec.batch={batch} must be a whole number of at least 1")
        if statistics not in ("data", "own"):
            raise ConfigError(f"codec.statistics={statistics} is neither 'data' nor 'own'")
        self.frames, facts = wanted(frames), dict(about or {})
        if self.frames and facts:
            facts["frames"] = self.frames
        self.coder: Coder = Pretrained(str(path), download, facts, batch) if path else Frozen(ckpt, facts, batch)
        key, name = ("codec.path", path) if path else ("codec.ckpt", ckpt)
        self.own = self.coder.statistics() if statistics == "own" and isinstance(self.coder, Pretrained) else None
        if statistics == "own" and self.own is None:
            raise ConfigError(f"codec.statistics=own: {key}={name} has none; leave codec.statistics=data")
        stats = facts.get("codec") or {}
        checked(self.coder, stats, name, key)
        self.standardise(stats)
        self.sizes = Sizes(self.coder, f"{key}={name}")
        self.shape = self.sizes.latent([int(facts[k]) for k in ("frames", "height", "width")]) if facts else ()
        self.implied = getattr(self.coder.codec, "implied", {})
        if tile is not None:
            tile_in(self.coder, tile)
        self.eval()

    def measure(self, x: Tensor) -> Mapping[str, Any]:
        """Return mean and deviation of every latent channel, and a hash of the weights."""
        return (self.own or moments(self.coder.encode(x))) | {"autoencoder": self.coder.digest()}

    def encode(self, x: Tensor) -> Tensor:
        """Return standardised latents (B, D, T', H', W').

        Arguments:
            x: Clips in [0, 1], shape (B, 3, T, H, W).
        """
        self.sizes.latent(x.shape[2:])
        return super().encode(x)

    def like(self, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> Tensor:
        """Return an empty state of the wanted length, one row per seed."""
        return torch.empty(len(seeds), *self.shape, device=device)
