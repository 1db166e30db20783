"""A training step of ours against one written by hand and against the step of diffusers' training examples.

All three train copies of one network on the same latents with the same batch, precision, optimizer, clipping, schedule
of the learning rate and average of the weights, in turns in one process; the ratio of the median steps counts.

- ours: `TrainingModule` under Lightning with the monitor and the signals, batches from the run's own loader;
- by hand: rectified flow in a dozen lines, batches by indexing a tensor;
- diffusers: what its examples do in a step: a loader's batch to the device, random timesteps, `add_noise`, the error of
  the noise, clipping, the step, its `EMAModel`, and the loss read back for the progress bar.

MFU is three times the counted operations of a forward pass per second over the card's dense bf16 peak.

On a CPU the time is the process's own, so that other work on the same cores does not count.

    python benchmarks/train_throughput.py [--json] [--device cpu] [--model dit] [--batch 8] [--steps 20] [--rounds 6]
        [--precision 32-true] [--compile] [override ...]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from common import composed, throughput_parser
from lightning.pytorch import Callback, Trainer
from suffuse.build import build
from suffuse.data import Data
from suffuse.model import Facts, Model
from suffuse.training import speed
from suffuse.training.callbacks import Monitor, Stop
from suffuse.training.module import TrainingModule
from suffuse.training.progress import Progress
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

SHAPE, CLASSES, COUNT = (4, 32, 32), 1000, 4096
SKIPPED = 5
"""Steps of a round that warm up and do not count."""


class Table(Dataset[Any]):
    """Latents and classes in memory."""

    def __init__(self, count: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, *SHAPE, generator=random)
        self.label = torch.randint(CLASSES, (count,), generator=random)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "cond": {"label": int(self.label[i])}, "index": i}

    def batch(self, keys: Sequence[int]) -> dict[str, Any]:
        """Return the items of `keys`, collated."""
        rows = torch.tensor(keys)
        return {"x": self.x[rows], "cond": {"label": self.label[rows]}, "index": rows}


class Latents(Data):
    """The table as a run's data."""

    def setup(self) -> None:
        """Make it."""
        self.train = self.val = Table(COUNT)


class Same:
    """The codec of states that are given."""

    def encode(self, x: Any) -> Any:
        """Return x."""
        return x


def now(device: str) -> float:
    """Return seconds: on a CPU of this process alone, which others on the same cores do not disturb."""
    return time.process_time() if device == "cpu" else time.perf_counter()


class Clock(Callback):
    """Reads the clock at the end of every step."""

    def __init__(self, device: str) -> None:
        self.device, self.ends = device, list[float]()

    def on_train_batch_end(self, *args: Any) -> None:
        """Read the clock; the device is waited for where the counting begins and ends."""
        if self.device == "cuda" and len(self.ends) in (SKIPPED - 1,):
            torch.cuda.synchronize()
        self.ends.append(now(self.device))


class Silent(Progress):
    """A progress line nobody sees, at its usual cost."""

    def _print(self, line: str, last: bool) -> None:
        """Show nothing."""


def spans(ends: list[float], device: str) -> list[float]:
    """Return milliseconds per step of a round: each step on a CPU, the mean on a GPU, whose steps are queued."""
    if device == "cuda":
        torch.cuda.synchronize()
        return [(now(device) - ends[SKIPPED - 1]) * 1e3 / (len(ends) - SKIPPED)]
    return [(after - before) * 1e3 for before, after in pairwise(ends[SKIPPED - 1 :])]


