"""Codecs: clips (B, 3, T, H, W) in [0, 1] to states (B, C, T', H', W') and back."""

from suffuse_video.codec.latent import Latent
from suffuse_video.codec.pixels import Pixels

__all__ = ["Latent", "Pixels"]
