"""LoRA: adapters of low rank that are trained in the place of a network's weights, through the peft library.

W x becomes W x + (alpha / r) B A x with A (r, in) and B (out, r), B zero at the start: "LoRA: Low-Rank Adaptation of
Large Language Models", Hu et al. 2022, section 4.1. A checkpoint of such a run holds the adapters alone; the weights
come from the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.errors import ConfigError

__all__ = ["adapted", "keep_adapters_only", "merged", "weights"]

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers of attention, as every network of diffusers calls them."""
NAME = "default"


def adapted(
    inner: nn.Module, rank: int, alpha: int | None = None, targets: Sequence[str] | None = None, seed: int = 0
) -> None:
    """Give a network adapters, and freeze everything else.

    Arguments:
        inner: The network, changed in place.
        rank: r.
        alpha: Numerator of the scale; by default r.
        targets: Ends of the names of the linear or convolutional layers that get one.
        seed: Of A.

    Raises:
        ConfigError: Without peft, for a rank below 1, or when no layer has such a name.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"model.lora={rank} must be a rank of at least 1, or 0 for none")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("model.lora needs peft: pip install 'suffuse[pretrained]'") from error
    wanted = list(targets or TARGETS)
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=wanted, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, inner, adapter_name=NAME)
        except ValueError as error:
            raise ConfigError(f"model.lora_targets={wanted}: no layer of the network has such a name") from error
    for name, parameter in inner.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()


def keep_adapters_only(module: nn.Module) -> None:
    """Let the module's state dict hold its adapters alone; loading one leaves the frozen weights as they are."""

    def saved(_: nn.Module, state: dict[str, Tensor], prefix: str, __: Any) -> None:
        for key in [key for key in state if key.startswith(prefix) and "lora_" not in key]:
            del state[key]

    def loaded(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, value in own.items():
            if "lora_" not in name:
                state.setdefault(prefix + name, value.detach())

    module.register_state_dict_post_hook(saved)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(loaded)  # type: ignore[no-untyped-call]


def weights(inner: nn.Module) -> dict[str, Tensor]:
    """Return the adapters, named as peft names them."""
    from peft import get_peft_model_state_dict

    found: dict[str, Tensor] = get_peft_model_state_dict(inner, adapter_name=NAME)
    return found


def merged(inner: nn.Module) -> None:
    """Add the adapters to the weights and take them away, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(inner.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, leaf = name.rpartition(".")
            setattr(inner.get_submodule(parent), leaf, layer.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        vars(inner).pop(attribute, None)
