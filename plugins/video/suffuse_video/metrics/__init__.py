"""Metrics of clips."""

from suffuse_video.metrics.attributes import Attributes

__all__ = ["Attributes"]
