"""What our training step costs over a loop written by hand on the same network, data, batch and optimizer.

Both compute the same EDM objective, clip, step AdamW, follow a learning-rate schedule and keep an average of the
weights. The hand-written loop takes its noise from torch.randn and its batches by indexing a tensor. Rounds alternate
in one process; the ratio of the median steps counts, so that a disturbed round does not decide.

    python benchmarks/train_overhead.py [--json] [--steps 40] [--rounds 10] [override ...]
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import time
import warnings
from itertools import pairwise
from typing import Any

import torch
from common import composed
from lightning.pytorch import Callback, Trainer
from suffuse.build import build
from suffuse.model import Facts, Model
from suffuse.training.callbacks import Monitor, Stop
from suffuse.training.module import TrainingModule
from suffuse.training.progress import Progress

SKIPPED = 5
"""Steps of a round that warm up and do not count."""


class Clock(Callback):
    """Reads the clock at the end of every step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Read the clock."""
        self.ends.append(time.perf_counter())


class Silent(Progress):
    """A progress line nobody sees, at its usual cost."""

    def _print(self, line: str, last: bool) -> None:
        """Show nothing."""


def between(ends: list[float]) -> list[float]:
    """Return the milliseconds of the steps that count."""
    return [(after - before) * 1e3 for before, after in pairwise(ends[SKIPPED - 1 :])]


def with_suffuse(cfg: dict[str, Any], model: Model, data: Any, codec: Any, steps: int) -> list[float]:
    """Return milliseconds of each step of our trainer."""
    model = copy.deepcopy(model)
    how = cfg["trainer"]
    module = TrainingModule(
        model=model, codec=codec, data=data, optimizer=build(cfg["optimizer"], "optimizer"),
        lr=build(cfg["lr_schedule"], "lr_schedule"), decay=build(cfg["ema"], "ema"), steps=steps, seed=0, accumulate=1,
        clip=how["clip"], max_skipped=5, record={},
    )  # fmt: skip
    clock = Clock()
    torch.utils.deterministic.fill_uninitialized_memory = False  # as the job does
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=steps, callbacks=[Monitor(50, Silent(steps)), Stop(), clock],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, deterministic=True,
    )  # fmt: skip
    trainer.fit(module)
    return between(clock.ends)


def by_hand(cfg: dict[str, Any], model: Model, data: Any, codec: Any, steps: int) -> list[float]:
    """Return milliseconds of each step of the hand-written loop."""
    model = copy.deepcopy(model)
    items = [data.train[i] for i in range(len(data.train))]
    xs = torch.stack([item["x"] for item in items])
    labels = torch.tensor([item["cond"]["label"] for item in items])
    network, conditioner, d = model.denoiser.network, model.conditioner, model.facts.sigma_data
    parameters = [p for p in model.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in parameters]
    optimizer = build(cfg["optimizer"], "optimizer")(parameters)
    rate = build(cfg["lr_schedule"], "lr_schedule")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    ends: list[float] = []
    for _ in range(steps):
        index = torch.randint(len(xs), (data.batch_size,))
        x, label = codec.encode(xs[index]), labels[index]
        label = torch.where(torch.rand(len(label)) < 0.1, -1, label)
        sigma = (torch.randn(len(x)) * 1.2 - 1.2).exp().view(-1, *[1] * (x.ndim - 1))
        noisy = x + sigma * torch.randn_like(x)
        root = (sigma**2 + d**2).sqrt()
        out = network(noisy / root, -sigma.flatten().log() / 4, conditioner({"label": label}))
        denoised = d**2 / root**2 * noisy + sigma * d / root * out
        loss = ((sigma**2 + d**2) / (sigma * d) ** 2 * (denoised - x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cfg["trainer"]["clip"])
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 0.001)
        ends.append(time.perf_counter())
    return between(ends)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    cfg = composed(*args.overrides)
    data, codec = build(cfg["data"], "data", seed=0), build(cfg["codec"], "codec")
    data.setup()
    model = Model(cfg, Facts.measure(data, codec))
    times: dict[str, list[float]] = {"suffuse": [], "by hand": []}
    for _ in range(args.rounds):
        times["suffuse"].extend(with_suffuse(cfg, model, data, codec, args.steps))
        times["by hand"].extend(by_hand(cfg, model, data, codec, args.steps))
    mine, hand = (statistics.median(times[name]) for name in ("suffuse", "by hand"))
    weights = sum(p.numel() for p in model.parameters())
    if args.json:
        print(
            json.dumps(
                {"unit": "ms per step", "weights": weights, "suffuse": mine, "by_hand": hand, "ratio": mine / hand},
                indent=2,
            )
        )
        return
    setting = f"{weights / 1e6:.2f} M weights, batch {data.batch_size}, {torch.get_num_threads()} threads"
    print(f"milliseconds per step, {setting}")
    print(f"suffuse {mine:.2f}   by hand {hand:.2f}   ratio {mine / hand:.3f}")


if __name__ == "__main__":
    main()
