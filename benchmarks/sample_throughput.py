"""Images per second at 20 steps: our sampler against diffusers' on the same network, in turns in one process.

Ours is DPM-Solver++(2M) on a trailing grid of rectified flow, `diffusers` its DPMSolverMultistepScheduler with flow
sigmas and the loop of its pipelines. On a GPU ours is also drawn with the whole loop in a CUDA graph, which diffusers'
schedulers, whose tables are read step by step, cannot be. The network is a DiT on 4 x 32 x 32 latents.

    python benchmarks/sample_throughput.py [--json] [--device cpu] [--model dit] [--batch 4] [--steps 20] [--rounds 5]
        [--precision 32-true] [--compile] [override ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import captured, composed, throughput_parser
from suffuse.build import build
from suffuse.denoiser import Flow, Preconditioned
from suffuse.grid import Trailing
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian
from suffuse.sampler import Multistep, sample
from suffuse.schedule import RectifiedFlow

SHAPE = (4, 32, 32)


def runs(network: Any, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return what is measured; each call draws one batch."""
    from diffusers import DPMSolverMultistepScheduler

    process = Gaussian(RectifiedFlow())
    denoiser = Preconditioned(network, process, Flow(sigma_data=1.0))
    like = torch.empty(args.batch, *SHAPE, device=args.device)
    noise = KeyedNoise(torch.arange(args.batch, device=args.device))
    sampler, grid = Multistep(args.steps), Trailing()(process.schedule, args.steps)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    bf16 = args.precision == "bf16-mixed"
    autocast = torch.autocast(args.device, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def ours() -> Any:
        with autocast:
            return sample(denoiser, process, sampler, grid, noise, like)

    def theirs() -> Any:
        scheduler.set_timesteps(args.steps, device=args.device)
        x = torch.randn(args.batch, *SHAPE, device=args.device) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            with autocast:
                out = network(scheduler.scale_model_input(x, t), (t / 1000).expand(args.batch), None)
            x = scheduler.step(out.float(), t, x).prev_sample
        return x

    found: dict[str, Callable[[], Any]] = {"suffuse": ours, "diffusers": theirs}
    if args.device == "cuda":
        found["suffuse in a CUDA graph"] = captured(ours)
    return found


def main() -> None:
    """Measure and print."""
    args = throughput_parser(__doc__, batch=4, steps=20, rounds=5).parse_args()
    cfg = composed(f"model={args.model}", *args.overrides)
    torch.manual_seed(0)
    network = build(cfg["model"], "model", shape=SHAPE, cond_dim=0, context_dim=0).to(args.device).eval()
    if args.compile:
        network.compile()
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        found = runs(network, args)
        for number in range(args.rounds + 1):
            for name, run in found.items():
                if args.device == "cuda":
                    torch.cuda.synchronize()
                began = time.perf_counter()
                run()
                if args.device == "cuda":
                    torch.cuda.synchronize()
                if number:  # the first warms up
                    times.setdefault(name, []).append(time.perf_counter() - began)
    weights = sum(p.numel() for p in network.parameters())
    result: dict[str, Any] = {
        "model": args.model, "weights": weights, "batch": args.batch, "steps": args.steps, "device": args.device,
        "precision": args.precision, "compiled": args.compile, "torch": torch.__version__,
        "images/s": {name: args.batch / statistics.median(values) for name, values in times.items()},
    }  # fmt: skip
    rate = result["images/s"]
    result["ratio to diffusers"] = {n: rate[n] / rate["diffusers"] for n in rate if n != "diffusers"}
    lines = "\n".join(f"{key:<20} {value}" for key, value in result.items())
    print(json.dumps(result, indent=2) if args.json else lines)


if __name__ == "__main__":
    main()
