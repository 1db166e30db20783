"""Solvers: which sampler of ours stands for a scheduler of diffusers. Imports no torch.

The words are those of the command line, so that they can be seen in a run's config and be replaced there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["EDM", "FLOW", "TABLE", "objective_of", "solver"]

TABLE: Mapping[str, tuple[str, ...]] = {
    "DDIMScheduler": ("sampler=ddim",),
    "DDPMScheduler": ("sampler=ancestral",),
    "PNDMScheduler": ("sampler=pndm",),
    "LMSDiscreteScheduler": ("sampler=lms",),
    "EulerDiscreteScheduler": ("sampler=euler",),
    "EulerAncestralDiscreteScheduler": ("sampler=ancestral",),
    "HeunDiscreteScheduler": ("sampler=heun",),
    "KDPM2DiscreteScheduler": ("sampler=dpm2",),
    "KDPM2AncestralDiscreteScheduler": ("sampler=dpmpp_sde",),
    "DPMSolverMultistepScheduler": ("sampler=dpmpp",),
    "DPMSolverSinglestepScheduler": ("sampler=dpmpp_2s",),
    "DPMSolverSDEScheduler": ("sampler=dpmpp_sde",),
    "DEISMultistepScheduler": ("sampler=deis", "sampler.start=plain"),
    "UniPCMultistepScheduler": ("sampler=unipc",),
    "LCMScheduler": ("sampler=lcm",),
}
FLOW: Mapping[str, tuple[str, ...]] = {
    "FlowMatchEulerDiscreteScheduler": ("sampler=euler",),
    "FlowMatchHeunDiscreteScheduler": ("sampler=heun",),
}
EDM: Mapping[str, tuple[str, ...]] = {
    "EDMEulerScheduler": ("sampler=euler",),
    "EDMDPMSolverMultistepScheduler": ("sampler=dpmpp",),
    "CosineDPMSolverMultistepScheduler": ("sampler=dpmpp",),
}


def solver(config: Mapping[str, Any]) -> list[str]:
    """Return the words that choose the sampler of a scheduler's config; those of ``euler`` for one unknown."""
    name = str(config.get("_class_name"))
    words = list({**TABLE, **FLOW, **EDM}.get(name, ("sampler=euler",)))
    if words == ["sampler=dpmpp"]:
        order = min(int(config.get("solver_order", 2)), 3)
        noisy = name.startswith("Cosine") or str(config.get("algorithm_type", "")).startswith("sde")
        middle = config.get("solver_type", "midpoint") != "heun" and order == 2
        words += [f"sampler.order={order}", f"sampler.form={'midpoint' if middle else 'exact'}", "sampler.start=plain"]
        words += ["sampler.eta=1.0"] * noisy
    elif name in ("UniPCMultistepScheduler", "DEISMultistepScheduler"):
        words.append(f"sampler.order={min(int(config.get('solver_order', 2)), 3)}")
    if config.get("stochastic_sampling"):
        words = ["sampler=consistency"]
    return words


def objective_of(config: Mapping[str, Any]) -> str:
    """Return the objective that a model beside a scheduler of this config is trained on."""
    name = str(config.get("_class_name"))
    if name in FLOW or config.get("use_flow_sigmas"):
        return "flow"
    if name in EDM:
        return "v"
    return {"v_prediction": "v", "sample": "x0"}.get(str(config.get("prediction_type", "epsilon")), "eps")
