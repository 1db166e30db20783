"""Peers: our samplers against those of diffusers and azula that are right, on the same levels and the same denoiser.

Not matched, because they are wrong: diffusers' order 3 (a factor 2 is missing in its second difference, so it is of
second order), the sign of that term in its SDE form, its FlowMatchEuler's end point that is shifted twice.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from suffuse.denoiser import Exact
from suffuse.grid import Grid
from suffuse.process import Gaussian as Process
from suffuse.sampler import DDIM, Ancestral, Euler, Heun, Multistep, SingleStep, sample
from suffuse.schedule import EDM, RectifiedFlow, VPCosine, VPLinear
from suffuse.targets import GaussianMixture

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (group bench)")
azula = pytest.importorskip("azula", reason="azula is not installed (group bench)")

f64 = torch.float64
MEANS = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=f64)
TARGET = GaussianMixture(MEANS, torch.full((6,), 0.05, dtype=f64), torch.full((6,), 1 / 6, dtype=f64))
NOISE = torch.randn(16, 2, generator=torch.Generator().manual_seed(2), dtype=f64)


class Recorded:
    """The numbers a peer drew, in its order; draw 0 is not used."""

    def __init__(self, seed):
        self.generator, self.drawn = torch.Generator().manual_seed(seed), []

    def normal(self, like, step, stream=0):
        while len(self.drawn) < step:
            self.drawn.append(torch.randn(like.shape, generator=self.generator, dtype=torch.float32))
        return self.drawn[step - 1].to(like.dtype)


def ours(schedule, sampler, sigmas, x, noise=None):
    """Draw on the levels sigma/alpha that a peer uses; a last 0 is a clean end."""
    sigmas = np.asarray(sigmas, dtype=np.float64)
    clean = sigmas[-1] == 0
    inside = sigmas[:-1] if clean else sigmas
    t = schedule.time(-torch.from_numpy(np.log(inside))).numpy()
    t = np.minimum.accumulate(np.append(t, min(0.0, t[-1])) if clean else t)
    process = Process(schedule)
    return sample(Exact(process, TARGET.posterior_mean), process, sampler, Grid(t, clean), noise, x, x=x)


def oracle(scheduler, x, vp):
    """The exact x0 at the scheduler's own level, not at its rounded timestep."""
    sigma = scheduler.sigmas[scheduler.step_index].double()
    alpha, noise = (
        (1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()) if vp else (torch.ones((), dtype=f64), sigma)
    )
    return TARGET.posterior_mean(x.double(), alpha, noise)


def theirs(scheduler, steps, vp=True, **more):
    """Run a scheduler's documented loop in float64; return what it started from, its levels and its result."""
    scheduler.set_timesteps(steps, **more.pop("set", {}))
    sigmas = scheduler.sigmas.double()
    start = sigmas[0] / (1 + sigmas[0] ** 2).sqrt() if vp else sigmas[0]
    x = first = NOISE * start
    for t in scheduler.timesteps:
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        x = scheduler.step(oracle(scheduler, x, vp), t, x, **more).prev_sample.double()
    return first, sigmas.numpy(), x


VE_STYLE = {"prediction_type": "sample", "use_karras_sigmas": True}


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [(diffusers.EulerDiscreteScheduler, Euler()), (diffusers.HeunDiscreteScheduler, Heun())],
)
def test_euler_and_heun(scheduler, sampler):
    made = scheduler(**VE_STYLE)
    made.set_timesteps(10)
    sigmas = made.sigmas.double()
    levels = sigmas if isinstance(sampler, Euler) else torch.cat([sigmas[:-1:2], sigmas[-1:]])
    x = NOISE * sigmas[0]
    for t in made.timesteps:
        made.scale_model_input(x, t)
        x = made.step(oracle(made, x, False), t, x).prev_sample.double()
    found = ours(EDM(), sampler, levels, NOISE * sigmas[0])
    assert (found - x).abs().max() < 2e-5


