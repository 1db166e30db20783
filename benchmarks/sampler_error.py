"""How far from the exact solution samplers end, per number of function evaluations: ours, diffusers' and azula's.

The target is a mixture of 12 Gaussians in 32 dimensions whose denoiser is known, the exact end of every trajectory the
probability-flow ODE's by an adaptive integrator of order 8. Peers run on Karras' grid from sigma 80 to 0.002 and 0;
ours on karras, on exponential, and on a grid tuned to the target on other trajectories. Errors are medians over
trajectories of the root mean square distance. All libraries see the same starts and the same denoiser, in one run.

With --ckpt the denoiser is a trained network, guided as its run says, and the exact end that of 1,000 steps of our own
third-order method.

    uv run --group bench python benchmarks/sampler_error.py [--json] [--plot FILE.png] [--schedule ve|vp|flow]
        [--evaluations 5 8 10 16 20 32 50] [--rows 96] [--tries 600] [--tuned NAME ...]
        [--ckpt RUN]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from suffuse.denoiser import Exact
from suffuse.grid import Exponential, Grid, Karras
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian as Process
from suffuse.process import reference
from suffuse.sampler import Multistep, PredictorCorrector, Sampler, SingleStep, sample
from suffuse.schedule import EDM, RectifiedFlow, Schedule, VPLinear
from suffuse.targets import GaussianMixture
from suffuse.tuning import tune
from torch import Tensor

f64 = torch.float64
SIGMA_MAX, SIGMA_MIN, DIM = 80.0, 0.002, 32

SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "dpmpp_2m": lambda n: Multistep(n, order=2),
    "dpmpp_3m": lambda n: Multistep(n, order=3, start="plain"),
    "deis3": lambda n: Multistep(n, order=3, basis="eps", start="plain"),
    "unipc2": lambda n: PredictorCorrector(n, order=2),
    "unipc2_eps": lambda n: PredictorCorrector(n, order=2, basis="eps"),
    "flow_ab3": lambda n: Multistep(n, order=3, basis="flow", start="plain"),
    "unipc3": lambda n: PredictorCorrector(n, order=3),
    "unipc3_eps": lambda n: PredictorCorrector(n, order=3, basis="eps"),
}
"""One evaluation per step."""

TUNED = ["dpmpp_2m", "dpmpp_3m", "unipc2_eps", "unipc3_eps"]
"""Those whose grids are tuned."""

STAGED: dict[str, tuple[int, Callable[[int], Sampler]]] = {
    "heun": (2, lambda n: SingleStep(n, order=2, basis="sigma", share=1.0)),
    "dpm2": (2, lambda n: SingleStep(n, order=2)),
    "dpm3": (3, lambda n: SingleStep(n, order=3)),
}
"""Several evaluations per step; the last one, to a clean end, takes one."""


def mixture(seed: int = 0) -> GaussianMixture:
    """Return the target: means of standard deviation one, components of standard deviation 0.05 to 0.3."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(12, DIM, generator=generator, dtype=f64)
    spread = 0.05 + 0.25 * torch.rand(12, generator=generator, dtype=f64)
    return GaussianMixture(means, spread**2, torch.full((12,), 1 / 12, dtype=f64))


class Network:
    """A trained, guided model as a function of (x, alpha, sigma) on flat states; row i has the label i modulo ten."""

    def __init__(self, run: str, rows: int) -> None:
        from suffuse.checkpoint import read
        from suffuse.cli import find_checkpoint
        from suffuse.model import Model, Recipe

        saved = read(find_checkpoint(run))
        model = Model.load(saved)
        classes = max(len(model.facts.labels), 1)
        asked = {"label": [i % classes for i in range(rows)]} if model.facts.labels else {}
        raw = model.conditioner.parse(asked, rows)
        self.denoiser, self.cond = model.guided(Recipe.build(saved["suffuse"]["config"]), raw, rows)
        self.shape, self.dim = model.facts.shape, math.prod(model.facts.shape)
        self.schedule = reference(model.process).schedule

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the model's x0: what it depends on is x/alpha and sigma/alpha, brought to its own schedule."""
        a, s = float(alpha.flatten()[0]), float(sigma.flatten()[0])
        t = float(self.schedule.time(math.log(a / s)))
        own = self.schedule(t)
        scaled = (x * (float(own.alpha) / a)).float().view(-1, *self.shape)
        with torch.inference_mode():
            return self.denoiser(scaled, t, self.cond).x0.flatten(1).to(x.dtype)


def starts(first: int, rows: int, dim: int = DIM) -> Tensor:
    """Return standard normal starts, shape (rows, dim)."""
    return KeyedNoise(torch.arange(first, first + rows)).normal(torch.empty(rows, dim, dtype=f64), 0)


def fine(target: Network, unit: Tensor) -> Tensor:
    """Return where 1,000 steps of third order take sigma_max times `unit`."""
    process, grid = Process(EDM()), Exponential(SIGMA_MIN, SIGMA_MAX)(EDM(), 1000)
    x = SIGMA_MAX * unit
    return sample(Exact(process, target.posterior_mean), process, Multistep(1000, order=3), grid, None, x, x=x)  # type: ignore[arg-type]


