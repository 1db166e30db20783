"""Data sets of clips: items ``x`` are float32 (3, T, H, W) in [0, 1]."""

from suffuse_video.data.clips import Clips
from suffuse_video.data.folder import Folder
from suffuse_video.data.moving_mnist import MovingMNIST
from suffuse_video.data.shapes import Shapes
from suffuse_video.data.shards import Shards

__all__ = ["Clips", "Folder", "MovingMNIST", "Shapes", "Shards"]
