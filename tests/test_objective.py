"""Objectives: weights as named losses, densities as distributions, and independence of ranks."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import quad
from suffuse.denoiser import X0, EDMPrecond, Eps, Flow, Preconditioned, V
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.objective import (
    EDMWeight,
    EpsWeight,
    FlowWeight,
    LogitNormal,
    LogNormal,
    MinSNR,
    Objective,
    UniformTime,
    UniformWeight,
    VWeight,
)  # fmt: skip
from suffuse.process import Gaussian
from suffuse.schedule import EDM, VE, RectifiedFlow, VPCosine, VPLinear
from torch import nn

f64 = torch.float64
DENSITIES = [LogNormal(), LogitNormal(), LogNormal(0.5, 2.0), UniformTime()]
SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), RectifiedFlow()]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.7]))

    def forward(self, x, noise, cond):
        return x * self.weight + noise[:, None] / 3


def loss(what, weight, schedule, density=None, rows=64, **more):
    process = Gaussian(schedule)
    objective = Objective(weight, density or UniformTime(), what)
    x0 = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    denoiser = Preconditioned(Network(), process, objective.parameterization)
    return objective, denoiser, x0, objective(denoiser, x0, None, KeyedNoise(torch.arange(rows)), 0, **more)


@pytest.mark.parametrize(
    ("what", "weight", "schedule"),
    [
        (X0(0.8), UniformWeight(), VPLinear()), (Eps(0.8), EpsWeight(), VPLinear()), (V(0.8), VWeight(), VPCosine()),
        (Flow(0.8), FlowWeight(), RectifiedFlow()), (EDMPrecond(0.8), EDMWeight(0.8), EDM()),
        (Eps(0.8), EpsWeight(), VE()),
    ],
    ids=str,
)  # fmt: skip
def test_a_matched_weight_is_the_plain_loss_of_the_network(what, weight, schedule):
    """v-loss = x0-loss (snr + 1), eps-loss = x0-loss snr, and so on: the network's own squared error."""
    _, denoiser, x0, found = loss(what, weight, schedule)
    t = schedule.time(found.lam)
    process = denoiser.process
    eps = process.draw(x0, KeyedNoise(torch.arange(64)), 0, 0)
    away, _ = denoiser.residual(x0, eps, t)
    assert found.per_sample.tolist() == pytest.approx((away**2).mean(1).tolist(), rel=1e-5)
    assert found.total.item() == pytest.approx((away**2).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "weight", [UniformWeight(), EpsWeight(), VWeight(), FlowWeight(), EDMWeight(0.5), MinSNR(5.0)], ids=str
)
def test_loss_is_the_weighted_error_of_x0(weight):
    _, denoiser, x0, found = loss(V(1.0), weight, VPLinear())
    t = VPLinear().time(found.lam)
    eps = denoiser.process.draw(x0, KeyedNoise(torch.arange(64)), 0, 0)
    error = denoiser(denoiser.process.corrupt(x0, t, eps), t).x0 - x0
    wanted = weight(found.lam) * (error.double() ** 2).mean(1)
    assert (found.per_sample.double() / wanted - 1).abs().max() < 2e-3


def test_weights_at_known_points():
    lam = torch.tensor([-1.0, 0.0, 2.0], dtype=f64)
    snr = torch.exp(2 * lam)
    assert MinSNR(5.0)(lam).tolist() == pytest.approx([snr[0].item(), 1.0, 5.0])
    sigma = torch.exp(-lam)
    assert EDMWeight(0.5)(lam).tolist() == pytest.approx(((sigma**2 + 0.25) / (sigma * 0.5) ** 2).tolist())
    t = RectifiedFlow().time(lam)
    assert FlowWeight()(lam).tolist() == pytest.approx((1 / t**2).tolist())


