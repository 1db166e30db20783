"""Sampling job: samples of a checkpoint, on one device or several, from where a job before it stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from suffuse import checkpoint as files
from suffuse.build import build
from suffuse.codec import implied
from suffuse.edit import edit, ends
from suffuse.errors import ConfigError
from suffuse.failures import readable
from suffuse.jobs.record import names_of, resolved
from suffuse.model import Model, Recipe
from suffuse.parts import Parts
from suffuse.rollout import Window
from suffuse.rundir import next_samples, tuned_folder
from suffuse.sampling import Sampling, write_samples
from suffuse.training.peers import Peers
from suffuse.training.progress import say
from suffuse.training.trainer import make_trainer, quiet

__all__ = ["job_of", "sample"]

log = logging.getLogger(__name__)


def sample(cfg: DictConfig, saved: dict[str, Any], path: Path) -> None:
    """Draw samples from the checkpoint `saved`, which was read from `path`.

    Raises:
        SuffuseError: For everything a user can mend.
    """
    quiet()
    files.check_drawable(saved, path)
    plain = _with_tuned_grid(resolved(cfg), path)
    trained = saved["suffuse"]["config"]
    model = Model.load(saved, plain["weights"])
    if plain["compile"]:
        model.denoiser.compile_network(replay=True)
    codec = build(trained["codec"], "codec", about=model.facts.about, **plain["ask"])
    raw, path_between = ends(model.conditioner, implied(codec, model.conditioner) | plain["condition"], plain)
    sampling = Sampling(
        model, codec, Recipe.build(plain, model.facts), plain["seed"], edit(codec, plain), path_between,
        Window(**plain["window"]), share=_turns(plain) if plain["share_seeds"] else 1,
    )  # fmt: skip
    preview = build(plain["preview"], "preview", about=model.facts.about)
    out = next_samples(plain["out"], path)
    how = {**names_of(plain, plain["choices"]), "checkpoint": str(path), "weights": plain["weights"], **plain["ask"]}
    how |= {key: plain[key] for key in ("init", "mask", "strength") if plain[key] is not None}
    rows = sampling.rows(torch.arange(plain["num"]), raw, how)
    parts = Parts(out, job_of(plain, saved))
    if plain["out"] is None:
        parts.find()
    sampling.check_free(parts.out, rows)
    with readable(plain):
        if isinstance(plain["trainer"]["strategy"], Mapping):  # every process draws with a whole model
            plain["trainer"]["strategy"] = "ddp"
        peers = Peers("sample", lambda: f"the batches drawn so far are in {parts.folder}: the same command goes on")
        trainer = make_trainer(plain, peers=peers, callbacks=[], logger=False, default_root_dir=str(out))
        try:
            xs = sampling.run(trainer, raw, plain["batch_size"], parts)
        except Exception:
            if trainer.is_global_zero:
                parts.abandon()
            raise
        out = parts.out
        if trainer.is_global_zero:
            write_samples(out, xs, rows, preview)
            parts.remove()
            say(f"wrote {len(rows)} samples to {out}: overview.png, manifest.jsonl")


def job_of(cfg: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the samples of a job and how they are cut into batches; not on how many devices."""
    job = {key: value for key, value in cfg.items() if key not in ("trainer", "devices", "out", "choices")}
    return {**job, "precision": cfg["trainer"]["precision"], "step": saved["suffuse"]["step"]}


def _turns(cfg: Mapping[str, Any]) -> int:
    """Return after how many samples the conditions begin again.

    Raises:
        ConfigError: When no condition has several values.
    """
    counts = [len(value) for value in cfg["condition"].values() if isinstance(value, list)]
    if cfg["interpolate"] or not counts or max(counts) < 2:
        raise ConfigError("share_seeds=true draws conditions that take turns from the same seeds; give several values")
    return math.lcm(*counts)


def _with_tuned_grid(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return `cfg` with the file of ``grid=tuned`` filled in: that of this sampler, of this guidance if there is one.

    Raises:
        ConfigError: When nothing was tuned for this sampler.
    """
    if not str(cfg["grid"].get("_target_", "")).endswith(".Stored") or cfg["grid"].get("file"):
        return cfg
    scale = (cfg.get("guidance") or {}).get("scale", 1.0)
    found: list[tuple[float, Path]] = []
    for file in sorted(tuned_folder(path).glob("*.json")):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(file.read_text())
            if record["sampler"] == cfg["sampler"]:
                found.append((abs(record["guidance"] - scale), file))
    if not found:
        steps = cfg["sampler"].get("steps")
        raise ConfigError(
            f"grid=tuned: no grid was tuned for this sampler and {steps} steps in {tuned_folder(path)}; make one with "
            f"suffuse tune ckpt=… sampler=… steps={steps}"
        )
    apart, file = min(found)
    if apart:
        log.warning("grid=tuned: %s was tuned at another guidance than %g", file.name, scale)
    return {**cfg, "grid": {**cfg["grid"], "file": str(file)}}
