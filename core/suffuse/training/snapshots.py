"""Snapshots: the averages of a run, stored along it, from which `suffuse ema` makes an average of another width."""

from __future__ import annotations

from pathlib import Path

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
        if step % self.how.every == 0 and trainer.is_global_zero:
            assert module.ema is not None  # made in on_fit_start
            store(self.folder, step, module.ema, module.averaged_names, self.how.stds, self.how.dtype)