@pytest.mark.parametrize("density", DENSITIES, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_log_prob_is_the_density_of_the_quantiles(density, schedule):
    """d lam / d u = 1 / p(lam), up to sign."""
    u, h = torch.linspace(0.02, 0.98, 25, dtype=f64), 1e-6
    slope = (density.quantile(u + h, schedule) - density.quantile(u - h, schedule)) / (2 * h)
    lam = density.quantile(u, schedule)
    assert (slope < 0).all()
    assert (slope.abs().log() + density.log_prob(lam, schedule)).abs().max() < 1e-5


@pytest.mark.parametrize("density", [LogNormal(), LogitNormal(), UniformTime()], ids=str)
def test_density_integrates_to_one(density):
    schedule = EDM()
    low, high = (float(schedule.lam(t)) for t in (1.0, 0.0)) if isinstance(density, UniformTime) else (-14.0, 14.0)
    total, _ = quad(
        lambda v: float(density.log_prob(torch.tensor(v, dtype=f64), schedule).exp()), low + 1e-9, high - 1e-9
    )
    assert total == pytest.approx(1, abs=1e-6)


def test_logit_normal_is_normal_in_the_logit_of_flow_time():
    u = torch.linspace(0.01, 0.99, 33, dtype=f64)
    t = RectifiedFlow().time(LogitNormal(0.4, 1.3).quantile(u, RectifiedFlow()))
    assert (torch.logit(t) - (0.4 + 1.3 * torch.special.ndtri(u))).abs().max() < 1e-10


def test_stratified_levels_fall_into_their_strata():
    _, _, _, found = loss(EDMPrecond(0.5), EDMWeight(0.5), EDM(), LogNormal(), rows=128)
    u = torch.special.ndtr((-found.lam + 1.2) / 1.2)
    assert ((u * 128).floor().long() == torch.arange(128)).all()
    assert abs(found.lam.mean().item() - 1.2) < 0.02 and abs(found.lam.std().item() - 1.2) < 0.06
    free = Objective(EDMWeight(0.5), LogNormal(), EDMPrecond(0.5), stratified=False)
    lam = free.levels(KeyedNoise(torch.arange(4096)), 0, torch.arange(4096), 4096, EDM())
    assert abs(lam.mean().item() - 1.2) < 4 * 1.2 / 64


def test_ranks_together_are_one_batch():
    objective, denoiser, x0, whole = loss(EDMPrecond(0.5), EDMWeight(0.5), EDM(), LogNormal())
    parts = []
    for rank in range(4):
        rows = torch.arange(16) + 16 * rank
        parts.append(objective(denoiser, x0[rows], None, KeyedNoise(rows), 0, rows, 64).per_sample)
    assert (torch.cat(parts) - whole.per_sample).abs().max() < 1e-6
    assert torch.stack([part.mean() for part in parts]).mean().item() == pytest.approx(whole.total.item(), rel=1e-6)


def test_times_are_never_the_ends():
    noise = KeyedNoise(torch.arange(2**16))
    u = noise.uniform(torch.empty(2**16, dtype=f64), 0, 100)
    assert u.dtype == f64 and u.min() > 0 and u.max() < 1


@pytest.mark.parametrize("what", [X0(0.5), Eps(0.5), V(0.5), Flow(0.5), EDMPrecond(0.5)], ids=str)
@pytest.mark.parametrize(
    "weight", [UniformWeight(), EpsWeight(), VWeight(), FlowWeight(), EDMWeight(0.5), MinSNR()], ids=str
)
@pytest.mark.parametrize("schedule", [VPCosine(), RectifiedFlow(), EDM()], ids=str)
def test_every_combination_is_finite_with_gradients(what, weight, schedule):
    for density in (UniformTime(), LogNormal(0.0, 8.0)):
        _, denoiser, _, found = loss(what, weight, schedule, density)
        found.total.backward()
        assert torch.isfinite(found.per_sample).all() and found.lam.abs().max() <= 15
        assert torch.isfinite(denoiser.network.weight.grad).all()


def test_perfect_prediction_has_no_loss():
    class Perfect(nn.Module):
        def forward(self, x, noise, cond):
            return torch.full_like(x, 0.25)

    objective = Objective(UniformWeight(), UniformTime(), X0(1.0))
    denoiser = Preconditioned(Perfect(), Gaussian(EDM()), X0(1.0))
    found = objective(denoiser, torch.full((8, 3), 0.25), None, KeyedNoise(torch.arange(8)), 0)
    assert found.total.item() == 0.0


def test_named_fields_add_up():
    class Two(nn.Module):
        def forward(self, x, noise, cond):
            return {name: torch.zeros_like(leaf) for name, leaf in x.items()}

    spread = {"a": 0.5, "b": 2.0}
    objective = Objective(EDMWeight(spread), LogNormal(), EDMPrecond(spread))
    process = {"a": Gaussian(EDM()), "b": Gaussian(VE())}
    x0 = {"a": torch.randn(16, 3), "b": torch.randn(16, 5)}
    found = objective(
        Preconditioned(Two(), process, objective.parameterization), x0, None, KeyedNoise(torch.arange(16)), 0
    )
    noise, t = KeyedNoise(torch.arange(16)), EDM().time(found.lam)
    wanted = torch.zeros(16)
    for k, (name, one) in enumerate(process.items()):
        what = EDMPrecond(spread[name])
        alpha, sigma = (value[:, None] for value in one.schedule(t))
        wanted += what.target(x0[name], noise.normal(x0[name], 0, k), alpha, sigma).float().pow(2).mean(1)
    assert found.per_sample.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: EDMWeight(0.0), "sigma_data=0.0"), (lambda: EDMWeight(None), "sigma_data=None"),
        (lambda: MinSNR(-1.0), "gamma=-1.0"), (lambda: LogNormal(std=0.0), "std=0.0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
