"""Data sets of sounds: items ``x`` are float32 (C, N) in [-1, 1]."""

from suffuse_audio.data.clips import Clips
from suffuse_audio.data.folder import Folder
from suffuse_audio.data.rendered import Rendered

__all__ = ["Clips", "Folder", "Rendered"]
