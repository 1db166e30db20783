"""Autoencoders of the diffusers library, from a folder or the hub: loading, statistics, and pictures through them.

Any class that maps pictures (or clips) in [-1, 1] to latents: ``AutoencoderKL``, ``AutoencoderTiny``, ``AutoencoderDC``
and others. Only safetensors are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.autoencoder import Coder
from suffuse.errors import ConfigError

__all__ = ["PicturesCoder", "decoded", "encoded", "load", "statistics"]


def load(path: str, download: bool, remedy: str = "pip install 'suffuse[pretrained]'") -> Any:
    """Return an autoencoder in float32.

    Arguments:
        path: Folder of the autoencoder, of its pipeline (with a folder ``vae``), or a name on the hub.
        download: Allow the hub.
        remedy: What to do without diffusers.

    Raises:
        ConfigError: Without diffusers, or when there is no autoencoder.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(f"codec.path={path} needs diffusers: {remedy}") from error
    folder = Path(path).expanduser()
    if not folder.is_dir() and not download:
        raise ConfigError(f"codec.path={path}: no such folder; allow the hub with codec.download=true")
    where = str(folder) if folder.is_dir() else path
    how: dict[str, Any] = {"local_files_only": not download}
    try:
        config, inside = _config(diffusers, folder, where, how)
        name = str(config.get("_class_name"))
        if not hasattr(diffusers, name):
            raise ConfigError(f"codec.path={path}: diffusers knows no class {name}")
        return getattr(diffusers, name).from_pretrained(
            where, use_safetensors=True, torch_dtype=torch.float32, low_cpu_mem_usage=False, **inside, **how
        )
    except ConfigError:
        raise
    except Exception as error:  # the library raises a dozen kinds for what a wrong folder or no network causes
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"codec.path={path}: diffusers cannot load an autoencoder from it ({text})") from error


def statistics(network: Any, path: str, latent: int) -> dict[str, Any]:
    """Return mean and deviation per channel as they come with an autoencoder.

    Arguments:
        network: The autoencoder.
        path: Where it is from, for messages.
        latent: Channels of a latent.

    Raises:
        ConfigError: When it has none, or not one per channel.
    """
    config, buffers = network.config, dict(network.named_buffers())
    mean, std = (_plain(buffers.get(k), config.get(k)) for k in ("latents_mean", "latents_std"))
    factor = config.get("scaling_factor")
    if mean is None and std is None and factor is None:
        raise ConfigError(
            f"codec.statistics=own: the {type(network).__name__} in codec.path={path} has none; leave "
            "codec.statistics=data"
        )
    mean = mean or [float(config.get("shift_factor") or 0.0)] * latent
    std = std or [1.0] * latent
    if len(mean) != latent or len(std) != latent:
        raise ConfigError(
            f"codec.statistics=own: codec.path={path} has {len(mean)} means for {latent} channels; leave "
            "codec.statistics=data"
        )
    return {"mean": mean, "scale": [value / float(factor or 1.0) for value in std]}


def encoded(network: Any, x: Tensor) -> Tensor:
    """Return the posterior's mean of what is in [-1, 1]; of an autoencoder without a posterior, the latent."""
    found = network.encode(x)
    if hasattr(found, "latent_dist"):
        return found.latent_dist.mode()  # type: ignore[no-any-return]
    return found.latent if hasattr(found, "latent") else found.latents  # type: ignore[no-any-return]


def decoded(network: Any, z: Tensor) -> Tensor:
    """Return what a latent stands for."""
    # Decoders that remove noise as well are told that there is none.
    clean = [z.new_zeros(len(z))] if network.config.get("timestep_conditioning") else []
    found: Tensor = network.decode(z, *clean).sample
    return found


class PicturesCoder(Coder):
    """An autoencoder of pictures of diffusers behind a codec.

    Arguments:
        path: See `load`.
        download: See `load`.
        codec: Encodes data to pictures (B, C, H, W) in [-1, 1].
        batch: Rows that are encoded or decoded at a time.

    Raises:
        ConfigError: As `load`; when pictures of 64 pixels do not come back from it.
    """

    def __init__(self, path: str, download: bool, codec: Any, batch: int) -> None:
        self.path = path
        network = load(path, download)
        channels = int(network.config.get("in_channels", 3))
        side = 64
        model = _Pictures(network)
        try:
            with torch.no_grad():
                z = model.encode(torch.zeros(1, channels, side, side))
                back = model.decode(z)
        except Exception as error:  # an autoencoder of clips, or of sounds, meets a picture in its own way
            raise ConfigError(
                f"codec.path={path}: an {type(network).__name__} does not encode pictures; take an AutoencoderKL, "
                "AutoencoderTiny or AutoencoderDC"
            ) from error
        if back.shape[-2:] != (side, side) or z.ndim != 4:
            raise ConfigError(f"codec.path={path}: pictures do not come back from an {type(network).__name__}")
        super().__init__(model, codec, batch, (side // z.shape[2], side // z.shape[3]), z.shape[1])
        self.channels = channels

    def statistics(self) -> dict[str, Any]:
        """Return mean and deviation per channel as they come with the autoencoder."""
        return statistics(self.model.network, self.path, self.latent)


class _Pictures(nn.Module):
    """The network as a map of pictures to latents and back."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def encode(self, x: Tensor) -> Tensor:
        """Return latents."""
        return encoded(self.network, x)

    def decode(self, z: Tensor) -> Tensor:
        """Return pictures."""
        return decoded(self.network, z)


def _config(diffusers: Any, folder: Path, where: str, how: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """Return an autoencoder's config, and how to say where in a pipeline it is."""
    if not folder.is_dir():
        # On the hub most are part of a pipeline; those that are not have their config at the top.
        with contextlib.suppress(Exception):
            return diffusers.AutoModel.load_config(where, subfolder="vae", **how), {"subfolder": "vae"}
    inside = {"subfolder": "vae"} if (folder / "vae").is_dir() else {}
    return diffusers.AutoModel.load_config(where, **inside, **how), inside


def _plain(*values: Any) -> list[float] | None:
    """Return the first that is there as a list; a network that has statistics as buffers was trained with these."""
    for value in values:
        if isinstance(value, Tensor):
            return [float(v) for v in value.flatten().tolist()]
        if value is not None:
            return [float(v) for v in value]
    return None
