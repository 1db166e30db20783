"""Trainer: Lightning's, from a config, and quiet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from suffuse.build import build
from suffuse.errors import ConfigError
from suffuse.training.background import Background
from suffuse.training.distributed import answer_signals
from suffuse.training.fsdp import Sharded
from suffuse.training.io import AtomicIO
from suffuse.training.peers import Peers

__all__ = ["make_trainer", "quiet"]


def make_trainer(
    cfg: Mapping[str, Any], background: Background | None = None, peers: Peers | None = None, **options: Any
) -> Trainer:
    """Return the trainer of a config's group ``trainer``.

    Arguments:
        cfg: The job's config.
        background: Where checkpoints are written.
        peers: Looks after the ranks, where there are several.
        options: Of Lightning's trainer.

    Raises:
        ConfigError: For what Lightning does not take.
    """
    how = cfg["trainer"]
    strategy = how["strategy"]
    if isinstance(strategy, Mapping):
        strategy = build(strategy, "trainer.strategy", accumulate=how["accumulate"])
    if isinstance(strategy, Sharded) and background is not None:
        strategy.background = background
    if peers is not None:  # the first to hear of an error
        options["callbacks"] = [peers, *options["callbacks"]]
    # Deterministic kernels are wanted, not the filling of fresh memory with NaN that torch adds to find bugs.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        trainer = Trainer(
            accelerator=how["accelerator"], devices=cfg["devices"] or how["devices"], num_nodes=how["num_nodes"],
            strategy=strategy, precision=how["precision"], deterministic=how["deterministic"],
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            plugins=[AtomicIO(background)], **options,
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"trainer: {text}") from error
    answer_signals(trainer)
    if peers is not None:
        peers.attach(trainer)
    return trainer


def quiet() -> None:
    """Keep Lightning's own lines off the screen: ours say the same, once."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", message=".*num_workers.*")