def test_euler_ancestral():
    made = diffusers.EulerAncestralDiscreteScheduler(prediction_type="epsilon")
    made.set_timesteps(10)
    sigmas, generator = made.sigmas.double(), torch.Generator().manual_seed(7)
    x = NOISE * sigmas[0]
    for t in made.timesteps:
        made.scale_model_input(x, t)
        eps = (x - oracle(made, x, False)) / made.sigmas[made.step_index]
        x = made.step(eps.float(), t, x.float(), generator=generator).prev_sample.double()
    found = ours(EDM(), Ancestral(), sigmas, NOISE * sigmas[0], Recorded(7))
    assert (found - x).abs().max() < 1e-4


@pytest.mark.parametrize("form", ["midpoint", "heun"])
@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine()], ids=str)
def test_dpm_solver_2m(form, schedule):
    made = diffusers.DPMSolverMultistepScheduler(solver_order=2, solver_type=form, lower_order_final=False, **VE_STYLE)
    x, sigmas, wanted = theirs(made, 12)
    sampler = Multistep(order=2, form="midpoint" if form == "midpoint" else "exact")
    assert (ours(schedule, sampler, sigmas, x) - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("form", ["midpoint", "heun"])
def test_dpm_solver_2m_sde(form):
    made = diffusers.DPMSolverMultistepScheduler(
        solver_order=2, solver_type=form, lower_order_final=False, algorithm_type="sde-dpmsolver++", **VE_STYLE
    )
    generator = torch.Generator().manual_seed(3)
    made.set_timesteps(12)
    sigmas = made.sigmas.double()
    x = first = NOISE * sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    for t in made.timesteps:
        if made.step_index is None:
            made._init_step_index(t)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float32)
        x = made.step(oracle(made, x, True), t, x, variance_noise=noise).prev_sample.double()
    sampler = Multistep(order=2, eta=1.0, form="midpoint" if form == "midpoint" else "exact")
    assert (ours(VPLinear(), sampler, sigmas, first, Recorded(3)) - x).abs().max() < 2e-5


@pytest.mark.parametrize("order", [1, 2])
def test_deis(order):
    made = diffusers.DEISMultistepScheduler(solver_order=order, lower_order_final=False, **VE_STYLE)
    x, sigmas, wanted = theirs(made, 12)
    assert (ours(VPLinear(), Multistep(order=order, basis="eps"), sigmas, x) - wanted).abs().max() < 5e-5


def test_dpm_solver_singlestep():
    """Its stage is every second node of the grid, wherever that lies: ours when it lies in the middle."""
    made = diffusers.DPMSolverSinglestepScheduler(
        solver_order=2, solver_type="midpoint", lower_order_final=False, **VE_STYLE
    )
    lam = np.linspace(-3, 4, 2 * 6 + 1)
    made.set_timesteps(12)
    made.sigmas = torch.from_numpy(np.append(np.exp(-lam[:-1]), 0.0)).float()
    x = first = NOISE * float(np.exp(3) / np.sqrt(1 + np.exp(6)))
    for t in made.timesteps[:10]:
        if made.step_index is None:
            made._init_step_index(t)
        x = made.step(oracle(made, x, True), t, x).prev_sample.double()
    found = ours(VPLinear(), SingleStep(order=2, basis="x0", midpoint=True), np.exp(-lam[:11:2]), first)
    assert (found - x).abs().max() < 2e-5


