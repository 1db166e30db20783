"""Snapshots: the averages of a run, stored along it, from which `suffuse ema` makes an average of another width."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from suffuse.ema import PostHoc
from suffuse.posthoc import store
from suffuse.training.callbacks import StepCallback
from suffuse.training.module import TrainingModule

__all__ = ["Snapshots"]


class Snapshots(StepCallback):
    """Writes ``step-*.pt`` on the first rank.

    Arguments:
        how: Which averages, how often.
        folder: Directory of the files.
    """

    def __init__(self, how: PostHoc, folder: Path) -> None:
        self.how, self.folder = how, folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed run wrote after the checkpoint that is continued; it is written again."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            for file in self.folder.glob("step-*.pt"):
                if int(file.stem.removeprefix("step-")) > trainer.global_step:
                    file.unlink()

    def on_step(self, trainer: Trainer, module: TrainingModule, step: int) -> None:
        """Store when due."""
        if step % self.how.every or not (trainer.is_global_zero or module.is_spread):
            return
        assert module.ema is not None  # made in on_fit_start
        # Of spread averages every rank gives its part.
        whole = SimpleNamespace(updates=module.ema.updates, tracks=[list(map(_whole, t)) for t in module.ema.tracks])
        if trainer.is_global_zero:
            store(self.folder, step, whole, module.averaged_names, self.how.stds, self.how.dtype)


def _whole(average: Any) -> Any:
    return average.full_tensor().cpu() if hasattr(average, "full_tensor") else average
