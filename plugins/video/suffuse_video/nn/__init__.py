"""Networks for clips (B, C, T, H, W)."""

from suffuse_video.nn.folded import FoldedUNet

__all__ = ["FoldedUNet"]
