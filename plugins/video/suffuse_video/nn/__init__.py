"""Networks for clips (B, C, T, H, W)."""

from suffuse_video.nn.folded import FoldedUNet
from suffuse_video.nn.tubes import TubeDiT

__all__ = ["FoldedUNet", "TubeDiT"]