def exact(target: GaussianMixture, unit: Tensor) -> Tensor:
    """Return where the probability-flow ODE takes sigma_max times `unit`, integrated in log sigma to 1e-6."""
    ones = torch.ones((), dtype=f64)
    ends = []
    for row in unit:

        def slope(log_sigma: float, y: Any) -> Any:
            x = torch.from_numpy(y)[None]
            return (x - target.posterior_mean(x, ones, torch.tensor(math.exp(log_sigma), dtype=f64)))[0].numpy()

        span = (math.log(SIGMA_MAX), math.log(1e-6))
        found = solve_ivp(slope, span, SIGMA_MAX * row.numpy(), method="DOP853", rtol=1e-10, atol=1e-11).y[:, -1]
        ends.append(torch.from_numpy(found))
    return torch.stack(ends)


def median(found: Tensor, wanted: Tensor) -> float:
    """Return the median over rows of the root mean square distance."""
    return float(((found.double() - wanted) ** 2).mean(1).sqrt().median())


def ours(
    target: Any, schedule: Schedule, unit: Tensor, wanted: Tensor, counts: list[int], tries: int, tuned: list[str]
) -> dict[str, dict[int, float]]:
    """Return errors per method, grid and number of evaluations."""
    process = Process(schedule)
    denoiser = Exact(process, target.posterior_mean)
    noise, like = KeyedNoise(torch.arange(len(unit))), torch.empty_like(unit)
    scale = schedule(schedule.time(-math.log(SIGMA_MAX))).sigma
    karras, exponential = Karras(SIGMA_MIN, SIGMA_MAX), Exponential(SIGMA_MIN, SIGMA_MAX)

    def error(sampler: Sampler, grid: Grid) -> float:
        return median(sample(denoiser, process, sampler, grid, noise, like, x=scale * unit), wanted)

    rows: dict[str, dict[int, float]] = {}
    for n in counts:
        for name, make in SAMPLERS.items():
            for grid_name, build in (("karras", karras), ("exponential", exponential)):
                rows.setdefault(f"{name}, {grid_name}", {})[n] = error(make(n), build(schedule, n))
        for name, (stages, make) in STAGED.items():
            steps = (n - 1) // stages + 1  # the last step is of first order
            if (steps - 1) * stages + 1 == n:
                rows.setdefault(f"{name}, karras", {})[n] = error(make(steps), karras(schedule, steps))
        for name in tuned:
            sampler = SAMPLERS[name](n)
            seeds = torch.arange(10**6, 10**6 + len(unit))  # not the trajectories that are measured
            found = tune(denoiser, process, sampler, exponential, seeds, like, tries=tries)
            rows.setdefault(f"{name}, tuned", {})[n] = error(sampler, found.grid)
            print(f"tuned {name} to {n} steps: {rows[f'{name}, tuned'][n]:.1e}", file=sys.stderr)
    return rows


def diffusers(target: Any, unit: Tensor, wanted: Tensor, counts: list[int]) -> dict[str, dict[int, float]]:
    """Return errors of diffusers' schedulers in their documented loop, on Karras' levels."""
    import diffusers as d

    edm = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "sigma_schedule": "karras", "sigma_data": 0.5}
    karras = {"use_karras_sigmas": True, "prediction_type": "sample"}
    made: dict[str, Callable[[], Any]] = {
        "EDMEuler": lambda: d.EDMEulerScheduler(**edm),
        "EDMDPM 2": lambda: d.EDMDPMSolverMultistepScheduler(solver_order=2, **edm),
        "EDMDPM 3": lambda: d.EDMDPMSolverMultistepScheduler(solver_order=3, **edm),
        "DEIS 2": lambda: d.DEISMultistepScheduler(solver_order=2, **karras),
        "DEIS 3": lambda: d.DEISMultistepScheduler(solver_order=3, **karras),
        "UniPC 2": lambda: d.UniPCMultistepScheduler(solver_order=2, **karras),
        "UniPC 3": lambda: d.UniPCMultistepScheduler(solver_order=3, **karras),
    }
    rows: dict[str, dict[int, float]] = {}
    for name, make in made.items():
        for n in counts:
            scheduler = make()
            scheduler.set_timesteps(n)
            vp = not name.startswith("EDM")
            if vp:  # their range of levels follows from betas; the levels themselves may be set
                rho, ramp = 7.0, np.linspace(0, 1, n)
                low, high = SIGMA_MIN ** (1 / rho), SIGMA_MAX ** (1 / rho)
                scheduler.sigmas = torch.from_numpy(np.append((high + ramp * (low - high)) ** rho, 0.0))
            first = float(scheduler.sigmas[0])
            x = unit * (first / math.sqrt(1 + first**2) if vp else first)
            for t in scheduler.timesteps:
                if scheduler.step_index is None:
                    scheduler._init_step_index(t)
                scheduler.scale_model_input(x, t)
                sigma = scheduler.sigmas[scheduler.step_index].double()
                alpha = 1 / (1 + sigma**2).sqrt() if vp else torch.ones((), dtype=f64)
                output = target.posterior_mean(x, alpha, alpha * sigma)
                if not vp:  # the network output that its preconditioning turns into this x0
                    skip, out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25).sqrt()
                    output = (output - skip * x) / out
                x = scheduler.step(output, t, x).prev_sample.double()
            rows.setdefault(f"diffusers {name}", {})[n] = median(x, wanted)
    return rows


