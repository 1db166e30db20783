"""Pretrained: an autoencoder of diffusers, of clips or of pictures, frozen, from a folder or the hub."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from suffuse.autoencoder import Coder
from suffuse.errors import ConfigError
from torch import Tensor, nn

from suffuse_video.codec.pixels import Pixels
from suffuse_video.codec.sizes import Reduction

__all__ = ["Pretrained"]


class Pretrained(Coder):
    """An autoencoder of any class of diffusers that maps clips in [-1, 1] to latents, or pictures.

    Arguments:
        path: Folder of the autoencoder, of its pipeline (with a folder ``vae``), or a name on the hub.
        download: Allow the hub.
        about: Facts of the data.
        batch: Clips that are encoded or decoded at a time.

    Raises:
        ConfigError: Without diffusers, or when there is no such autoencoder.
    """

    def __init__(self, path: str, download: bool, about: Mapping[str, Any], batch: int) -> None:
        self.path = path
        network = _loaded(path, download)
        model = _Clips(network)
        # Shapes follow from class and config, so that what was once found out serves every codec of a process.
        self.kind = f"{type(network).__name__} {json.dumps(dict(network.config), sort_keys=True, default=str)}"
        found = Reduction.of(model, self.kind)
        if found is None:
            raise ConfigError(
                f"codec.path={path}: no clip in colour comes back from an {type(network).__name__}; take an "
                "autoencoder of clips or of pictures"
            )
        super().__init__(model, Pixels(about), batch, found.factor, found.latent)

    def statistics(self) -> dict[str, Any]:
        """Return mean and deviation per channel as they come with the autoencoder.

        Raises:
            ConfigError: When it has none, or not one per channel.
        """
        network, config = self.model.network, self.model.network.config
        buffers = dict(network.named_buffers())
        mean, std = (_plain(buffers.get(k), config.get(k)) for k in ("latents_mean", "latents_std"))
        factor = config.get("scaling_factor")
        if mean is None and std is None and factor is None:
            raise ConfigError(
                f"codec.statistics=own: the {type(network).__name__} in codec.path={self.path} has none; leave "
                "codec.statistics=data"
            )
        mean = mean or [float(config.get("shift_factor") or 0.0)] * self.latent
        std = std or [1.0] * self.latent
        if len(mean) != self.latent or len(std) != self.latent:
            raise ConfigError(
                f"codec.statistics=own: codec.path={self.path} has {len(mean)} means for {self.latent} channels; leave "
                "codec.statistics=data"
            )
        return {"mean": mean, "scale": [value / float(factor or 1.0) for value in std]}


class _Clips(nn.Module):
    """The network as a map of states (B, 3, T, H, W) to latents (B, D, T', H', W') and back."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        # What convolves over time takes clips; what does not takes pictures.
        self.frames = not any(isinstance(layer, nn.Conv3d) for layer in network.modules())

    def encode(self, x: Tensor) -> Tensor:
        """Return the posterior's mean; of an autoencoder without a posterior, the latent."""
        found = self.network.encode(_folded(x) if self.frames else x)
        if hasattr(found, "latent_dist"):
            z: Tensor = found.latent_dist.mode()
        else:
            z = found.latent if hasattr(found, "latent") else found.latents
        return _unfolded(z, len(x)) if self.frames else z

    def decode(self, z: Tensor) -> Tensor:
        """Return states."""
        # Decoders that remove noise as well are told that there is none.
        clean = [z.new_zeros(len(z))] if self.network.config.get("timestep_conditioning") else []
        found: Tensor = self.network.decode(_folded(z) if self.frames else z, *clean).sample
        return _unfolded(found, len(z)) if self.frames else found


def _folded(x: Tensor) -> Tensor:
    """Return clips (B, C, T, H, W) as pictures (B T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfolded(x: Tensor, rows: int) -> Tensor:
    """Invert `_folded`."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2).contiguous()


def _loaded(path: str, download: bool) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError("codec=video/latent needs diffusers: pip install 'suffuse-video[latent]'") from error
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
