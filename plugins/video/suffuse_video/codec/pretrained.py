"""Pretrained: an autoencoder of diffusers, of clips or of pictures, frozen, from a folder or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from suffuse.autoencoder import Coder
from suffuse.diffusers_autoencoder import decoded, encoded, load, statistics
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
        network = load(path, download, "pip install 'suffuse-video[latent]'")
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
        return statistics(self.model.network, self.path, self.latent)


class _Clips(nn.Module):
    """The network as a map of states (B, 3, T, H, W) to latents (B, D, T', H', W') and back."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        # What convolves over time takes clips; what does not takes pictures.
        self.frames = not any(isinstance(layer, nn.Conv3d) for layer in network.modules())

    def encode(self, x: Tensor) -> Tensor:
        """Return the posterior's mean; of an autoencoder without a posterior, the latent."""
        z = encoded(self.network, _folded(x) if self.frames else x)
        return _unfolded(z, len(x)) if self.frames else z

    def decode(self, z: Tensor) -> Tensor:
        """Return states."""
        found = decoded(self.network, _folded(z) if self.frames else z)
        return _unfolded(found, len(z)) if self.frames else found


def _folded(x: Tensor) -> Tensor:
    """Return clips (B, C, T, H, W) as pictures (B T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfolded(x: Tensor, rows: int) -> Tensor:
    """Invert `_folded`."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2).contiguous()
