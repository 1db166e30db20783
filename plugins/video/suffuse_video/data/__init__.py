"""Data sets of clips: items ``x`` are float32 (3, T, H, W) in [0, 1]."""

from suffuse_video.data.shapes import Shapes

__all__ = ["Shapes"]
