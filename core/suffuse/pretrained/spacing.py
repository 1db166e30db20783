r"""Spacing: the levels at which a scheduler of diffusers steps, as a grid of ours.

Tables are walked in one of three ways ("Common Diffusion Noise Schedules and Sample Steps are Flawed", Lin et al. 2024,
table 2), or their levels are spread anew between the two ends (Karras, exponential, beta). Flow levels s are shifted,

    s' = f s / (1 + (f - 1) s),    f = shift, or e^mu with mu linear in the number of tokens,

which is our `Shifted`; a pipeline that hands over no levels of its own has its last one shifted twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from suffuse.errors import ConfigError
from suffuse.grid import Beta, Grid
from suffuse.pretrained.folder import opened
from suffuse.pretrained.scheduler import kind_of, schedule_of
from suffuse.schedule import RectifiedFlow, Schedule

__all__ = ["Spacing", "grid_of", "shift_of"]

Table = NDArray[np.float64]

LATE = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler",
        "DEISMultistepScheduler")  # fmt: skip
"""Schedulers that place N + 1 steps and leave out the last."""
WHOLE = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", *LATE)
"""Schedulers that round their steps."""


@dataclass(frozen=True)
class Spacing:
    """The grid of a folder's scheduler.

    Arguments:
        path: The folder.
        height: Of the pictures that are drawn, where the levels depend on it; by default those of `shape`.
        width: See `height`.
        shape: Of a state, channels first; by default the model's own.
    """

    path: str
    height: int | None = None
    width: int | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", None if self.shape is None else tuple(self.shape))

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Return the grid of `steps` intervals."""
        return _remembered(self, schedule, steps)


@functools.lru_cache(maxsize=64)
def _remembered(spacing: Spacing, schedule: Schedule, steps: int) -> Grid:
    folder = opened(spacing.path)
    config = folder.config("scheduler")
    tokens = 0
    if kind_of(config) == "flow" and folder.family.modality == "image":
        sides = [side * folder.factor for side in (spacing.shape or (0, *folder.size))[1:]]
        tokens = folder.tokens(spacing.height or sides[0], spacing.width or sides[-1])
    return grid_of(config, schedule, steps, tokens, folder.family.even)


def grid_of(config: Mapping[str, Any], schedule: Schedule, steps: int, tokens: int = 0, even: bool = False) -> Grid:
    """Return the grid of a scheduler's config.

    Arguments:
        config: ``scheduler_config.json``.
        schedule: As `schedule_of` returns it, or another one: the levels are the same.
        steps: Intervals.
        tokens: Of a sample, for a shift that depends on them.
        even: The pipeline hands over levels from 1 to 1/N.

    Raises:
        ConfigError: For more steps than a table has, and for an unknown spacing.
    """
    if steps < 1:
        raise ConfigError(f"sampler.steps={steps} must be at least 1")
    kind = kind_of(config)
    if kind == "flow":
        flow = _flow(config, steps, tokens, even)
        return _at(schedule, _ratio(flow), clean=True)
    if kind == "edm":
        ends = float(config.get("sigma_max", 80.0)), float(config.get("sigma_min", 0.002))
        if str(config.get("_class_name")).startswith("Cosine"):
            ends = float(config.get("sigma_max", 500)), float(config.get("sigma_min", 0.3))
        default = "exponential" if str(config.get("_class_name")).startswith("Cosine") else "karras"
        how = str(config.get("sigma_schedule", default))
        levels = _spread(ends[0], ends[1], steps, how, float(config.get("rho", 7.0)))
        last = config.get("final_sigmas_type", "zero") == "zero"
        return _at(schedule, levels if last else np.append(levels, ends[1]), clean=last)
    return _table(config, schedule, steps)


def _at(schedule: Schedule, sigmas: Table, clean: bool) -> Grid:
    """Return the grid with nodes at these sigma/alpha, and a clean one behind."""
    t = np.minimum.accumulate(schedule.time(-torch.from_numpy(np.log(sigmas))).numpy())
    return Grid(np.append(t, min(0.0, t[-1])) if clean else t, clean)


def _ratio(s: Table) -> Table:
    with np.errstate(divide="ignore"):
        return s / (1 - s)


