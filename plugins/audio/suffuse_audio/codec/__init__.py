"""Codecs: maps between sound and the states that are diffused."""

from suffuse_audio.codec.latent import Latent
from suffuse_audio.codec.magnitude import Magnitude
from suffuse_audio.codec.mdct import Mdct
from suffuse_audio.codec.mel import Mel
from suffuse_audio.codec.picture import Picture
from suffuse_audio.codec.stft import Stft
from suffuse_audio.codec.waveform import Waveform

__all__ = ["Latent", "Magnitude", "Mdct", "Mel", "Picture", "Stft", "Waveform"]
