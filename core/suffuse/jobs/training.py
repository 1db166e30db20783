"""Training job: data, codec and model of a composed config, the run, and what it ends in."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from suffuse import checkpoint as files
from suffuse.build import build
from suffuse.cache import cached, key
from suffuse.data import Data
from suffuse.ema import PostHoc
from suffuse.errors import ConfigError
from suffuse.failures import readable
from suffuse.jobs.record import choices, names_of, provider, resolved, version
from suffuse.mismatch import check_resumable
from suffuse.model import Facts, fit_codec
from suffuse.overrides import check_limits
from suffuse.posthoc import FOLDER
from suffuse.rundir import locked, resume_path, run_dir, write_text
from suffuse.sampling import write_samples
from suffuse.state import leaves
from suffuse.task import Task
from suffuse.training.background import Background
from suffuse.training.callbacks import Checkpoints, Monitor, Previews, Stop, Validation
from suffuse.training.distributed import start_again
from suffuse.training.loggers import Wandb
from suffuse.training.module import TrainingModule
from suffuse.training.peers import Peers
from suffuse.training.progress import Progress, duration, say
from suffuse.training.snapshots import Snapshots
from suffuse.training.trainer import make_trainer, quiet

__all__ = ["train"]


def train(cfg: DictConfig) -> float | None:
    """Train, sample, measure; return the last validation loss, which a sweep may minimise.

    Raises:
        SuffuseError: For everything a user can mend.
    """
    quiet()
    plain = resolved(cfg)
    check_limits(plain)
    folder = run_dir(cfg)
    resume = resume_path(plain, folder)
    if plain["trainer"]["requeue"] and "SLURM_JOB_ID" in os.environ and plain["ckpt"] != "auto":
        raise ConfigError("trainer.requeue starts the same command again: add name= and ckpt=auto, or set it to []")
    plain["ckpt"] = None  # how a run was continued is no part of what it is
    with readable(plain), locked(folder):
        run = _Training(plain, folder)
        loss = run.fit(resume)
        run.finish()
    return loss


class _Training:
    """One training job, from a plain config."""

    def __init__(self, cfg: dict[str, Any], run_dir: Path) -> None:
        self.cfg, self.run_dir = cfg, run_dir
        self.seed = int(cfg["seed"])
        torch.manual_seed(self.seed)
        self.stream: Data
        self.stream_codec: Any
        self.data: Data = build(cfg["data"], "data", seed=self.seed)
        self.data.setup()
        self.data.check()
        self.codec = fit_codec(cfg["codec"], self.data)
        self.preview = build(cfg["preview"], "preview", about=self.data.spec.about)
        self.metrics = build(cfg["metrics"], "metrics", seed=self.seed) if cfg["metrics"] else None
        # A codec may say of how many items the spread is worth measuring.
        facts = Facts.measure(self.data, self.codec, getattr(self.codec, "measured", 1024), process=cfg["process"])
        self.facts = facts
        self.task: Task = build(cfg["task"], "task", cfg=cfg, facts=facts)
        self.model: Any = self.task.model
        self.record: dict[str, Any] = {
            "format": 1,
            "version": version(),
            "plugin": provider(cfg["modality"]["name"]),
            "config": cfg,
            "choices": choices(),
            "facts": facts.record(),
            "metrics": {},
        }
        self._describe(facts)
        self.stream, self.stream_codec = self.data, self.codec
        if cfg["cache"]:
            root = run_dir.parent / "cache" if cfg["cache"] is True else Path(str(cfg["cache"])).expanduser()
            self.stream, self.stream_codec = cached(self.data, self.codec, root / key(cfg, self.data, self.codec))

    def _describe(self, facts: Facts) -> None:
        weights = sum(p.numel() for p in self.model.parameters())
        held_out = len(self.data.val)  # type: ignore[arg-type]
        conditions = [f"{len(facts.labels)} classes"] * bool(facts.labels) + list(facts.scalars)
        say(
            f"run {self.run_dir}\n"
            f"data {len(self.data.train):,} items, {held_out:,} held out, {self._shapes(facts)}"  # type: ignore[arg-type]
            + (f", {', '.join(conditions)}" if conditions else "")
        )
        if more := self.data.describe():
            say(more)
        if more := self.task.describe():
            say(more)
        say(f"model {weights / 1e6:.2f} M weights, {self.cfg['steps']:,} steps of {self._batch():,} samples")

    def _shapes(self, facts: Facts) -> str:
        """Return shape and spread of the state, of named fields those that are diffused."""
        if not isinstance(facts.shape, Mapping):
            return f"shape {facts.shape}, standard deviation {facts.sigma_data}"
        fields = [name for name, p in self.model.process.items() if any(leaf.noised for leaf in leaves(p))]  # type: ignore[union-attr]
        return "fields " + ", ".join(f"{name} {facts.shape[name]}" for name in fields)

    def _batch(self) -> int:
        return self.data.batch_size * int(self.cfg["trainer"]["accumulate"])

    def fit(self, resume: Path | None) -> float | None:
        """Train to the last step; ends the process after a signal."""
        cfg, how, every = self.cfg, self.cfg["trainer"], self.cfg["every"]
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_text(self.run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(cfg)))
        decay = build(cfg["ema"], "ema")
        module = TrainingModule(
            model=self.model, codec=self.stream_codec, data=self.stream,
            optimizer=build(cfg["optimizer"], "optimizer"), lr=build(cfg["lr_schedule"], "lr_schedule"),
            decay=decay, steps=cfg["steps"], seed=self.seed, accumulate=how["accumulate"],
            clip=how["clip"], max_skipped=how["max_skipped"], record=self.record,
        )  # fmt: skip
        if cfg["compile"]:
            self.task.compile()
        peak = how["peak_tflops"] and how["peak_tflops"] * 1e12
        monitor = Monitor(every["log"], Progress(cfg["steps"]), peak)
        stop, background = Stop(how["requeue"]), Background(how["background"])
        callbacks = [
            monitor,
            Validation(every["validate"], cfg["val_num"], monitor),
            Previews(
                every["preview"],
                functools.partial(self.task.show, self.codec, self.data),
                cfg["preview_num"],
                self.preview,
                self.run_dir / "previews",
                monitor,
            ),
            *(build(node, f"callbacks.{name}") for name, node in (cfg["callbacks"] or {}).items()),
            stop,
            *([Snapshots(decay, self.run_dir / "checkpoints" / FOLDER)] if isinstance(decay, PostHoc) else []),
            Checkpoints(every["checkpoint"], cfg["keep"], self.run_dir / "checkpoints", background),
        ]
        loggers = [
            build(node, f"logger.{name}", run_dir=str(self.run_dir), run_config=cfg)
            for name, node in (cfg["logger"] or {}).items()
        ]
        trainer = make_trainer(
            cfg, background, Peers("train", self._left), callbacks=callbacks, logger=loggers, max_steps=cfg["steps"],
            accumulate_grad_batches=how["accumulate"], limit_val_batches=0, num_sanity_val_steps=0,
            default_root_dir=str(self.run_dir),
        )  # fmt: skip
        began = time.perf_counter()
        if resume:
            saved = files.read(resume)
            check_resumable(saved, module.state_dict(), cfg, self.record["choices"], f"ckpt={resume}")
            say(f"continuing {resume} at step {saved['suffuse']['step']}")
            del saved
        trainer.fit(module, ckpt_path=resume, weights_only=True)
        self.seconds = time.perf_counter() - began
        self.module, self.trainer = module, trainer
        if stop.signum is not None:
            for logger in trainer.loggers:
                if isinstance(logger, Wandb):
                    logger.finish()
            again = stop.signum in stop.requeue and start_again(trainer)
            say(
                f"stopped by signal {stop.signum} at step {trainer.global_step}, which is saved; SLURM starts it again"
                if again
                else f"stopped by signal {stop.signum} at step {trainer.global_step}, which is saved; "
                f"continue with the same command and ckpt=auto (with name={self.run_dir.name})"
            )
            raise SystemExit(128 + stop.signum)
        loss: float | None = self.record["metrics"].get("val/loss")
        return loss

    def _left(self) -> str:
        """Return what is left of a run that lost one of its processes, and how to go on."""
        last = self.run_dir / "checkpoints" / "last.ckpt"
        if not last.exists():
            return "no checkpoint was written yet: start the run again"
        again = f"continue with the same command and ckpt=auto (with name={self.run_dir.name})"
        return f"the last checkpoint is {last}: {again}"

    def finish(self) -> None:
        """Draw samples with the averaged weights, measure them, and say where everything is."""
        if not self.trainer.is_global_zero:
            return
        cfg = self.cfg
        device = self.trainer.strategy.root_device  # Lightning has moved the weights to the CPU
        last = self.run_dir / "checkpoints" / "last.ckpt"
        names = names_of(cfg, self.record["choices"]) if self.task.draws else {}
        how = {**names, "checkpoint": str(last), "weights": "ema"}
        # A metric that gives samples their beginning has its own drawn.
        begins = getattr(self.metrics, "begin", None) is not None
        measured = cfg["metrics_num"] if self.metrics and not begins else 0
        with self._drawing(last, device), self.trainer.strategy.precision_plugin.forward_context():
            found = self.task.results(self.codec, self.data, cfg["num"], measured, self.seed, how)
            xs, raw = (
                self.task.begun(self.codec, self.data, self.metrics, self.seed) if begins else (found.xs, found.raw)
            )
        folder = self.run_dir / "samples" / "final"
        write_samples(folder, found.shown, found.rows, self.preview)
        figures: dict[str, Any] = {"step": self.trainer.global_step, **self.record["metrics"]}
        if self.metrics is not None:
            figures |= dict(self.metrics(xs, raw, self.data))
            figures["metrics_num"] = len(next(iter(raw.values()), ())) if begins else measured
        for logger in self.trainer.loggers:
            logger.log_metrics({f"final/{k}": v for k, v in figures.items() if k != "step"}, self.trainer.global_step)
            logger.finalize("success")
            if isinstance(logger, Wandb):
                logger.finish()
        timing = {"train_seconds": round(self.seconds, 1)}
        write_text(self.run_dir / "metrics.json", json.dumps(figures | {"timing": timing}, indent=2) + "\n")
        self._summary(figures, folder)

    @contextlib.contextmanager
    def _drawing(self, last: Path, device: torch.device) -> Iterator[None]:
        """Make `task` one that draws with the averaged weights; of spread ones from the checkpoint, as one process."""
        if not self.module.is_spread:
            self.model.to(device)
            with self.module.averaged():
                yield
            return
        self.task = build(self.cfg["task"], "task", cfg=self.cfg, facts=self.facts)
        self.model = self.task.model
        weights = files.read(last)["state_dict"]
        self.model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
        self.model.to(device).eval()
        yield

    def _summary(self, figures: Mapping[str, Any], folder: Path) -> None:
        shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items() if isinstance(v, float))
        where = shlex.quote(str(self.run_dir))
        say(
            f"trained in {duration(self.seconds)}; {shown}\n"
            f"  samples      {folder / 'overview.png'}\n"
            f"  previews     {self.run_dir / 'previews'}\n"
            f"  metrics      {self.run_dir / 'metrics.json'}, metrics.csv beside it\n"
            f"  checkpoint   {self.run_dir / 'checkpoints' / 'last.ckpt'}\n"
            f"{self.task.hint(where)}"
        )
