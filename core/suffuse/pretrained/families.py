"""Families: which published models there are, and what the parts of their folders are called. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FAMILIES", "LOADABLE", "Family", "family_of", "supported"]


@dataclass(frozen=True)
class Family:
    """Models that are called alike.

    Arguments:
        name: What we call it.
        pipelines: ``_class_name`` of ``model_index.json``.
        network: Part that is the denoiser.
        classes: Its classes in diffusers.
        modality: Which modality writes and shows what it draws.
        signal: Which codec of that modality has the numbers that the autoencoder takes.
        how: Arguments of that codec, where they are not its usual ones.
        scale: Guidance that its pipeline takes by default.
        steps: Steps that its pipeline takes by default.
        texts: Parts that read the prompt.
        vae: Whether it works on latents.
        even: Whether its pipeline hands the scheduler evenly spaced levels from 1 to 1/N.
        asks: What may be asked of a sample beside conditions.
    """

    name: str
    pipelines: tuple[str, ...]
    network: str
    classes: tuple[str, ...]
    modality: str = "image"
    signal: str = "pixels"
    how: tuple[tuple[str, Any], ...] = ()
    scale: float = 1.0
    steps: int = 50
    texts: tuple[str, ...] = ()
    vae: bool = True
    even: bool = False
    asks: tuple[tuple[str, str], ...] = (
        ("height", "height in pixels"),
        ("width", "width in pixels"),
        ("tiled", "true decodes in tiles, which takes less memory"),
    )


FAMILIES = (
    Family(
        "Stable Diffusion 1 and 2",
        ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
        "unet", ("UNet2DConditionModel",), scale=7.5, texts=("text_encoder",),
    ),
    Family(
        "Stable Diffusion XL",
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        "unet", ("UNet2DConditionModel",), scale=5.0, texts=("text_encoder", "text_encoder_2"),
    ),
    Family(
        "Stable Diffusion 3",
        ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
        "transformer", ("SD3Transformer2DModel",), scale=7.0, steps=28,
        texts=("text_encoder", "text_encoder_2", "text_encoder_3"),
    ),
    Family(
        "Flux",
        ("FluxPipeline", "FluxImg2ImgPipeline"),
        "transformer", ("FluxTransformer2DModel",), steps=28, texts=("text_encoder", "text_encoder_2"), even=True,
    ),
    Family(
        "PixArt",
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        "transformer", ("PixArtTransformer2DModel", "Transformer2DModel"), scale=4.5, steps=20,
        texts=("text_encoder",),
    ),
    Family(
        "Stable Audio",
        ("StableAudioPipeline",),
        "transformer", ("StableAudioDiTModel",), modality="audio", signal="waveform", how=(("patch", 1),),
        scale=7.0, steps=100, texts=("text_encoder",), asks=(("seconds", "length of the sounds that are drawn"),),
    ),
    Family(
        "unconditional U-Net",
        ("DDPMPipeline", "DDIMPipeline", "UNet2DModel"),
        "unet", ("UNet2DModel",), vae=False, asks=(("height", "height in pixels"), ("width", "width in pixels")),
    ),
)  # fmt: skip

LOADABLE: Mapping[str, tuple[str, ...]] = {
    "vae": ("AutoencoderKL", "AutoencoderTiny", "AutoencoderOobleck"),
    "projection_model": ("StableAudioProjectionModel",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"),
}
"""Classes of the other parts; a folder that names another one is refused, so that it cannot name code of its own."""


def family_of(pipeline: str) -> Family | None:
    """Return the family of a ``_class_name``, or None."""
    return next((family for family in FAMILIES if pipeline in family.pipelines), None)


def supported() -> str:
    """Return the names of the families on one line."""
    return ", ".join(f"{family.name} ({family.pipelines[0]})" for family in FAMILIES)
