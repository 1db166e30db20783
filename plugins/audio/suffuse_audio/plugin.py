"""Plugin: describes the audio modality to suffuse without importing torch."""

from pathlib import Path

from suffuse import Modality, hookimpl

__all__ = ["suffuse_modalities"]


@hookimpl
def suffuse_modalities() -> list[Modality]:
    """Return the one modality of this package."""
    return [Modality("audio", "sounds as waveforms, spectrograms or latents", conf=Path(__file__).parent / "conf")]
