"""Callbacks: what happens between optimizer steps, each at its own cadence.

Their order is part of exact resume: figures and previews of a step are written before its checkpoint, so a run that
continues from that checkpoint has nothing left to repeat.
"""

from __future__ import annotations

import functools
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from suffuse import checkpoint as files
from suffuse import signals
from suffuse.disk import named
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise, mix
from suffuse.training import speed
from suffuse.training.background import Background
from suffuse.training.guard import Later
from suffuse.training.loggers import CSVLogger
from suffuse.training.module import TrainingModule
from suffuse.training.progress import Progress

__all__ = ["Checkpoints", "Monitor", "Previews", "Stop", "Validation", "log"]


def log(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Hand `metrics` of the current step to every logger."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


class StepCallback(Callback):
    """Calls `on_step` once after every optimizer step, whatever the accumulation."""

    _seen = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the run starts."""
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call `on_step` when the batch completed an optimizer step."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            assert isinstance(pl_module, TrainingModule)
            self.on_step(trainer, pl_module, trainer.global_step)

    def on_step(self, trainer: Trainer, module: TrainingModule, step: int) -> None:
        """Do what is due after optimizer step number `step` (the first is 1)."""


class Monitor(StepCallback):
    """Logs loss, learning rate, gradient norm, throughput, data-wait and memory; feeds the progress line.

    Arguments:
        every: Optimizer steps between rows; 0 for none.
        progress: Shows the run to whoever watches.
        peak: FLOP/s of one device, for the share of it that is used; None for what is known of the card.
    """

    def __init__(self, every: int, progress: Progress, peak: float | None = None) -> None:
        self.every, self.progress, self.peak = every, progress, peak
        self._counted = False
        self._flops: float | None = None
        self._samples = 0
        self._waited = 0.0
        self._since = self._ready = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks; a resumed run cuts its CSV back to its checkpoint."""
        super().on_train_start(trainer, pl_module)
        self._since = self._ready = time.perf_counter()
        self._samples, self._waited = 0, 0.0
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.resume(trainer.global_step)
        self.progress.start(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch ended as waiting for data."""
        self._waited += time.perf_counter() - self._ready
        self._samples += len(batch["index"]) * trainer.world_size

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Also restart the data-wait clock, and count the operations of the first batch."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self._counted and self.every:
            self._counted, began = True, time.perf_counter()
            self._flops = speed.per_sample(pl_module, batch)
            self._since += time.perf_counter() - began
        self._ready = time.perf_counter()

    def on_step(self, trainer: Trainer, module: TrainingModule, step: int) -> None:
        """Log when a row is due or the run ends."""
        if not self.every or (step % self.every and step != module.steps):
            self.progress.update(step)
            return
        loss = module.take_loss()
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        rate, wait = self._samples / elapsed, min(max(self._waited / elapsed, 0.0), 1.0)
        figures = {
            "loss": loss,
            "lr": module.optimizers().param_groups[0]["lr"],  # type: ignore[union-attr]
            "grad_norm": module.grad_norm,
            "perf/samples_per_s": rate,
            "perf/data_wait": wait,
            "perf/memory_mb": _memory_mb(),
        }
        figures |= self._figures(trainer, rate)
        log(trainer, figures)
        module.record.setdefault("metrics", {})["loss"] = loss
        self.progress.update(step, loss=loss, rate=rate, wait=wait)
        self.restart()

    def _figures(self, trainer: Trainer, rate: float) -> dict[str, float]:
        """Return the operations per second of all devices together, and the share of their peak where it is known."""
        if self._flops is None:
            return {}
        reached = self._flops * rate
        peak = self.peak or speed.peak(trainer.strategy.root_device, str(trainer.precision))
        share = {"perf/mfu": reached / trainer.world_size / peak} if peak else {}
        return {"perf/tflops": reached / 1e12, **share}

    def restart(self) -> None:
        """Restart the throughput window."""
        self._since = self._ready = time.perf_counter()
        self._samples, self._waited = 0, 0.0


def _memory_mb() -> float:
    """Return the peak memory of this process, on the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Validation(StepCallback):
    """Loss of the averaged weights on held-out items with noise and times that never change, so runs compare.

    Arguments:
        every: Optimizer steps between validations; 0 for none.
        limit: Held-out items used.
        monitor: Its throughput window is restarted, so that validation does not count as training.
    """

    def __init__(self, every: int, limit: int, monitor: Monitor) -> None:
        self.every, self.limit, self.monitor = every, limit, monitor

    def on_step(self, trainer: Trainer, module: TrainingModule, step: int) -> None:
        """Validate when due, and after the last step."""
        if self.every and (step % self.every == 0 or step == module.steps):
            loss = self.loss(trainer, module)
            log(trainer, {"val/loss": loss})
            module.record.setdefault("metrics", {})["val/loss"] = loss
            self.monitor.restart()

    def loss(self, trainer: Trainer, module: TrainingModule) -> float:
        """Return the mean loss over the first `limit` held-out items, over all ranks."""
        rank, world = module.global_rank, trainer.world_size
        count = min(self.limit, len(module.data.val))  # type: ignore[arg-type]
        sums = torch.zeros(2, dtype=torch.float64, device=module.device)
        start = rank
        with module.averaged() as model, torch.no_grad(), trainer.strategy.precision_plugin.forward_context():
            for batch in module.data.val_loader(count, rank, world):
                rows = len(batch["index"])
                # Each item's place in the held-out order decides its noise and its stratum of times.
                positions = torch.arange(rows, device=module.device) * world + start
                start += rows * world
                noise = KeyedNoise(positions + mix(0, 3) % 2**62)
                x0 = module.codec.encode(_to(batch["x"], module.device))
                raw = {name: value.to(module.device) for name, value in batch["cond"].items()}
                losses = model.loss(x0, raw, noise, 0, positions, count).per_sample
                sums += torch.stack([losses.double().sum(), losses.new_tensor(rows).double()])
        sums = trainer.strategy.reduce(sums, reduce_op="sum")
        return float(sums[0] / sums[1])


def _to(x: Any, device: torch.device) -> Any:
    if isinstance(x, dict):
        return {name: _to(field, device) for name, field in x.items()}
    return x.to(device)


class Previews(StepCallback):
    """Shows the same samples every time, of the averaged weights.

    Arguments:
        every: Optimizer steps between previews; 0 for none.
        show: Returns that many decoded samples and their captions, see `suffuse.task.Task.show`.
        num: Samples of a preview.
        preview: The modality's preview.
        folder: Where ``step-*.png`` go.
        monitor: As in `Validation`.
    """

    def __init__(
        self, every: int, show: Callable[[int], tuple[Any, list[str]]], num: int, preview: Any, folder: Path,
        monitor: Monitor,
    ) -> None:  # fmt: skip
        self.every, self.show, self.num = every, show, num
        self.preview, self.folder, self.monitor = preview, folder, monitor

    def on_step(self, trainer: Trainer, module: TrainingModule, step: int) -> None:
        """Draw on the first rank when due; on all of them where each holds a part of the weights."""
        if not self.every or step % self.every:
            return
        if trainer.is_global_zero or module.is_spread:
            with module.averaged(), trainer.strategy.precision_plugin.forward_context():
                xs, captions = self.show(self.num)
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step-{step:06d}.png"
            with named(path):
                self.preview.overview(xs, captions, path)
            for logger in trainer.loggers:
                if hasattr(logger, "log_image"):
                    media = self.preview.media(xs, captions)
                    kinds = media if isinstance(media, Mapping) else {"": media}
                    shown = {f"preview/{kind}".strip("/"): of for kind, of in kinds.items()}
                    logger.log_metrics(shown, step=step)
        self.monitor.restart()


class Checkpoints(Checkpoint, StepCallback):
    """Writes ``step-*.ckpt``, keeps the newest few, and names the newest ``last.ckpt``.

    Lightning runs `Checkpoint` callbacks last, which exact resume needs.

    Arguments:
        every: Optimizer steps between checkpoints; 0 for the last step only.
        keep: Number of step checkpoints kept.
        folder: Directory of the files.
        background: Where they are written.
    """

    def __init__(self, every: int, keep: int, folder: Path, background: Background | None = None) -> None:
        self.every, self.keep, self.folder = every, keep, folder
        self.background = background or Background()
        self.saved = -1

    def on_step(self, trainer: Trainer, module: TrainingModule, step: int) -> None:
        """Save when due, after the last step, and before stopping early."""
        if (self.every and step % self.every == 0) or step == module.steps or trainer.should_stop:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save the current step once."""
        if self.saved == trainer.global_step:
            return
        path = self.folder / f"step-{trainer.global_step:06d}.ckpt"
        trainer.save_checkpoint(path)
        self.saved = trainer.global_step
        if trainer.is_global_zero:
            self.background.submit(functools.partial(self._publish, path))

    def _publish(self, path: Path) -> None:
        """Name the newest, and remove what is not kept."""
        files.link(path, self.folder / "last.ckpt")
        for old in files.in_order(self.folder)[: -self.keep]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for left in self.folder.glob(".step-*.ckpt.*"):  # of a sharded checkpoint that a killed run did not finish
            if left.is_dir():
                shutil.rmtree(left)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until everything is written."""
        self.background.drain()
        trainer.strategy.barrier("checkpoints")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish what is being written, which is whole."""
        self.background.drain()


class Stop(StepCallback):
    """Turns SIGTERM, SIGUSR1 and SIGINT into a checkpoint and a clean end; a second SIGINT ends at once.

    `signum` is the signal that ended the run, if one did; the same on all ranks.

    Arguments:
        requeue: Names of the signals after which SLURM is to start the job again, as ``USR1``.
    """

    def __init__(self, requeue: Sequence[str] = ()) -> None:
        unknown = [name for name in requeue if not hasattr(signal, f"SIG{name}")]
        if unknown:
            raise ConfigError(f"trainer.requeue={list(requeue)}: no signal {unknown[0]}; name them as [USR1, TERM]")
        self.requeue = {int(getattr(signal, f"SIG{name}")) for name in requeue}
        self.signum: int | None = None
        self._agreed = Later()
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen from the first step on; a signal that came before is answered after that one."""
        super().on_train_start(trainer, pl_module)
        self.signum = signals.kept()
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):  # the last one is not everywhere
            if (signum := getattr(signal, name, None)) is None:
                continue
            self._previous[signum] = signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_step(self, trainer: Trainer, module: TrainingModule, step: int) -> None:
        """Stop all ranks at the same step; the checkpoint callback, which runs last, then saves."""
        stop = self.signum
        if trainer.world_size > 1:
            device = trainer.strategy.root_device
            received = torch.full((), self.signum or 0, device=device)
            # Not through Lightning, which would wait for the device before.
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
            self._agreed.send(received)
            # What all agreed on some steps ago on a GPU, which nobody waits for.
            found = [int(signum) for signum in self._agreed.read(wait=device.type != "cuda")]
            stop = max(found, default=0) or None
        if stop is not None:
            self.signum, trainer.should_stop = stop, True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()
