"""Metrics of clouds."""

from suffuse_shapes.metrics.attributes import Attributes
from suffuse_shapes.metrics.auto import Auto
from suffuse_shapes.metrics.likeness import Likeness

__all__ = ["Attributes", "Auto", "Likeness"]
