"""Tuning job: the grid of a sampler, fitted to a checkpoint and stored beside it."""

from __future__ import annotations

import json
import math
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from suffuse import checkpoint as files
from suffuse.build import build
from suffuse.codec import empty
from suffuse.errors import ConfigError
from suffuse.failures import readable
from suffuse.jobs.record import names_of, resolved
from suffuse.model import Model, Recipe
from suffuse.rundir import tuned_folder, write_text
from suffuse.training.progress import Progress, duration, per_second, say
from suffuse.training.trainer import quiet
from suffuse.tuning import Stored
from suffuse.tuning import tune as search

__all__ = ["tune"]


def tune(cfg: DictConfig, saved: dict[str, Any], path: Path) -> None:
    """Fit the grid of a sampler to the checkpoint `saved`, which was read from `path`, and store it beside.

    Raises:
        SuffuseError: For everything a user can mend.
    """
    quiet()
    files.check_drawable(saved, path)
    plain = resolved(cfg)
    model = Model.load(saved, plain["weights"])
    if torch.cuda.is_available() and plain["trainer"]["accelerator"] in ("auto", "gpu", "cuda"):
        model = model.cuda()
    recipe = Recipe.build(plain, model.facts)
    if isinstance(recipe.grid, Stored):
        raise ConfigError(
            "grid=tuned is what tuning makes; give the grid whose ends are to be kept, as grid=exponential"
        )
    raw = model.conditioner.parse(plain["condition"], plain["num"])
    names = names_of(plain, plain["choices"])
    progress = Progress(plain["tries"], unit="grids", word="grid")
    began = time.perf_counter()

    def show(done: int, total: int, error: float) -> None:
        progress.update(done, rate=per_second(done, began), error=error)

    with readable({"batch_size": plain["num"]}), torch.inference_mode():
        denoiser, cond = model.guided(recipe, raw, plain["num"])
        seeds = plain["seed"] + torch.arange(plain["num"], device=model.device)
        codec = build(saved["suffuse"]["config"]["codec"], "codec", about=model.facts.about)
        like = empty(codec, model.facts, seeds, raw, model.device)
        found = search(
            denoiser, model.process, recipe.sampler, recipe.grid, seeds, like, cond,
            fine=plain["fine"], tries=plain["tries"], progress=show,
        )  # fmt: skip
    record = {
        "sampler": plain["sampler"], "name": names["sampler"], "guidance": recipe.scale, "clean": found.grid.clean,
        "sigmas": [value if math.isfinite(value) else None for value in found.sigmas], "error": found.after,
        "error_before": found.before, "grid_before": names["grid"], "trajectories": found.trajectories,
        "tried": found.tried, "step": saved["suffuse"]["step"],
    }  # fmt: skip
    steps = recipe.sampler.steps
    default = tuned_folder(path) / f"{names['sampler']}-{steps}-guidance-{recipe.scale:g}.json"
    out = Path(plain["out"]).expanduser() if plain["out"] else default
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(record, indent=2) + "\n")
    where = shlex.quote(str(path.parents[1] if path.parent.name == "checkpoints" else path))
    say(
        f"median error of {steps} steps: {found.before:.3g} on {names['grid']}, {found.after:.3g} tuned "
        f"({found.tried} grids, {duration(time.perf_counter() - began)})\n"
        f"  grid         {out}\n"
        f"  draw         sample ckpt={where} sampler={names['sampler']} sampler.steps={steps} grid=tuned"
    )
