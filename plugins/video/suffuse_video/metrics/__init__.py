"""Metrics of clips."""

from suffuse_video.metrics.attributes import Attributes
from suffuse_video.metrics.auto import Auto
from suffuse_video.metrics.features import Features
from suffuse_video.metrics.fvd import Fvd
from suffuse_video.metrics.given import Given
from suffuse_video.metrics.reconstruction import Reconstruction

__all__ = ["Attributes", "Auto", "Features", "Fvd", "Given", "Reconstruction"]