def test_edm_schedulers():
    for made, sampler in (
        (diffusers.EDMDPMSolverMultistepScheduler(solver_order=2, solver_type="midpoint", lower_order_final=False),
         Multistep(order=2, form="midpoint")),
        (diffusers.EDMDPMSolverMultistepScheduler(solver_order=2, solver_type="heun", lower_order_final=False),
         Multistep(order=2)),
    ):  # fmt: skip
        made.set_timesteps(12)
        sigmas = made.sigmas.double()
        x = first = NOISE * sigmas[0]
        for t in made.timesteps:
            made.scale_model_input(x, t)
            sigma = made.sigmas[made.step_index].double()
            x0, d = oracle(made, x, False), made.config.sigma_data
            # The network output that its preconditioning turns into the oracle's x0.
            skip, out = d**2 / (sigma**2 + d**2), sigma * d / (sigma**2 + d**2).sqrt()
            x = made.step((x0 - skip * x) / out, t, x).prev_sample.double()
        assert (ours(EDM(), sampler, sigmas, first) - x).abs().max() < 5e-5


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_trailing(eta):
    made = diffusers.DDIMScheduler(
        beta_schedule="linear", prediction_type="sample", clip_sample=False, timestep_spacing="trailing",
        set_alpha_to_one=True,
    )  # fmt: skip
    made.set_timesteps(10)
    bars = made.alphas_cumprod.double()
    generator, sigmas = torch.Generator().manual_seed(5), []
    x = first = NOISE.clone()
    for t in made.timesteps:
        bar = bars[t]
        sigmas.append(float(((1 - bar) / bar).sqrt()))
        x0 = TARGET.posterior_mean(x, bar.sqrt(), (1 - bar).sqrt())
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).double() if eta else None
        x = made.step(x0, t, x, eta=eta, variance_noise=noise).prev_sample.double()
    found = ours(VPLinear(), DDIM(eta=eta), [*sigmas, 0.0], first, Recorded(5))
    assert (found - x).abs().max() < 2e-4


def test_flow_match_euler_and_heun():
    for kind, sampler in (
        (diffusers.FlowMatchEulerDiscreteScheduler, Euler()),
        (diffusers.FlowMatchHeunDiscreteScheduler, SingleStep(order=2, basis="flow", share=1.0)),
    ):
        made = kind()
        made.set_timesteps(10)
        levels = made.sigmas.double()
        x = NOISE * levels[0]
        for t in made.timesteps:
            if made.step_index is None:
                made._init_step_index(t)
            tau = made.sigmas[made.step_index].double()
            velocity = (x - TARGET.posterior_mean(x, 1 - tau, tau)) / tau
            x = made.step(velocity, t, x).prev_sample.double()
        tau = levels if isinstance(sampler, Euler) else torch.cat([levels[:-1:2], levels[-1:]])
        # Time of the straight line is its sigma; the first node may be pure noise.
        process = Process(RectifiedFlow())
        grid = Grid(np.minimum.accumulate(tau.numpy()), clean=True)
        found = sample(Exact(process, TARGET.posterior_mean), process, sampler, grid, None, NOISE, x=NOISE * levels[0])
        assert (found - x).abs().max() < 2e-5


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("name", "basis"), [("xEAB", "x0"), ("zEAB", "eps"), ("zAB", "sigma"), ("vAB", "flow")])
def test_azulas_multistep_methods(name, basis, order):
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import RectifiedSchedule, VESchedule

    for theirs_schedule, schedule in ((VESchedule(), EDM()), (RectifiedSchedule(), RectifiedFlow())):

        class Oracle(Denoiser):
            def __init__(self, own):
                super().__init__()
                self.schedule = own

            def forward(self, x_t, t, **_):
                return DiracPosterior(mean=TARGET.posterior_mean(x_t, *self.schedule(t)))

        kind = getattr(azula.sample, f"{name}Sampler")
        run = kind(Oracle(theirs_schedule), order=order, start=0.95, stop=0.05, steps=9, silent=True, dtype=f64)
        alpha, sigma = theirs_schedule(run.timesteps)
        wanted = run(NOISE * sigma[0]) / alpha[-1]
        # Its straight line ends at alpha = 0.001, so states compare by what they are over alpha.
        levels = sigma / alpha
        start, end = (schedule(schedule.time(-levels[i].log())) for i in (0, -1))
        found = ours(schedule, Multistep(order=order, basis=basis, start="plain"), levels, NOISE * start.sigma)
        assert (found / end.alpha - wanted).abs().max() < 1e-8