class Bench:
    """What the three have in common."""

    def __init__(self, cfg: dict[str, Any], args: argparse.Namespace) -> None:
        self.cfg, self.args = cfg, args
        facts = Facts(SHAPE, tuple(map(str, range(CLASSES))), (), 1.0)
        torch.manual_seed(0)
        self.model = Model(cfg, facts)
        self.data = Latents(batch_size=args.batch)
        self.data.setup()

    def copy(self) -> Any:
        """Return a copy of the model on the device, compiled if asked."""
        model = copy.deepcopy(self.model).to(self.args.device)
        if self.args.compile:
            model.denoiser.network.compile()
        return model

    def autocast(self) -> Any:
        """Return the context of the precision."""
        bf16 = self.args.precision == "bf16-mixed"
        return torch.autocast(self.args.device, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def optimizer(self, parameters: Any) -> tuple[Any, Any]:
        """Return optimizer and schedule of the learning rate."""
        fused = {"fused": True} if self.args.device == "cuda" else {}
        optimizer = build(self.cfg["optimizer"], "optimizer")(parameters, **fused)
        rate = build(self.cfg["lr_schedule"], "lr_schedule")
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, self.args.steps))

    def ours(self) -> list[float]:
        """Train with suffuse."""
        args, how = self.args, self.cfg["trainer"]
        module = TrainingModule(
            model=self.copy(), codec=Same(), data=self.data, optimizer=build(self.cfg["optimizer"], "optimizer"),
            lr=build(self.cfg["lr_schedule"], "lr_schedule"), decay=build(self.cfg["ema"], "ema"), steps=args.steps,
            seed=0, accumulate=1, clip=how["clip"], max_skipped=5, record={},
        )  # fmt: skip
        clock = Clock(args.device)
        monitor = Monitor(50, Silent(args.steps))
        monitor._counted = True  # a pass of the first step alone, which does not count here
        trainer = Trainer(
            accelerator="gpu" if args.device == "cuda" else "cpu", devices=1, max_steps=args.steps, logger=False,
            callbacks=[monitor, Stop(), clock], precision=args.precision, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module)
        return spans(clock.ends, args.device)

    def by_hand(self) -> list[float]:
        """Train with a loop written for this benchmark alone."""
        args, model = self.args, self.copy()
        network, conditioner = model.denoiser.network, model.conditioner
        xs, labels = self.data.train.x.to(args.device), self.data.train.label.to(args.device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        averages = [p.detach().clone() for p in parameters]
        optimizer, scheduler = self.optimizer(parameters)
        clock = Clock(args.device)
        for _ in range(args.steps):
            index = torch.randint(len(xs), (args.batch,), device=args.device)
            x, label = xs[index], labels[index]
            label = torch.where(torch.rand(len(label), device=x.device) < 0.1, -1, label)
            t, noise = torch.randn(len(x), device=x.device).sigmoid(), torch.randn_like(x)
            part = t.view(-1, 1, 1, 1)
            with self.autocast():
                out = network((1 - part) * x + part * noise, t, conditioner({"label": label}))
                loss = (out.float() - (noise - x)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.cfg["trainer"]["clip"])
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 0.001)
            clock.on_train_batch_end()
        return spans(clock.ends, args.device)

    def diffusers(self) -> list[float]:
        """Train as diffusers' examples do."""
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        args, model = self.args, self.copy()
        network, conditioner = model.denoiser.network, model.conditioner
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer, scheduler = self.optimizer(parameters)
        average, process = EMAModel(parameters, decay=0.999, foreach=True), DDPMScheduler(1000)
        loader = DataLoader(self.data.train, args.batch, shuffle=True, drop_last=True, pin_memory=args.device == "cuda")
        clock, batches = Clock(args.device), iter(())
        for _ in range(args.steps):
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches)
            x, label = batch["x"].to(args.device), batch["cond"]["label"].to(args.device)
            label = torch.where(torch.rand(len(label), device=x.device) < 0.1, -1, label)
            noise = torch.randn_like(x)
            step = torch.randint(1000, (len(x),), device=x.device)
            noisy = process.add_noise(x, noise, step)
            with self.autocast():
                out = network(noisy, step / 1000, conditioner({"label": label}))
                loss = torch.nn.functional.mse_loss(out.float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.cfg["trainer"]["clip"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            average.step(parameters)
            loss.item()
            clock.on_train_batch_end()
        return spans(clock.ends, args.device)

    def operations(self) -> float:
        """Return the operations of a training step per sample."""
        model = copy.deepcopy(self.model)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = torch.zeros(1, *SHAPE)
            model.denoiser.network(x, torch.zeros(1), model.conditioner({"label": torch.zeros(1, dtype=torch.long)}))
        return 3.0 * counter.get_total_flops()


def main() -> None:
    """Measure and print."""
    args = throughput_parser(__doc__, batch=8, steps=20, rounds=6).parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.utils.deterministic.fill_uninitialized_memory = False
    cfg = composed(f"model={args.model}", "objective=flow", "schedule=flow", *args.overrides)
    bench = Bench(cfg, args)
    runs: dict[str, Callable[[], list[float]]] = {
        "suffuse": bench.ours, "by hand": bench.by_hand, "diffusers": bench.diffusers,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in runs}
    memory: dict[str, float] = {}
    for number in range(args.rounds):
        # In turns, and each goes first as often as another.
        for name in sorted(runs, key=lambda name: (list(runs).index(name) + number) % len(runs)):
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times[name] += runs[name]()
            if args.device == "cuda":
                memory[name] = max(memory.get(name, 0.0), torch.cuda.max_memory_allocated() / 2**30)
    operations = bench.operations()
    peak = speed.peak(torch.device(args.device), args.precision)
    found: dict[str, Any] = {
        "model": args.model, "weights": sum(p.numel() for p in bench.model.parameters()), "batch": args.batch,
        "precision": args.precision, "compiled": args.compile, "device": args.device, "torch": torch.__version__,
        "GFLOP per sample": operations / 1e9,
    }  # fmt: skip
    for name, values in times.items():
        step = statistics.median(values)
        row = {"ms per step": step, "samples/s": args.batch / step * 1e3}
        row["TFLOP/s"] = operations * row["samples/s"] / 1e12
        if peak:
            row |= {"MFU": row["TFLOP/s"] * 1e12 / peak}
        found[name] = row | ({"peak GiB": memory[name]} if name in memory else {})
    for name in ("by hand", "diffusers"):
        found[f"ratio to {name}"] = found["suffuse"]["ms per step"] / found[name]["ms per step"]
    print(json.dumps(found, indent=2) if args.json else "\n".join(f"{key:<20} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
