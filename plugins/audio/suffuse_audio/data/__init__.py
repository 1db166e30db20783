"""Data sets of sounds: items ``x`` are float32 (C, N) in [-1, 1]."""

from suffuse_audio.data.clips import Clips
from suffuse_audio.data.folder import Folder
from suffuse_audio.data.hf import HuggingFace
from suffuse_audio.data.rendered import Rendered
from suffuse_audio.data.shards import Shards
from suffuse_audio.data.torchaudio_sets import TorchAudio

__all__ = ["Clips", "Folder", "HuggingFace", "Rendered", "Shards", "TorchAudio"]
