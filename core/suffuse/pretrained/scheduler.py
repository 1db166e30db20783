r"""Scheduler: what a scheduler's config says, as a schedule, a process, a parameterisation and a sampler of ours.

A scheduler of diffusers fuses five things. Three kinds of them are known:

    table   N betas, alpha_k^2 = prod_j (1 - beta_j); step k = 0 … N-1 stands at our time (k + 1) / N
    flow    x_t = (1 - s) x_0 + s eps; the network is told N s
    EDM     x_t = x_0 + s eps with inputs of unit variance; here the same on the circle alpha = cos, sigma = sin, where
            the state has unit variance as well. The network is told log(s) / 4 (EDM) or 2 atan(s) / pi (Stable Audio)

What the network is told of the noise level is a function of alpha and sigma (`Published.affine`), so every grid of ours
works, not only the levels of training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.betas import VPBetas, VPTable
from suffuse.denoiser import X0, Affine, EDMPrecond, Eps, Flow, Parameterization, V
from suffuse.errors import ConfigError, suggest
from suffuse.pretrained.folder import opened
from suffuse.pretrained.solvers import EDM, FLOW, TABLE
from suffuse.process import Gaussian
from suffuse.schedule import RectifiedFlow, Schedule, VPCosine

__all__ = ["Clock", "Published", "UnitStart", "clip_range", "kind_of", "parameterization", "process", "schedule"]


def kind_of(config: Mapping[str, Any]) -> str:
    """Return ``table``, ``flow`` or ``edm``.

    Raises:
        ConfigError: For a scheduler that we do not know.
    """
    name = str(config.get("_class_name"))
    if name in FLOW or config.get("use_flow_sigmas"):
        return "flow"
    if name in EDM:
        return "edm"
    if name in TABLE:
        return "table"
    raise ConfigError(f"pretrained: its scheduler {name} is none that we know{suggest(name, [*TABLE, *FLOW, *EDM])}")


def schedule(path: str) -> Schedule:
    """Return the noise schedule of a folder."""
    return schedule_of(opened(path).config("scheduler"))


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Return the noise schedule of a scheduler's config."""
    kind = kind_of(config)
    if kind == "flow":
        return RectifiedFlow()
    if kind == "edm":
        return VPCosine()
    zero = bool(config.get("rescale_betas_zero_snr"))
    count, name = int(config.get("num_train_timesteps", 1000)), str(config.get("beta_schedule", "linear"))
    ends = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if config.get("trained_betas") is not None:
        return VPTable(tuple(float(beta) for beta in config["trained_betas"]), zero)
    if name in ("linear", "scaled_linear"):
        return VPBetas(*ends, count, name == "scaled_linear", zero)
    if name == "squaredcos_cap_v2":
        return VPTable(_cosine_betas(count), zero)
    if name == "sigmoid":
        betas = 1 / (1 + np.exp(-np.linspace(-6, 6, count))) * (ends[1] - ends[0]) + ends[0]
        return VPTable(tuple(betas.tolist()), zero)
    raise ConfigError(f"pretrained: beta_schedule={name} is none of linear, scaled_linear, squaredcos_cap_v2, sigmoid")


def _cosine_betas(count: int) -> tuple[float, ...]:
    """Return betas of the cosine schedule, at most 0.999: "Improved DDPM", Nichol and Dhariwal 2021, eq. 17."""
    bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
    return tuple(np.minimum(1 - bar[1:] / bar[:-1], 0.999).tolist())


@dataclass(frozen=True)
class UnitStart(Gaussian):
    """A Gaussian process whose samples start from noise of variance one, as most schedulers do.

    At the noisiest level of Stable Diffusion alpha is 0.07, so sigma eps and eps differ by 0.2 %: more than rounding.
    """

    def prior(self, like: Tensor, eps: Tensor, t: float | Tensor = 1.0) -> Tensor:
        """Return eps."""
        return eps


def process(path: str, schedule: Schedule) -> Gaussian:
    """Return the forward process of a folder."""
    config = opened(path).config("scheduler")
    # The sigma-based schedulers start from sigma_max eps, but for their spacing "leading".
    levelled = str(config.get("_class_name")) in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    )  # fmt: skip
    if levelled and config.get("timestep_spacing", "linspace") in ("linspace", "trailing"):
        return Gaussian(schedule)
    return UnitStart(schedule)


