"""Module: one optimizer step, and what a checkpoint must hold so that the next step is the same as if nothing stopped.

Everything random in a step (noise, times, dropped conditions, dropout) is a function of (seed, micro-batch, position in
the global batch), so no generator state is saved, and a resumed run repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from suffuse.data import Data
from suffuse.ema import EMA
from suffuse.errors import SuffuseError
from suffuse.noise import KeyedNoise, mix

__all__ = ["TrainingModule"]


class TrainingModule(LightningModule):
    """Trains a task's model on encoded batches.

    Arguments:
        model: What is trained, with ``loss`` and ``prepare``, see `suffuse.task.Task`.
        codec: Maps a batch to states; frozen, so it is no part of the parameters.
        data: Source of the training batches.
        optimizer: Called with the parameters.
        lr: Share of the full learning rate at (step, total steps).
        decay: Decay of the averaged weights, see `suffuse.ema`.
        steps: Optimizer steps in all.
        seed: Seed of every draw.
        accumulate: Micro-batches per optimizer step.
        clip: Largest global norm of the gradient; 0 switches clipping off.
        max_skipped: Steps in a row that a non-finite gradient may cost.
        record: Plain values that go into every checkpoint under ``suffuse``.
    """

    def __init__(
        self, *, model: Any, codec: Any, data: Data, optimizer: Callable[..., torch.optim.Optimizer],
        lr: Callable[[int, int], float], decay: Any, steps: int, seed: int, accumulate: int, clip: float,
        max_skipped: int, record: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        # In tuples, so that they become no submodules: a frozen codec belongs in no checkpoint and no DDP bucket.
        self._codec, self._data = (codec,), (data,)
        self._optimizer, self._lr, self._decay = optimizer, lr, decay
        self.steps, self.seed, self.accumulate, self.clip = steps, mix(seed, 1), accumulate, clip
        self.max_skipped, self.record = max_skipped, record
        self.ema: EMA | None = None
        self._ema_state: dict[str, Any] | None = None
        self.micro = 0
        self.skipped = 0
        self.last_step_skipped = False
        self.grad_norm = math.nan
        self.loss_sum = torch.zeros((), dtype=torch.float64)
        self.loss_count = 0
        self.indices: list[int] = []

    @property
    def codec(self) -> Any:
        """The frozen codec."""
        return self._codec[0]

    @property
    def data(self) -> Data:
        """The data of the run."""
        return self._data[0]

    # One step.

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch."""
        rows = len(batch["index"])
        total = rows * self.trainer.world_size
        positions = torch.arange(rows, device=self.device) + rows * self.global_rank
        noise = KeyedNoise(positions + self.seed % 2**62)
        self._seed_dropout(mix(self.seed, self.micro, self.global_rank, 2) % 2**63)
        with torch.no_grad():
            x0 = self.codec.encode(batch["x"])
        loss: Tensor = self.model.loss(x0, batch["cond"], noise, self.micro, positions, total).total
        self.micro += 1
        self.loss_sum += loss.detach().double().to(self.loss_sum.device)
        self.loss_count += 1
        self.indices.append(self.micro - 1)
        return loss

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Read captions and the like while the batch is still on the host."""
        if isinstance(batch, dict) and "cond" in batch:
            batch = {**batch, "cond": self.model.prepare(batch["cond"])}
        return batch

    def _seed_dropout(self, seed: int) -> None:
        """Seed what draws inside the network."""
        if self.device.type == "cpu":
            # torch.manual_seed would also queue the seed, with a traceback, for a CUDA that nobody starts: 2 ms each.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the global norm; a non-finite norm costs this step its update."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip or math.inf).item()
        self.last_step_skipped = not math.isfinite(norm)
        if not self.last_step_skipped:
            self.grad_norm, self.skipped = norm, 0
            return
        self.skipped += 1
        # Without a gradient an optimizer leaves a parameter and its moments alone.
        for parameter in parameters:
            parameter.grad = None
        if self.skipped > self.max_skipped:
            lr = optimizer.param_groups[0]["lr"]
            raise SuffuseError(
                f"the gradient is NaN or infinite at step {self.global_step} for the {self.skipped}. time in a row "
                f"(lr {lr:.3g}, items {self._items()}); the last checkpoint is untouched: lower optimizer.lr, use "
                "trainer.precision=32-true, or look at those items"
            )

    def _items(self) -> str:
        """Return the dataset indices of this rank's last micro-batches."""
        found: list[int] = []
        for micro in self.indices[-self.accumulate :]:
            loader = self.data.train_loader(micro, self.global_rank, self.trainer.world_size)
            batches = iter(loader.batch_sampler)  # type: ignore[arg-type]
            found += [item[1] if isinstance(item, tuple) else item for item in next(batches)]
        shown = ", ".join(map(str, found[:16]))
        return f"[{shown}{', …' if len(found) > 16 else ''}]"

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average."""
        super().optimizer_step(*args, **kwargs)
        self.indices.clear()
        if self.ema is not None and not self.last_step_skipped:
            self.ema.update()

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its per-step learning rate."""
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        scheduler = LambdaLR(optimizer, lambda step: self._lr(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the stream of micro-batches from the one this run has reached."""
        return self.data.train_loader(self.micro, self.global_rank, self.trainer.world_size)

    # The average.

    def on_fit_start(self) -> None:
        """Make the average where the parameters now live."""
        self.ema = EMA([p for _, p in self._averaged()], self._decay)
        if self._ema_state is not None:
            self.ema.load_state_dict(self._ema_state)
            self._ema_state = None
        if hasattr(self.codec, "to"):
            self.codec.to(self.device)

    def _averaged(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    @property
    def averaged_names(self) -> list[str]:
        """Names of the averaged parameters, as in ``state_dict``."""
        return [name for name, _ in self._averaged()]

    @contextmanager
    def averaged(self) -> Iterator[Any]:
        """Lend the model in evaluation mode with the averaged weights in place."""
        assert self.ema is not None  # made in on_fit_start
        training = self.model.training
        self.model.eval()
        try:
            with self.ema.swap():
                yield self.model
        finally:
            self.model.train(training)

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the averaged weights in ``state_dict``, the raw ones beside, and what else a resumed run needs."""
        assert self.ema is not None  # Lightning saves only while fitting
        raw = checkpoint["state_dict"]
        with self.ema.swap():
            averaged = {name: p.detach().clone() for name, p in self._averaged()}
        checkpoint["current_model_state"] = raw
        checkpoint["state_dict"] = {name: averaged.get(name, value) for name, value in raw.items()}
        ema = self.ema.state_dict()
        checkpoint["suffuse"] = {**self.record, "step": self.trainer.global_step}
        checkpoint["training"] = {
            "micro": self.micro,
            "skipped": self.skipped,
            "grad_norm": self.grad_norm,
            "loss_sum": self.loss_sum.cpu(),
            "loss_count": self.loss_count,
            "ema": ema,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` stored, before the weights are loaded."""
        saved = checkpoint["training"]
        checkpoint["state_dict"] = checkpoint["current_model_state"]
        self.micro, self.skipped = saved["micro"], saved["skipped"]
        self.grad_norm = saved["grad_norm"]
        self.loss_sum, self.loss_count = saved["loss_sum"], saved["loss_count"]
        self._ema_state = saved["ema"]
        self.record.setdefault("metrics", {}).update(checkpoint["suffuse"]["metrics"])

    def take_loss(self) -> float:
        """Return the mean training loss since the last call, over all ranks."""
        sums = torch.tensor([float(self.loss_sum), float(self.loss_count)], dtype=torch.float64, device=self.device)
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.loss_sum.zero_()
        self.loss_count = 0
        return float(sums[0] / sums[1])
