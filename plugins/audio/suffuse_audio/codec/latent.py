r"""Latent: the latents of a pretrained autoencoder, standardised per channel.

Stable Audio's ``AutoencoderOobleck`` of diffusers, from a folder or the hub (safetensors only). z = E[z | x]; each
channel is shifted and scaled by the data's own mean and deviation. The autoencoder is frozen and no part of the model:
a checkpoint holds its name and what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from suffuse.errors import ConfigError
from torch import Tensor, nn

from suffuse_audio.codec.base import AudioCodec

__all__ = ["Latent"]


class Latent(AudioCodec, nn.Module):
    """Latents (B, D, N / r) of a frozen autoencoder with the down-sampling r.

    Arguments:
        path: Folder of an ``AutoencoderOobleck``, its pipeline (with a folder ``vae``), or a name on the hub.
        download: Allow the hub; else only what is on disk.
        batch: Sounds that are encoded or decoded at a time.
        about: See `AudioCodec`.
        seconds: See `AudioCodec`.

    Raises:
        ConfigError: Without `path`, without diffusers, when there is no such autoencoder, or when its channels or its
            down-sampling do not fit the data.
    """

    tolerance = float("inf")

    def __init__(
        self, path: str | None = None, download: bool = False, batch: int = 16, about: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        AudioCodec.__init__(self, about, seconds)
        if not path:
            raise ConfigError("codec.path is not set; give a folder with an autoencoder")
        self.vae = _loaded(str(path), download)
        config = self.vae.config
        self.frame = self.overlap = int(torch.tensor(config.downsampling_ratios).prod())
        self.batch = batch
        if config.audio_channels != self.channels:
            raise ConfigError(
                f"codec.path={path}: made for {config.audio_channels} channels, but data.channels={self.channels}"
            )
        if self.samples % self.frame:
            raise ConfigError(
                f"codec.path={path}: {self.frame} samples make a latent, which does not divide the {self.samples} of a "
                "sound; change data.seconds"
            )
        if about and about.get("rate") and getattr(config, "sampling_rate", self.rate) != self.rate:
            raise ConfigError(
                f"codec.path={path}: made for {config.sampling_rate} Hz; set data.rate={config.sampling_rate}"
            )
        mean, scale = self.stats.get("mean"), self.stats.get("scale")
        size = int(config.decoder_input_channels)
        self._mean = torch.zeros(size) if mean is None else torch.tensor(mean)
        self._scale = torch.ones(size) if scale is None else torch.tensor(scale)
        self.requires_grad_(False).eval()

    def measure(self, x: Tensor) -> Mapping[str, Any]:
        """Return mean and deviation of every latent channel."""
        z = self._latents(x.float()).double()
        spread = z.std((0, 2)).clamp(min=1e-6)
        return {"mean": [round(v, 6) for v in z.mean((0, 2)).tolist()], "scale": [round(v, 6) for v in spread.tolist()]}

    def encode(self, x: Tensor) -> Tensor:
        """Return standardised latents (B, D, N / r)."""
        z = self._latents(x.float())
        return (z - self._mean.to(z)[:, None]) / self._scale.to(z)[:, None]

    def decode(self, state: Any) -> Tensor:
        """Return samples (B, C, N)."""
        if not isinstance(state, Tensor):
            raise TypeError(f"Latent decodes one tensor, not {type(state).__name__}")
        z = state.float() * self._scale.to(state.device)[:, None] + self._mean.to(state.device)[:, None]
        with torch.no_grad():
            parts = [self.vae.decode(part).sample for part in z.split(self.batch)]
        return self.cut(torch.cat(parts)[..., : state.shape[-1] * self.frame])

    def _latents(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.vae.encode(part).latent_dist.mean for part in x.split(self.batch)])


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
