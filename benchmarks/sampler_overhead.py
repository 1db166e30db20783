"""What a sampler costs beyond the network: microseconds per step, against diffusers and azula in the same run.

Every library draws with a denoiser that costs nothing: one that returns a stored x0 prediction, and in the rows marked
EDM an identity behind each library's own EDM preconditioning. The number of steps is the same, and the set-up of the
grid and the starting noise count. Rounds alternate between the libraries; the median of the rounds counts.

    uv run --group bench python benchmarks/sampler_overhead.py [--json] [--steps 50] [--rounds 15] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from suffuse.denoiser import Denoiser, EDMPrecond, Preconditioned, Prediction
from suffuse.grid import Karras
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian
from suffuse.sampler import Euler, Heun, Multistep, PredictorCorrector, sample
from suffuse.schedule import EDM
from torch import Tensor, nn

SHAPE = (4, 3, 16, 16)
REPEATS = 3
"""Timed draws of a method per round."""

Run = Callable[[], Any]


class Stored(Denoiser):
    """Returns the same prediction every time."""

    def __init__(self, process: Gaussian, x0: Tensor) -> None:
        super().__init__()
        self.process, self.prediction = process, Prediction(x0)

    def forward(self, x: Any, t: Any, cond: Any = None) -> Prediction:
        """Return the stored prediction."""
        return self.prediction


class Echo(nn.Module):
    """A network that returns its input, with a weight for those who ask for its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, noise: Tensor, cond: Any = None, **kwargs: Any) -> Tensor:
        """Return x."""
        return x


def ours(steps: int, device: str) -> dict[str, Run]:
    """Return our samplers."""
    process, grid = Gaussian(EDM()), Karras()
    like, noise = torch.zeros(SHAPE, device=device), KeyedNoise(torch.arange(SHAPE[0], device=device))
    stored, network = Stored(process, like.clone()), Preconditioned(Echo(), process, EDMPrecond())
    kinds = {
        "order 1": Euler(steps), "order 2": Multistep(steps, order=2), "order 3": Multistep(steps, order=3),
        "deis 2": Multistep(steps, order=2, basis="eps"), "deis 3": Multistep(steps, order=3, basis="eps"),
        "lms 3": Multistep(steps, order=3, basis="sigma"), "flow ab 2": Multistep(steps, order=2, basis="flow"),
        "unipc 2": PredictorCorrector(steps, order=2), "unipc 3": PredictorCorrector(steps, order=3),
        "sde 2": Multistep(steps, order=2, eta=1.0), "heun": Heun(steps),
    }  # fmt: skip

    def run(denoiser: Denoiser, sampler: Any) -> Run:
        return lambda: sample(denoiser, process, sampler, grid(process.schedule, steps), noise, like)

    rows = {name: run(stored, sampler) for name, sampler in kinds.items()}
    behind = ("order 1", "order 2", "order 3", "heun")
    return rows | {f"{name}, EDM": run(network, kinds[name]) for name in behind}


def diffusers(steps: int, device: str) -> dict[str, Run]:
    """Return diffusers' schedulers in their documented loop."""
    import diffusers as d

    def dpm(order: int) -> Any:
        return d.DPMSolverMultistepScheduler(solver_order=order, prediction_type="sample", use_karras_sigmas=True)

    made = {
        "order 1": d.EulerDiscreteScheduler(prediction_type="sample", use_karras_sigmas=True),
        "order 2": dpm(2),
        "order 3": dpm(3),
        "deis 2": d.DEISMultistepScheduler(solver_order=2, prediction_type="sample"),
        "deis 3": d.DEISMultistepScheduler(solver_order=3, prediction_type="sample"),
        "unipc 2": d.UniPCMultistepScheduler(solver_order=2, prediction_type="sample", use_karras_sigmas=True),
        "unipc 3": d.UniPCMultistepScheduler(solver_order=3, prediction_type="sample", use_karras_sigmas=True),
        "sde 2": d.DPMSolverMultistepScheduler(
            solver_order=2, prediction_type="sample", use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"
        ),
        "heun": d.HeunDiscreteScheduler(prediction_type="sample", use_karras_sigmas=True),
    }
    x0 = torch.zeros(SHAPE, device=device)

    def run(scheduler: Any) -> Run:
        def draw() -> None:
            scheduler.set_timesteps(steps, device=device)
            x = torch.randn(SHAPE, device=device) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                scheduler.scale_model_input(x, t)
                x = scheduler.step(x0, t, x).prev_sample

        return draw

    return {name: run(scheduler) for name, scheduler in made.items()} | {
        "order 1, EDM": run(d.EDMEulerScheduler()),
        "order 2, EDM": run(d.EDMDPMSolverMultistepScheduler(solver_order=2)),
        "order 3, EDM": run(d.EDMDPMSolverMultistepScheduler(solver_order=3)),
    }


