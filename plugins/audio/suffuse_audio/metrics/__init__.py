"""Metrics of sounds."""

from suffuse_audio.metrics.attributes import Attributes
from suffuse_audio.metrics.auto import Auto
from suffuse_audio.metrics.fad import Fad
from suffuse_audio.metrics.features import Features
from suffuse_audio.metrics.reconstruction import Reconstruction

__all__ = ["Attributes", "Auto", "Fad", "Features", "Reconstruction"]