def _table(config: Mapping[str, Any], schedule: Schedule, steps: int) -> Grid:
    """Return the grid on a table of betas."""
    name, count = str(config.get("_class_name")), int(config.get("num_train_timesteps", 1000))
    if steps > count:
        raise ConfigError(
            f"sampler.steps={steps} is more than the {count} steps that the model was trained with; lower it"
        )
    own = schedule_of(config)
    numbers = _numbers(config, name, count, steps, own)
    if name in ("DDIMScheduler", "PNDMScheduler"):
        clean = bool(config.get("set_alpha_to_one", name == "DDIMScheduler"))
    else:
        clean = config.get("final_sigmas_type", "zero") == "zero" and name != "DEISMultistepScheduler"
    table = np.exp(-own.lam((torch.arange(count, dtype=torch.float64) + 1) / count).numpy())
    how = next((h for h in ("karras", "exponential", "beta", "lu") if config.get(f"use_{h}_sigmas")), None)
    how = "exponential" if config.get("use_lu_lambdas") else how
    if how is not None:
        # The Euler family takes the ends of its own steps, the others those of the table.
        low, high = (table[0], table[-1]) if name in LATE else np.interp(numbers[[-1, 0]], np.arange(count), table)
        levels = _spread(float(config.get("sigma_max") or high), float(config.get("sigma_min") or low), steps, how)
    elif np.array_equal(numbers, np.round(numbers)) and own == schedule:
        t = (numbers + 1) / count
        return Grid(np.append(t, 0.0) if clean else np.append(t, min(1 / count, t[-1])), clean)
    else:
        levels = np.interp(numbers, np.arange(count), table)
    return _at(schedule, levels if clean else np.append(levels, min(table[0], levels[-1])), clean)


def _numbers(config: Mapping[str, Any], name: str, count: int, steps: int, schedule: Schedule) -> Table:
    """Return the numbers of the steps, falling, shape (steps,)."""
    how, late = str(config.get("timestep_spacing", _default(name))), name in LATE
    last = count
    if "lambda_min_clipped" in config and late:
        lam = schedule.lam((torch.arange(count, dtype=torch.float64) + 1) / count).numpy()
        last = int((lam >= float(config["lambda_min_clipped"])).sum())
    found: Any
    if how == "linspace":
        found = np.linspace(0, last - 1, steps + 1)[1:] if late else np.linspace(0, count - 1, steps)
        found = (found.round() if name in WHOLE else found)[::-1]
    elif how == "leading":
        every = last // (steps + 1) if late else count // steps
        found = (np.arange(steps + late) * every)[::-1][:steps] + float(config.get("steps_offset", 0))
    elif how == "trailing":
        found = np.round(last - np.arange(steps) * count / steps) - 1
    else:
        raise ConfigError(f"pretrained: timestep_spacing={how} is none of linspace, leading, trailing")
    numbers: Table = np.clip(found, 0, count - 1).astype(np.float64)
    return numbers


def _default(name: str) -> str:
    return "leading" if name in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler") else "linspace"


def _spread(high: float, low: float, steps: int, how: str, rho: float = 7.0) -> Table:
    """Return levels between two ends."""
    if how == "karras":
        levels: Table = np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho
        return levels
    if how == "beta":
        share = _quantiles(steps)
        return low + share * (high - low)
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def _quantiles(steps: int) -> Table:
    """Return quantiles of Beta(0.6, 0.6) from 1 to 0, both ends included."""
    return Beta()(RectifiedFlow(), max(steps - 1, 1)).t[:steps]


def shift_of(config: Mapping[str, Any], tokens: int) -> float:
    """Return the factor by which levels are shifted."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", config.get("flow_shift", 1.0)))
    low, high = int(config.get("base_image_seq_len", 256)), int(config.get("max_image_seq_len", 4096))
    first, last = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    mu = first + (last - first) * (tokens - low) / (high - low)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


def _flow(config: Mapping[str, Any], steps: int, tokens: int, even: bool) -> Table:
    """Return the levels s, falling from at most 1, without the clean end."""
    count, factor = int(config.get("num_train_timesteps", 1000)), shift_of(config, tokens)
    if config.get("invert_sigmas") or config.get("stochastic_sampling"):
        raise ConfigError("pretrained: a scheduler with invert_sigmas or stochastic_sampling is not supported")

    def shifted(s: Table) -> Table:
        return factor * s / (1 + (factor - 1) * s)

    if config.get("use_flow_sigmas"):
        found = shifted(1 - np.linspace(1, 1 / count, steps + 1))[::-1][:-1]
    else:
        ends = np.array([1.0, 1 / count])
        if not config.get("use_dynamic_shifting"):
            ends = shifted(ends)
        found = shifted(np.linspace(1.0, 1 / steps, steps) if even else np.linspace(ends[0], ends[1], steps))
    if config.get("shift_terminal"):
        rest = 1 - found
        found = 1 - rest / (rest[-1] / (1 - float(config["shift_terminal"])))
    how = next((h for h in ("karras", "exponential", "beta") if config.get(f"use_{h}_sigmas")), None)
    return found if how is None else _spread(float(found[0]), float(found[-1]), steps, how)
