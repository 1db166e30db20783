"""Network: the denoiser of a published model, called as the core calls a network.

``network(x, noise, cond)`` with x the state (B, C, ...), noise what `scheduler.Clock` says (B,), and cond what
`prompt.Prompts` embeds. Here is what each family wants besides: the picture's size, packed latents, rotary angles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.errors import ConfigError
from suffuse.pretrained.folder import Folder, opened
from suffuse.pretrained.lora import adapted, keep_adapters_only

__all__ = ["Network", "pack", "unpack"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Cond = Mapping[str, Tensor]


class Network(nn.Module):
    """The denoiser of a folder.

    Arguments:
        path: The folder.
        dtype: Of its weights: ``float32``, ``bfloat16`` or ``float16``; adapters are float32 all the same.
        checkpointing: Compute activations again in the backward pass, which takes less memory.
        lora: Rank of adapters that are trained in the place of the weights; 0 trains the weights.
        lora_alpha: Numerator of their scale alpha/rank; by default the rank.
        lora_targets: Names of the layers that get one; by default those of attention.
        lora_seed: Seed of their start.

    Raises:
        ConfigError: For an unknown dtype; when the folder or its denoiser is none that we know or does not load.
    """

    def __init__(
        self, path: str, dtype: str = "float32", checkpointing: bool = False, lora: int = 0,
        lora_alpha: int | None = None, lora_targets: list[str] | None = None, lora_seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if dtype not in DTYPES:
            raise ConfigError(f"model.dtype={dtype} is none of {', '.join(DTYPES)}")
        self.folder = opened(path)
        self.folder.check()
        self.dtype = DTYPES[dtype]
        self.inner = self.folder.load(self.folder.family.network).to(self.dtype)
        if checkpointing:
            self.inner.enable_gradient_checkpointing()
        self.lora = lora
        if lora:
            adapted(self.inner, lora, lora_alpha, lora_targets, lora_seed)
            keep_adapters_only(self)
        self._call = CALLS[self.folder.family.name]

    def forward(self, x: Tensor, noise: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the prediction, float32, shaped like x."""
        given = {
            name: value.to(self.dtype) if value.is_floating_point() else value for name, value in (cond or {}).items()
        }
        found: Tensor = self._call(self, x.to(self.dtype), noise, given)
        # A variance that some networks learned beside the mean is no part of the prediction.
        return found[:, : x.shape[1]].float()


def _unet(network: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    found: Tensor = network.inner(x, t, encoder_hidden_states=cond["tokens"], return_dict=False)[0]
    return found


def _xl(network: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    tall, wide = (side * network.folder.factor for side in x.shape[2:])
    # Original size, upper left corner of the crop, size: of a picture that was neither reduced nor cropped.
    sizes = torch.tensor([tall, wide, 0, 0, tall, wide], dtype=x.dtype, device=x.device)
    more = {"text_embeds": cond["vector"], "time_ids": sizes.expand(len(x), 6)}
    found: Tensor = network.inner(
        x, t, encoder_hidden_states=cond["tokens"], added_cond_kwargs=more, return_dict=False
    )[0]
    return found


def _sd3(network: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    found: Tensor = network.inner(
        hidden_states=x, timestep=t, encoder_hidden_states=cond["tokens"], pooled_projections=cond["vector"],
        return_dict=False,
    )[0]  # fmt: skip
    return found


def _flux(network: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    tall, wide = x.shape[2] // 2, x.shape[3] // 2
    places = torch.zeros(tall, wide, 3, dtype=x.dtype, device=x.device)
    places[..., 1] += torch.arange(tall, device=x.device, dtype=x.dtype)[:, None]
    places[..., 2] += torch.arange(wide, device=x.device, dtype=x.dtype)
    found = network.inner(
        hidden_states=pack(x), timestep=t.to(x.dtype) / 1000, guidance=cond.get("guidance"),
        pooled_projections=cond["vector"], encoder_hidden_states=cond["tokens"],
        txt_ids=torch.zeros(cond["tokens"].shape[1], 3, dtype=x.dtype, device=x.device), img_ids=places.flatten(0, 1),
        return_dict=False,
    )[0]  # fmt: skip
    return unpack(found, tall, wide)


def pack(x: Tensor) -> Tensor:
    """Return latents (B, C, H, W) as tokens of two by two, (B, H/2 · W/2, 4C)."""
    rows, channels, tall, wide = x.shape
    tokens = x.reshape(rows, channels, tall // 2, 2, wide // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(rows, -1, 4 * channels)


def unpack(tokens: Tensor, tall: int, wide: int) -> Tensor:
    """Return what `pack` packed, from `tall` by `wide` tokens."""
    rows, _, width = tokens.shape
    x = tokens.reshape(rows, tall, wide, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(rows, width // 4, 2 * tall, 2 * wide)


def _pixart(network: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    more: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if getattr(network.inner, "use_additional_conditions", False):
        tall, wide = (side * network.folder.factor for side in x.shape[2:])
        size = torch.tensor([tall, wide], dtype=x.dtype, device=x.device).expand(len(x), 2)
        more = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
    found: Tensor = network.inner(
        x, encoder_hidden_states=cond["tokens"], encoder_attention_mask=cond["mask"].to(x.dtype), timestep=t,
        added_cond_kwargs=more, return_dict=False,
    )[0]  # fmt: skip
    return found


def _audio(network: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    config = network.inner.config
    angles = get_1d_rotary_pos_embed(
        config.attention_head_dim // 2, x.shape[2] + cond["vector"].shape[1], use_real=True,
        repeat_interleave_real=False,
    )  # fmt: skip
    found: Tensor = network.inner(
        x, t.to(x.dtype), encoder_hidden_states=cond["tokens"], global_hidden_states=cond["vector"],
        rotary_embedding=tuple(angle.to(x.device) for angle in angles), return_dict=False,
    )[0]  # fmt: skip
    return found


def _plain(network: Network, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    found: Tensor = network.inner(x, t, class_labels=cond.get("label"), return_dict=False)[0]
    return found


CALLS: Mapping[str, Callable[[Network, Tensor, Tensor, Cond], Tensor]] = {
    "Stable Diffusion 1 and 2": _unet,
    "Stable Diffusion XL": _xl,
    "Stable Diffusion 3": _sd3,
    "Flux": _flux,
    "PixArt": _pixart,
    "Stable Audio": _audio,
    "unconditional U-Net": _plain,
}


def signature(folder: Folder) -> dict[str, Any]:
    """Return what the network of a folder is told besides the state, as plain facts."""
    config = folder.config(folder.family.network)
    return {
        "classes": int(config.get("num_class_embeds") or 0) if folder.family.name == "unconditional U-Net" else 0,
        "distilled": bool(config.get("guidance_embeds")),
    }