def azula(steps: int, device: str) -> dict[str, Run]:
    """Return azula's samplers."""
    from azula.denoise import Denoiser as Base
    from azula.denoise import DiracPosterior, KarrasDenoiser
    from azula.noise import VESchedule
    from azula.sample import EulerSampler, HeunSampler, vABSampler, xEABSampler, zABSampler, zEABSampler

    x0 = torch.zeros(SHAPE, device=device)

    class Fixed(Base):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VESchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            return DiracPosterior(mean=x0)

    options = {"steps": steps, "silent": True}
    kinds = {
        "order 1": (EulerSampler, {}),
        "order 2": (xEABSampler, {"order": 2}),
        "order 3": (xEABSampler, {"order": 3}),
    }
    kinds |= {"deis 2": (zEABSampler, {"order": 2}), "deis 3": (zEABSampler, {"order": 3}), "heun": (HeunSampler, {})}
    kinds |= {"lms 3": (zABSampler, {"order": 3}), "flow ab 2": (vABSampler, {"order": 2})}

    def run(sampler: Any) -> Run:
        return lambda: sampler(torch.randn(SHAPE, device=device))

    rows: dict[str, Run] = {}
    for suffix, denoiser in {"": Fixed(), ", EDM": KarrasDenoiser(Echo().to(device), VESchedule())}.items():
        rows |= {name + suffix: run(make(denoiser, **more, **options)) for name, (make, more) in kinds.items()}
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    libraries = {"suffuse": ours, "diffusers": diffusers, "azula": azula}
    runs = {library: make(args.steps, args.device) for library, make in libraries.items()}
    times: dict[str, dict[str, list[float]]] = {
        library: {name: [] for name in found} for library, found in runs.items()
    }
    with torch.inference_mode():
        for _ in range(args.rounds):
            for library, found in runs.items():
                for name, run in found.items():
                    run()  # untimed: it fills the caches that the method before it emptied
                    began = time.perf_counter()
                    for _ in range(REPEATS):
                        run()
                    if args.device != "cpu":
                        torch.cuda.synchronize()
                    times[library][name].append((time.perf_counter() - began) / REPEATS / args.steps * 1e6)
    medians = {library: {name: statistics.median(v) for name, v in found.items()} for library, found in times.items()}
    rows = []
    for name, mine in medians["suffuse"].items():
        peers = {library: medians[library].get(name) for library in ("diffusers", "azula")}
        best = min(time for time in peers.values() if time is not None)
        rows.append({"method": name, "suffuse": mine, **peers, "ratio": mine / best})
    if args.json:
        setting = {"shape": SHAPE, "steps": args.steps, "device": args.device, "torch": torch.__version__}
        print(json.dumps({"unit": "microseconds per step", **setting, "rows": rows}, indent=2))
        return
    print(f"microseconds per step beyond the network, {args.steps} steps, {args.device}, one thread")
    print(f"{'method':<14} {'suffuse':>9} {'diffusers':>10} {'azula':>10} {'ours / best peer':>17}")
    for row in rows:
        peers = [f"{row[p]:10.1f}" if row[p] is not None else f"{'none':>10}" for p in ("diffusers", "azula")]
        print(f"{row['method']:<14} {row['suffuse']:9.1f} {' '.join(peers)} {row['ratio']:17.2f}")


if __name__ == "__main__":
    main()
