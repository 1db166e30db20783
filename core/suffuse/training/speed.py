"""Speed: what a model computes per sample, and which share of a card's peak that is.

The floating-point operations of a forward pass are counted by torch where they happen (`torch.utils.flop_counter`:
products of matrices, convolutions, attention); the backward pass costs twice as many. Model FLOPs utilisation is

    MFU = 3 F r / (n P)

for F operations per sample forward, r samples per second on n devices, and P the dense peak of one device ("PaLM",
Chowdhery et al. 2022, appendix B). What activation checkpointing computes again does not count.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from suffuse.noise import KeyedNoise
from suffuse.training.modes import evaluating

__all__ = ["peak", "per_sample"]

_log = logging.getLogger(__name__)

DENSE = {"B200": 2250.0, "H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "RTX 4090": 165.0}
"""TFLOP/s of bf16 products without sparsity, as vendors state them, by a part of the card's name."""


def peak(device: torch.device, precision: str) -> float | None:
    """Return the peak of a device in FLOP/s at a precision, or None where it is not known."""
    if device.type != "cuda" or not precision.startswith(("bf16", "16")):
        return None
    name = torch.cuda.get_device_name(device)
    return next((value * 1e12 for part, value in DENSE.items() if part in name), None)


def per_sample(module: Any, batch: dict[str, Any]) -> float | None:
    """Return the operations of a training step per sample, forward and backward, or None where they are not countable.

    It costs one forward pass and leaves nothing behind: what is random in a step is seeded in every step.
    """
    rows = len(batch["index"])
    positions = torch.arange(rows, device=module.device)
    try:
        with (
            evaluating(module.model), module.gathered(), torch.no_grad(), torch.compiler.set_stance("force_eager"),
            module.trainer.strategy.precision_plugin.forward_context(), FlopCounterMode(display=False) as counter,
        ):  # fmt: skip
            x0 = module.codec.encode(batch["x"])
            before = counter.get_total_flops()
            module.model.loss(x0, batch["cond"], KeyedNoise(positions), 0, positions, rows)
            return 3.0 * float(counter.get_total_flops() - before) / rows
    except Exception as error:  # a loss that cannot be had without gradients; nothing depends on the figure
        _log.debug("operations not counted: %s", error)
        return None
