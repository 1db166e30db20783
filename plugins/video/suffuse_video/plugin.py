"""Plugin: describes the video modality to suffuse without importing torch."""

from pathlib import Path

from suffuse import Modality, hookimpl

__all__ = ["suffuse_modalities"]


@hookimpl
def suffuse_modalities() -> list[Modality]:
    """Return the one modality of this package."""
    return [Modality("video", "clips, in pixels or latents, of any length", conf=Path(__file__).parent / "conf")]