@dataclass(frozen=True)
class Clock:
    """What a network is told of the noise level.

    Arguments:
        kind: ``table`` for the number of the step, ``flow``, ``angle`` or ``log``.
        count: Steps of the table, or the factor of flow.
        between: In a table, what is linear between two steps: ``alpha``, ``sigma`` (sigma/alpha) or ``log``.
        whole: ``round`` or ``floor`` to a whole number; None leaves it.
        schedule: Of the table.
    """

    kind: str
    schedule: Schedule
    count: int = 1000
    between: str = "alpha"
    whole: str | None = None

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the number, float64, of the shape of alpha."""
        if self.kind == "angle":
            return torch.atan2(sigma, alpha) * (2 / math.pi)
        if self.kind == "log":
            return (sigma.log() - alpha.log()) / 4
        found = sigma / (alpha + sigma) * self.count if self.kind == "flow" else self._step(alpha, sigma)
        if self.whole is not None:
            # Up to rounding errors a step's own level is the step.
            found = (found + 1e-6).floor() if self.whole == "floor" else found.round()
        return found

    def _step(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        lam = alpha.log() - sigma.log()
        if self.between == "alpha":
            return (self.schedule.time(lam) * self.count - 1).clamp(0, self.count - 1)
        places = _levels(self.schedule, self.count).to(lam.device)
        at = -lam
        if self.between == "sigma":
            places, at = places.exp(), at.exp()
        low = (torch.searchsorted(places, at.contiguous(), right=True) - 1).clamp(0, self.count - 2)
        share = (at - places[low]) / (places[low + 1] - places[low])
        return torch.where(at.isinf(), at.new_tensor(self.count - 1.0), (low + share).clamp(0, self.count - 1))


@functools.lru_cache(maxsize=16)
def _levels(schedule: Schedule, count: int) -> Tensor:
    """Return log(sigma/alpha) at the steps, shape (count,), float64."""
    return -schedule.lam((torch.arange(count, dtype=torch.float64) + 1) / count)


KINDS: Mapping[str, type[Parameterization]] = {
    "epsilon": Eps, "v_prediction": V, "sample": X0, "flow_prediction": Flow
}  # fmt: skip


@dataclass(frozen=True)
class Published(Parameterization):
    """What a published network predicts, and what it is told: its inputs are not scaled, its noise level is a `Clock`.

    Arguments:
        sigma_data: Of the data; an EDM network scales by it, the others do not.
        predicts: ``epsilon``, ``v_prediction``, ``sample`` or ``flow_prediction``; of an EDM scheduler the first two.
        clock: What the network is told.
        edm: Inputs and targets are EDM's.
    """

    predicts: str = "epsilon"
    clock: Clock | None = None
    edm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predicts not in KINDS:
            raise ConfigError(f"pretrained: prediction_type={self.predicts} is none of {', '.join(KINDS)}")

    def affine(self, alpha: Tensor, sigma: Tensor) -> Affine:
        """Return the four coefficients."""
        assert self.clock is not None  # as `parameterization` builds it
        found = super().affine(alpha, sigma)
        inp = found.inp if self.edm else torch.ones_like(found.inp)
        return Affine(found.skip, found.out, inp, self.clock(alpha, sigma))

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return skip and out."""
        return super().skip_out(alpha, sigma) if self.edm else KINDS[self.predicts]().skip_out(alpha, sigma)

    def target_weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, q) with F = p x0 + q eps."""
        if not self.edm:
            return KINDS[self.predicts]().target_weights(alpha, sigma)
        p, q = EDMPrecond(self.sigma_data).target_weights(alpha, sigma)
        return (p, q) if self.predicts == "epsilon" else (-p, -q)


def parameterization(path: str, sigma_data: Any = None) -> Published:
    """Return what the network of a folder predicts."""
    return parameterization_of(opened(path).config("scheduler"))


def parameterization_of(config: Mapping[str, Any]) -> Published:
    """Return what the network beside a scheduler of this config predicts."""
    kind, name = kind_of(config), str(config.get("_class_name"))
    count = int(config.get("num_train_timesteps", 1000))
    noise = schedule_of(config)
    if kind == "flow":
        whole = None if name in FLOW else "floor"
        return Published(predicts="flow_prediction", clock=Clock("flow", noise, count, whole=whole))
    if kind == "edm":
        audio = name == "CosineDPMSolverMultistepScheduler"
        predicts = str(config.get("prediction_type", "v_prediction" if audio else "epsilon"))
        clock = Clock("angle" if audio else "log", noise)
        return Published(float(config.get("sigma_data", 1.0 if audio else 0.5)), predicts, clock, edm=True)
    spread = any(
        config.get(f"use_{how}") for how in ("karras_sigmas", "lu_lambdas", "exponential_sigmas", "beta_sigmas")
    )
    whole = None
    if name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"):
        rounded = config.get("use_karras_sigmas") or config.get("use_lu_lambdas")
        whole = (
            ("round" if rounded and config.get("beta_schedule") != "squaredcos_cap_v2" else "floor") if spread else None
        )
    between = "log" if spread else "sigma" if name.startswith(("Euler", "Heun", "LMS", "KDPM2")) else "alpha"
    return Published(
        predicts=str(config.get("prediction_type", "epsilon")), clock=Clock("table", noise, count, between, whole)
    )


def clip_range(config: Mapping[str, Any]) -> float | None:
    """Return the bound that predictions of x0 are clipped to; None for none.

    Raises:
        ConfigError: For dynamic thresholding.
    """
    if config.get("thresholding"):
        raise ConfigError(
            "pretrained: the scheduler asks for dynamic thresholding, which is not supported; set it false"
        )
    if str(config.get("_class_name")) not in ("DDIMScheduler", "DDPMScheduler"):
        return None
    return float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else None
