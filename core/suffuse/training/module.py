"""Module: one optimizer step, and what a checkpoint must hold so that the next step is the same as if nothing stopped.

Everything random in a step (noise, times, dropped conditions, dropout) is a function of (seed, micro-batch, position in
the global batch), so no generator state is saved, and a resumed run repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import inspect
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
from suffuse.sharded import assign
from suffuse.training.fsdp import Sharded
from suffuse.training.guard import Guard
from suffuse.training.modes import evaluating

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
        self.steps, self.seed, self.accumulate, self.guard = steps, mix(seed, 1), accumulate, Guard(clip)
        self.max_skipped, self.record = max_skipped, record
        self.ema: EMA | None = None
        self._ema_state: dict[str, Any] | None = None
        self.micro = 0
        self.past: list[tuple[int, int, int]] = []
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

    @property
    def grad_norm(self) -> float:
        """The norm of the last gradient that was finite, as far as it is known."""
        return self.guard.norm

    # One step.

    def configure_model(self) -> None:
        """Spread the weights, where the strategy does."""
        if isinstance(self.trainer.strategy, Sharded) and not self.is_spread:
            self.trainer.strategy.spread(self)

    @property
    def is_spread(self) -> bool:
        return hasattr(self, "unshard")  # torch gives spread modules a class of their own

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
        self.guard(optimizer)
        self._settle(optimizer)

    def _settle(self, optimizer: Any, wait: bool = False) -> None:
        """Take note of steps that the device skipped."""
        skipped = self.guard.read(wait)
        if skipped and self.ema is not None:
            self.ema.updates -= skipped
        if self.guard.in_a_row > self.max_skipped:
            lr = optimizer.param_groups[0]["lr"]
            raise SuffuseError(
                f"the gradient is NaN or infinite at step {self.global_step} for the {self.guard.in_a_row}. time in a "
                f"row (lr {lr:.3g}, items {self._items()}); the last checkpoint is untouched: lower optimizer.lr, use "
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
        if self.ema is not None and (self.guard.found is not None or not self.guard.last_skipped):
            self.ema.update(self.guard.found)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its per-step learning rate."""
        how = {"fused": True} if self.device.type == "cuda" and _fusible(self._optimizer) else {}
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad], **how)
        scheduler = LambdaLR(optimizer, lambda step: self._lr(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the stream of micro-batches from the one this run has reached."""
        self.data.follow(self.past)
        return self.data.train_loader(self.micro, self.global_rank, self.trainer.world_size)

    # The average.

    def on_fit_start(self) -> None:
        """Make the average where the parameters now live."""
        self.ema = EMA([p for _, p in self._averaged()], self._decay)
        if self._ema_state is not None:
            self.ema.load_state_dict(self._ema_state, assign)
            self._ema_state = None
        self.loss_sum = self.loss_sum.to(self.device)  # a sum on the host would wait for the device in every step
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
        with evaluating(self.model), self.ema.swap(), self.gathered():
            yield self.model

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather what of a spread model is no block, which gathers itself when it is called."""
        if self.is_spread:
            self.unshard()  # type: ignore[operator]
        try:
            yield
        finally:
            if self.is_spread:
                self.reshard()  # type: ignore[operator]

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the averaged weights in ``state_dict``, the raw ones beside, and what else a resumed run needs."""
        assert self.ema is not None  # Lightning saves only while fitting
        self._settle(self.trainer.optimizers[0], wait=True)
        raw = checkpoint["state_dict"]
        with self.ema.swap():
            averaged = {name: p.detach().clone() for name, p in self._averaged()}
        checkpoint["current_model_state"] = raw
        checkpoint["state_dict"] = {name: averaged.get(name, value) for name, value in raw.items()}
        ema = self.ema.state_dict()
        checkpoint["suffuse"] = {**self.record, "step": self.trainer.global_step}
        checkpoint["training"] = {
            "micro": self.micro,
            "past": self.past,
            "ranks": self.trainer.world_size,
            "batch": self.data.batch_size,
            "skipped": self.guard.in_a_row,
            "grad_norm": self.guard.norm,
            "loss_sum": self.loss_sum.cpu(),
            "loss_count": self.loss_count,
            "ema": ema,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` stored, before the weights are loaded."""
        saved = checkpoint["training"]
        checkpoint["state_dict"] = checkpoint["current_model_state"]
        self.micro, self.guard.in_a_row = saved["micro"], saved["skipped"]
        self.guard.norm = saved["grad_norm"]
        self.loss_sum, self.loss_count = saved["loss_sum"].clone(), saved["loss_count"]
        self.past = self._past(saved)
        self._ema_state = saved["ema"]
        if self.ema is not None:  # a strategy that restores after the model is where it stays
            self.ema.load_state_dict(self._ema_state, assign)
            self._ema_state, self.loss_sum = None, self.loss_sum.to(self.device)
        self.record.setdefault("metrics", {}).update(checkpoint["suffuse"]["metrics"])

    def _past(self, saved: dict[str, Any]) -> list[tuple[int, int, int]]:
        """Return the stretches of the run that had another number of ranks, or rows per rank, than it has now."""
        past = [tuple(stretch) for stretch in saved.get("past", [])]
        now = (self.trainer.world_size, self.data.batch_size)
        then = (saved.get("ranks", now[0]), saved.get("batch", now[1]))
        done = saved["micro"] - sum(count for count, *_ in past)
        # A checkpoint right after a change has nothing to add to it.
        if then != now and done:
            past.append((done, *then))
        return past  # type: ignore[return-value]

    def take_loss(self) -> float:
        """Return the mean training loss since the last call, over all ranks."""
        sums = torch.tensor([float(self.loss_sum), float(self.loss_count)], dtype=torch.float64, device=self.device)
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self.loss_sum.zero_()
        self.loss_count = 0
        return float(sums[0] / sums[1])


def _fusible(optimizer: Callable[..., torch.optim.Optimizer]) -> bool:
    """Return whether an optimizer has a kernel for all weights and nobody said whether to use it."""
    words = getattr(optimizer, "keywords", {})
    kind = getattr(optimizer, "func", optimizer)
    return "fused" in inspect.signature(kind).parameters and words.get("fused") is None and not words.get("foreach")
