r"""Latent: the latents of an autoencoder, standardised per channel.

It is one that ``task=autoencoder`` trained, or Stable Audio's ``AutoencoderOobleck`` of diffusers, from a folder or the
hub (safetensors only). z = E[z | x]; each channel is shifted and scaled by the data's own mean and deviation. The
autoencoder is frozen and no part of the model: a checkpoint holds its name and what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from suffuse.autoencoder import Frozen
from suffuse.errors import ConfigError
from suffuse.latent import checked, moments
from torch import Tensor, nn

from suffuse_audio.codec.base import AudioCodec

__all__ = ["Latent"]


class Latent(AudioCodec, nn.Module):
    """Latents (B, D, N / r) of a frozen autoencoder with the down-sampling r.

    Arguments:
        ckpt: Run directory or checkpoint of ``task=autoencoder``; or give `path`.
        path: Folder of an ``AutoencoderOobleck``, its pipeline (with a folder ``vae``), or a name on the hub.
        download: Allow the hub; else only what is on disk.
        batch: Sounds that are encoded or decoded at a time.
        about: See `AudioCodec`.
        seconds: See `AudioCodec`.

    Raises:
        ConfigError: Without exactly one of `ckpt` and `path`, without diffusers for the latter, or when its channels,
            its rate or its down-sampling do not fit the data.
        CheckpointError: When there is no autoencoder at `ckpt`, or another one than the model was trained on.
    """

    tolerance = float("inf")
    decibels = float("inf")
    mean: Tensor
    scale: Tensor

    def __init__(
        self, ckpt: str | None = None, path: str | None = None, download: bool = False, batch: int = 16,
        about: Mapping[str, Any] | None = None, seconds: float | Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        AudioCodec.__init__(self, about, seconds)
        if bool(ckpt) == bool(path):
            raise ConfigError(
                "codec: give either codec.ckpt, a run of task=autoencoder, or codec.path, a folder of diffusers"
            )
        self.coder: _Trained | _Oobleck
        if ckpt:
            self.coder = _Trained(str(ckpt), about, batch)
            checked(self.coder.frozen, self.stats, f"codec.ckpt={ckpt}")
        else:
            self.coder = _Oobleck(str(path), download, batch)
        named = f"codec.ckpt={ckpt}" if ckpt else f"codec.path={path}"
        self.frame = self.overlap = self.coder.factor
        if self.coder.channels != self.channels:
            raise ConfigError(f"{named}: made for {self.coder.channels} channels, but data.channels={self.channels}")
        if self.samples % self.frame:
            raise ConfigError(
                f"{named}: {self.frame} samples make a latent, which does not divide the {self.samples} of a sound; "
                "change data.seconds"
            )
        if about and about.get("rate") and (self.coder.rate or self.rate) != self.rate:
            raise ConfigError(f"{named}: made for {self.coder.rate} Hz; set data.rate={self.coder.rate}")
        mean, scale = self.stats.get("mean"), self.stats.get("scale")
        self.register_buffer("mean", torch.tensor(mean or [0.0] * self.coder.size), persistent=False)
        self.register_buffer("scale", torch.tensor(scale or [1.0] * self.coder.size), persistent=False)
        self.requires_grad_(False).eval()

    def statistics(self, x: Tensor) -> Mapping[str, Any]:
        """Return mean and deviation of every latent channel, and a hash of the weights of one of ours."""
        return moments(self.coder.encode(x.float())) | self.coder.known()

    def analyse(self, x: Tensor) -> Tensor:
        """Return standardised latents (B, D, N / r)."""
        z = self.coder.encode(x.float())
        return (z - self.mean.to(z)[:, None]) / self.scale.to(z)[:, None]

    def synthesise(self, state: Tensor) -> Tensor:
        """Return samples (B, C, N)."""
        z = state.float() * self.scale.to(state.device)[:, None] + self.mean.to(state.device)[:, None]
        return self.coder.decode(z)[..., : state.shape[-1] * self.frame]


class _Trained(nn.Module):
    """An autoencoder of ours."""

    def __init__(self, ckpt: str, about: Mapping[str, Any] | None, batch: int) -> None:
        super().__init__()
        self.frozen = Frozen(ckpt, about, batch)
        trained, codec = self.frozen.model.facts.about, self.frozen.codec
        if not isinstance(codec, AudioCodec):
            raise ConfigError(f"codec.ckpt={ckpt}: not an autoencoder of sounds")
        self.factor, self.size = self.frozen.factor[0] * codec.frame, self.frozen.latent
        self.channels, self.rate = int(trained.get("channels", 1)), trained.get("rate")

    def known(self) -> dict[str, Any]:
        """Return what tells it from another one."""
        return {"autoencoder": self.frozen.digest()}

    def encode(self, x: Tensor) -> Tensor:
        """Return latents."""
        return self.frozen.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return samples."""
        found: Tensor = self.frozen.decode(z)
        return found


class _Oobleck(nn.Module):
    """Stable Audio's autoencoder."""

    def __init__(self, path: str, download: bool, batch: int) -> None:
        super().__init__()
        self.vae, self.batch = _loaded(path, download), batch
        config = self.vae.config
        self.factor, self.size = math.prod(config.downsampling_ratios), int(config.decoder_input_channels)
        self.channels, self.rate = int(config.audio_channels), getattr(config, "sampling_rate", None)

    def known(self) -> dict[str, Any]:
        """Return nothing: its name says what it is."""
        return {}

    def encode(self, x: Tensor) -> Tensor:
        """Return latents."""
        with torch.no_grad():
            return torch.cat([self.vae.encode(part).latent_dist.mean for part in x.split(self.batch)])

    def decode(self, z: Tensor) -> Tensor:
        """Return samples."""
        with torch.no_grad():
            return torch.cat([self.vae.decode(part).sample for part in z.split(self.batch)])


def _loaded(path: str, download: bool) -> Any:
    try:
        from diffusers import AutoencoderOobleck
    except ImportError as error:
        raise ConfigError("codec=audio/latent needs diffusers: pip install 'suffuse-audio[latent]'") from error
    folder = Path(path).expanduser()
    if not folder.is_dir() and not download:
        raise ConfigError(f"codec.path={path}: no such folder; allow the hub with codec.download=true")
    inside = {"subfolder": "vae"} if (folder / "vae").is_dir() or not folder.is_dir() else {}
    try:
        return AutoencoderOobleck.from_pretrained(
            str(folder) if folder.is_dir() else path, use_safetensors=True, local_files_only=not download, **inside
        )
    except Exception as error:  # the library raises a dozen kinds for what a wrong folder or no network causes
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"codec.path={path}: diffusers cannot load an AutoencoderOobleck from it ({text})") from error