def azula(target: Any, unit: Tensor, wanted: Tensor, counts: list[int]) -> dict[str, dict[int, float]]:
    """Return errors of azula's samplers on a schedule whose even times are Karras' levels, then a clean end."""
    from azula import sample as methods
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import Schedule as Base

    class Levels(Base):
        """sigma^(1/7) even in time."""

        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            low, high = SIGMA_MIN ** (1 / 7), SIGMA_MAX ** (1 / 7)
            return torch.ones_like(t), (low + t * (high - low)) ** 7

    class Oracle(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Levels()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return DiracPosterior(mean=target.posterior_mean(x_t, *self.schedule(t)))

    rows: dict[str, dict[int, float]] = {}
    for name in ("xEAB", "zEAB", "zAB", "vAB"):
        for order in (2, 3):
            for n in counts:
                kind = getattr(methods, f"{name}Sampler")
                run = kind(Oracle(), order=order, steps=n - 1, silent=True, dtype=f64)
                x = run(SIGMA_MAX * unit)
                # The last evaluation is the step from sigma_min to zero, which azula does not take itself.
                clean = target.posterior_mean(x, torch.ones((), dtype=f64), torch.tensor(SIGMA_MIN, dtype=f64))
                rows.setdefault(f"azula {name} {order}", {})[n] = median(clean, wanted)
    return rows


def plot(table: dict[str, dict[int, float]], path: Path) -> None:
    """Draw error against evaluations: every method thin, the best of each kind thick."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    colours = {"peers": "tab:gray", "ours": "tab:blue", "tuned": "tab:orange"}
    for name, row in table.items():
        kind = _kind(name)
        axes.loglog(list(row), list(row.values()), color=colours[kind], alpha=0.25, lw=0.8)
    for kind, colour in colours.items():
        best = _best(table, kind)
        axes.loglog(list(best), list(best.values()), color=colour, lw=2.5, marker="o", label=f"best of {kind}")
    axes.set_xlabel("evaluations of the denoiser")
    axes.set_ylabel("median distance to the exact solution")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _kind(name: str) -> str:
    return "peers" if name.startswith(("diffusers", "azula")) else "tuned" if name.endswith("tuned") else "ours"


def _best(table: dict[str, dict[int, float]], kind: str) -> dict[int, float]:
    rows = [row for name, row in table.items() if _kind(name) == kind]
    counts = sorted({n for row in rows for n in row})
    return {n: min(row[n] for row in rows if n in row and math.isfinite(row[n])) for n in counts}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--schedule", choices=["ve", "vp", "flow"], default="ve")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[5, 8, 10, 16, 20, 32, 50])
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--tries", type=int, default=600)
    parser.add_argument("--tuned", nargs="+", choices=list(SAMPLERS), default=TUNED)
    parser.add_argument("--ckpt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # diffusers' DEIS divides by zero at a clean end
    counts: list[int] = args.evaluations
    if args.ckpt:
        torch.set_num_threads(2)
        network = Network(args.ckpt, args.rows)
        target: Any = network
        unit = starts(0, args.rows, network.dim)
        wanted = fine(network, unit)
    else:
        target, unit = mixture(), starts(0, args.rows)
        wanted = exact(target, unit)
    schedule = {"ve": EDM(), "vp": VPLinear(), "flow": RectifiedFlow()}[args.schedule]
    table = ours(target, schedule, unit, wanted, counts, args.tries, args.tuned)
    table |= diffusers(target, unit, wanted, counts) | azula(target, unit, wanted, counts)
    best = {kind: _best(table, kind) for kind in ("peers", "ours", "tuned")}
    if args.plot:
        plot(table, args.plot)
    if args.json:
        print(json.dumps({"what": "median RMSE", "schedule": args.schedule, "rows": table, "best": best}, indent=2))
        return
    width = max(map(len, table))
    print(f"{'median distance to the exact solution':<{width}} " + " ".join(f"{n:>8}" for n in counts))
    for name, row in table.items():
        print(f"{name:<{width}} " + " ".join(f"{row[n]:8.1e}" if n in row else f"{'':>8}" for n in counts))
    for kind, row in best.items():
        print(f"{'best of ' + kind:<{width}} " + " ".join(f"{row[n]:8.1e}" for n in counts))
    for kind in ("ours", "tuned"):
        ratios = " ".join(f"{best[kind][n] / best['peers'][n]:8.2f}" for n in counts)
        print(f"{kind + ' / best peer':<{width}} {ratios}")


if __name__ == "__main__":
    main()
