"""Objectives: weights as named losses, densities as distributions, and independence of ranks."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import t as student
from suffuse import checkpoint
from suffuse.build import build
from suffuse.denoiser import X0, EDMPrecond, Eps, Flow, Preconditioned, V
from suffuse.errors import ConfigError
from suffuse.grid import Karras
from suffuse.model import Facts, Model, Recipe, _fill
from suffuse.nn import DiT, UNet
from suffuse.noise import KeyedNoise
from suffuse.objective import (
    P2,
    CosMap,
    CosMapWeight,
    EDMWeight,
    EpsWeight,
    FlowWeight,
    LogitNormal,
    LogNormal,
    LogNormalMixture,
    LogStudent,
    MinSNR,
    Mode,
    ModeWeight,
    Objective,
    PowerTime,
    SigmoidWeight,
    SoftMinSNR,
    Uncertainty,
    UniformLogSNR,
    UniformTime,
    UniformWeight,
    VWeight,
)  # fmt: skip
from suffuse.process import Gaussian
from suffuse.sampler import Ancestral, Euler, Heun, Multistep, sample
from suffuse.schedule import EDM, VE, RectifiedFlow, VPCosine, VPLinear
from suffuse.self_condition import SelfConditioned
from torch import nn

f64 = torch.float64
DENSITIES = [
    LogNormal(), LogitNormal(), LogNormal(0.5, 2.0), UniformTime(), PowerTime(), PowerTime(0.7), UniformLogSNR(),
    UniformLogSNR(-1.0, 3.0), CosMap(), Mode(), Mode(-0.7), Mode(0.0), Mode(1.75), LogStudent(),
    LogStudent(0.3, 0.8, 1.0), LogStudent(0.0, 0.2, 0.5), LogNormalMixture(),
    LogNormalMixture((1.0, -2.0, 0.0), (0.3, 0.5, 2.0), (3, 1, 1)),
]  # fmt: skip
WEIGHTS = [
    UniformWeight(), EpsWeight(), VWeight(), FlowWeight(), EDMWeight(0.5), MinSNR(5.0), SoftMinSNR(), P2(),
    SigmoidWeight(), CosMapWeight(), ModeWeight(),
]  # fmt: skip
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


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
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
    assert EDMWeight(0.5, most=3.0)(lam).tolist() == pytest.approx((snr.clamp(max=3) + 4).tolist())
    t = RectifiedFlow().time(lam)
    assert FlowWeight()(lam).tolist() == pytest.approx((1 / t**2).tolist())


def error(lam):
    """Return a made-up error of x0 at a noise level."""
    return torch.sigmoid(-2 * lam) * (1 + 0.3 * torch.sin(lam))


def integral(function, low=-14.0, high=14.0):
    """Return an integral over lam by quadrature."""
    return quad(lambda v: float(function(torch.tensor(v, dtype=f64))), low, high, limit=200, epsabs=1e-9)[0]


def test_soft_min_snr_is_the_weight_of_k_diffusion_on_its_preconditioned_loss():
    """k-diffusion multiplies the error of F by (sigma d)^2 / (sigma^2 + d^2)^2; gamma is 1 / d^2."""
    d, lam = 0.5, torch.linspace(-4, 4, 41, dtype=f64)
    sigma = torch.exp(-lam)
    out = EDMPrecond(d).affine(torch.ones_like(sigma), sigma).out
    theirs = (sigma * d) ** 2 / (sigma**2 + d**2) ** 2 / out**2
    assert (SoftMinSNR(1 / d**2)(lam) / theirs - 1).abs().max() < 1e-12
    assert (SoftMinSNR(7.0)(lam) - 1 / (sigma**2 + 1 / 7)).abs().max() < 1e-12


def test_p2_divides_the_error_of_eps():
    lam = torch.linspace(-4, 4, 41, dtype=f64)
    snr = torch.exp(2 * lam)
    assert (P2(0.7, 0.5)(lam) / (EpsWeight()(lam) / (0.7 + snr) ** 0.5) - 1).abs().max() < 1e-12
    assert torch.equal(P2(1.0, 0.0)(lam), EpsWeight()(lam))


def test_sigmoid_weight_is_the_weighted_elbo_of_its_papers():
    """1/2 int sigmoid(b - l) |eps error|^2 dl over the log-SNR l, to which uniform times contribute -dl/dt."""
    bias, schedule = -1.0, VPCosine()
    theirs = 0.5 * integral(
        lambda log_snr: torch.sigmoid(bias - log_snr) * (log_snr).exp() * error(log_snr / 2), -28, 28
    )
    ours = integral(lambda lam: SigmoidWeight(bias)(lam) * error(lam))
    assert ours == pytest.approx(theirs, rel=1e-8)
    time = quad(
        lambda t: float(
            SigmoidWeight(bias)(schedule.lam(t)) * error(schedule.lam(t))
            / UniformTime().log_prob(schedule.lam(t), schedule).exp()
        ), 1e-5, 1 - 1e-5, limit=400,
    )[0]  # fmt: skip
    assert time == pytest.approx(theirs, rel=1e-4)
    lam = torch.linspace(-3, 3, 7, dtype=f64)
    assert (SigmoidWeight(1.2)(lam) / SoftMinSNR(math.exp(1.2))(lam) - 1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("weight", "density"), [(CosMapWeight(), CosMap()), (ModeWeight(0.8), Mode(0.8)), (ModeWeight(-0.5), Mode(-0.5))],
    ids=str,
)  # fmt: skip
def test_a_tilted_weight_with_uniform_times_is_the_velocity_loss_with_that_density(weight, density):
    flow = RectifiedFlow()
    uniform = integral(lambda lam: UniformTime().log_prob(lam, flow).exp() * weight(lam) * error(lam))
    tilted = integral(lambda lam: density.log_prob(lam, flow).exp() * FlowWeight()(lam) * error(lam))
    assert uniform == pytest.approx(tilted, rel=1e-7)


def test_mode_and_cosmap_are_the_maps_of_their_paper():
    u = torch.linspace(0.01, 0.99, 33, dtype=f64)
    for scale in (-0.7, 0.0, 1.29):
        t = 1 - u - scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
        assert (RectifiedFlow().time(Mode(scale).quantile(1 - u, RectifiedFlow())) - t).abs().max() < 1e-12
    t = 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
    assert (RectifiedFlow().time(CosMap().quantile(u, RectifiedFlow())) - t).abs().max() < 1e-12
    assert (CosMap().quantile(u, EDM()) - VPCosine().lam(u)).abs().max() < 1e-10


@pytest.mark.parametrize("df", [0.3, 1.0, 2.5, 30.0, 1000.0])
def test_student_is_student(df):
    u = torch.logspace(-9, -0.31, 40, dtype=f64)
    for share in (u, 1 - u):
        wanted = torch.from_numpy(student.ppf(share.numpy(), df))
        found = -LogStudent(0.0, 1.0, df).quantile(share, EDM())
        assert ((found - wanted) / (1 + wanted.abs()))[wanted.abs() < 1e8].abs().max() < 1e-8
    lam = torch.linspace(-9, 9, 50, dtype=f64)
    wanted = torch.from_numpy(student.logpdf((-lam.numpy() - 0.4) / 1.3, df)) - math.log(1.3)
    assert (LogStudent(0.4, 1.3, df).log_prob(lam, EDM()) - wanted).abs().max() < 1e-10


@pytest.mark.parametrize("parts", [((0.4,), (1.3,), (2,)), ((2.3, -1.5), (1.5, 0.7), (0.85, 0.15))])
def test_a_mixture_is_a_mixture(parts):
    density, (means, stds, shares) = LogNormalMixture(*parts), (np.array(values, dtype=float) for values in parts)
    u = torch.cat([torch.logspace(-12, -0.31, 60, dtype=f64), 1 - torch.logspace(-12, -0.31, 60, dtype=f64)])
    x = -density.quantile(u, EDM()).numpy()[:, None]
    of = shares / shares.sum()
    below, above = ((of * ndtr(side * (x - means) / stds)).sum(1) for side in (1, -1))
    assert np.abs(below[:60] / u[:60].numpy() - 1).max() < 1e-7
    assert (
        np.abs(above[60:] / (1 - u[60:]).numpy() - 1)[:-20].max() < 1e-7
    )  # nearer to 1 the share itself has no digits
    if len(means) == 1:
        assert (density.quantile(u, EDM()) - LogNormal(0.4, 1.3).quantile(u, EDM())).abs().max() < 1e-9


def test_no_density_loses_its_ends():
    u = torch.tensor([1e-13, 1e-9, 1 - 1e-9, 1 - 1e-13], dtype=f64)
    for density in [*DENSITIES, LogStudent(0.0, 0.2, 0.01)]:
        lam = density.quantile(u, VPCosine())
        assert not lam.isnan().any() and (lam.diff() <= 0).all(), density
    exact = math.log(2 / (math.pi * 1e-13))
    assert CosMap().quantile(u[:1], EDM()).item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("density", DENSITIES, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_log_prob_is_the_density_of_the_quantiles(density, schedule):
    """d lam / d u = 1 / p(lam), up to sign."""
    u, h = torch.linspace(0.02, 0.98, 25, dtype=f64), 1e-6
    slope = (density.quantile(u + h, schedule) - density.quantile(u - h, schedule)) / (2 * h)
    lam = density.quantile(u, schedule)
    assert (slope < 0).all()
    assert (slope.abs().log() + density.log_prob(lam, schedule)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "density",
    [LogNormal(), LogitNormal(), UniformTime(), PowerTime(3.0), UniformLogSNR(-1, 2), CosMap(), Mode(), Mode(-0.9)],
    ids=str,
)
def test_density_integrates_to_one(density):
    schedule = EDM()
    low, high = (
        (float(schedule.lam(t)) for t in (1.0, 0.0)) if isinstance(density, UniformTime | PowerTime) else (-40.0, 40.0)
    )
    low, high = (density.low, density.high) if isinstance(density, UniformLogSNR) else (low, high)
    total = integral(lambda lam: density.log_prob(lam, schedule).exp(), low + 1e-9, high - 1e-9)
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
@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
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


class Zero(nn.Module):
    """Predicts nothing, for any fields."""

    def forward(self, x, noise, cond):
        return {name: torch.zeros_like(leaf) for name, leaf in x.items()}


FIELDS = {"a": Gaussian(EDM()), "b": Gaussian(VE())}


def two_fields(**options):
    """Return the loss of two fields whose network predicts zeros."""
    objective = Objective(EDMWeight({"a": 0.5, "b": 2.0}), LogNormal(), EDMPrecond({"a": 0.5, "b": 2.0}), **options)
    generator = torch.Generator().manual_seed(3)
    x0 = {"a": torch.randn(16, 3, generator=generator), "b": torch.randn(16, 5, generator=generator)}
    denoiser = Preconditioned(Zero(), FIELDS, objective.parameterization)
    return objective(denoiser, x0, None, KeyedNoise(torch.arange(16)), 0)


def test_field_weights_multiply_the_fields():
    a, b, both = (
        two_fields(field_weights=w).per_sample for w in ({"a": 1.0, "b": 0}, {"a": 0.0}, {"a": 0.3, "b": 2.5})
    )
    assert (0.3 * a + 2.5 * b - both).abs().max() < 1e-5
    assert (two_fields().per_sample - a - b).abs().max() < 1e-5
    assert torch.equal(two_fields(field_weights={}).per_sample, two_fields().per_sample)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"pos": 1.0}, "field_weights.pos: no such field; fields: a, b"),
        ({"a": {"x": 1.0}}, "a has no fields of its own"), ({"a": 0, "b": 0}, "every field has the weight 0"),
    ],
)  # fmt: skip
def test_field_weights_that_fit_no_field_are_one_line(weights, text):
    with pytest.raises(ConfigError, match=text) as caught:
        two_fields(field_weights=weights)
    assert "\n" not in str(caught.value)


def test_a_field_weight_without_fields_is_refused():
    objective = Objective(UniformWeight(), UniformTime(), X0(1.0), field_weights={"a": 1.0})
    with pytest.raises(ConfigError, match="the state has no named fields"):
        objective(
            Preconditioned(Network(), Gaussian(EDM()), X0(1.0)), torch.zeros(2, 3), None, KeyedNoise(torch.arange(2))
        )


class Known(nn.Module):
    """A network for X0 whose error is known: 2 everywhere, so the error of x0 is 4."""

    def forward(self, x, noise, cond):
        return torch.full_like(x, 2.0)


@pytest.mark.parametrize(
    "density", [UniformLogSNR(-6.0, 6.0), LogNormal(0.5, 2.0), CosMap(), LogStudent(0, 1, 2)], ids=str
)
def test_with_importance_the_density_does_not_change_the_objective(density):
    """E[w / p l] is int w l d lam for every p that covers it: stratified draws against quadrature."""
    weight, rows = SoftMinSNR(1.0), 4096
    # A weight with tails on both sides: snr / (snr + 1) times the made-up uniform part of a Gaussian bump.
    bump = type("Bump", (UniformWeight,), {"__call__": lambda self, lam: weight(lam) * torch.exp(-(lam**2))})()
    objective = Objective(bump, density, X0(1.0), importance=True)
    denoiser = Preconditioned(Known(), Gaussian(EDM(1e-7, 1e7)), X0(1.0))
    found = objective(denoiser, torch.zeros(rows, 3), None, KeyedNoise(torch.arange(rows)), 0)
    assert found.total.item() == pytest.approx(integral(lambda lam: 4 * bump(lam)), rel=2e-3)


def test_a_learned_weight_makes_every_level_count_the_same():
    """At its minimum u(lam) = log of the weighted error there, so the loss is 1 + u."""
    objective = Objective(SoftMinSNR(1.0), UniformLogSNR(-3, 3), X0(1.0), uncertainty=Uncertainty())
    u = objective.uncertainty
    denoiser = Preconditioned(Known(), Gaussian(EDM(1e-3, 1e3)), X0(1.0))

    def batch(step):
        return objective(denoiser, torch.zeros(256, 3), None, KeyedNoise(torch.arange(256)), step)

    first = batch(0)
    assert first.per_sample.tolist() == pytest.approx((4 * SoftMinSNR(1.0)(first.lam)).tolist(), rel=1e-5)
    optimizer = torch.optim.Adam(u.parameters(), lr=0.02)
    for step in range(400):
        optimizer.zero_grad()
        batch(step).total.backward()
        optimizer.step()
    last = batch(1000)
    wanted = (4 * SoftMinSNR(1.0)(last.lam)).log()
    assert (u(last.lam)[0] - wanted).abs().max() < 0.05
    assert last.total.item() == pytest.approx(1 + wanted.mean().item(), abs=2e-3)
    u.eval()
    assert batch(1000).per_sample.tolist() == pytest.approx(wanted.exp().tolist(), rel=1e-5)


def test_a_learned_weight_has_one_curve_per_field():
    u = Uncertainty(8, fields=2)
    with torch.no_grad():
        u.leave.bias.copy_(torch.tensor([0.7, -0.4]))
    a, b = (two_fields(field_weights=w).per_sample for w in ({"b": 0}, {"a": 0}))
    wanted = 3 * (a * math.exp(-0.7) + 0.7) + (b * math.exp(0.4) - 0.4)
    assert (two_fields(uncertainty=u, field_weights={"a": 3}).per_sample - wanted).abs().max() < 1e-4
    with pytest.raises(ConfigError, match="fields=1, but the state has 2 fields"):
        two_fields(uncertainty=Uncertainty(8, fields=1))


class Echo(nn.Module):
    """Returns what it is given as its previous estimate plus one, and counts."""

    self_condition = True

    def __init__(self):
        super().__init__()
        self.seen, self.levels = [], []
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, noise, cond, previous):
        self.seen.append(previous.clone())
        self.levels.append(noise[0].item())
        return previous + 1 + self.weight


def test_self_conditioning_in_training():
    """Half of the steps see the network's own estimate, without a gradient to it; the others, and the first pass, 0."""
    network, objective = Echo(), Objective(UniformWeight(), UniformTime(), X0(0.5))
    denoiser = Preconditioned(network, Gaussian(EDM()), X0(0.5))
    looked = 0
    for step in range(200):
        network.seen.clear()
        network.weight.grad = None
        found = objective(denoiser, torch.zeros(2, 3), None, KeyedNoise(torch.arange(2)), step)
        found.total.backward()
        assert (network.seen[0] == 0).all()
        if len(network.seen) == 2:
            looked += 1
            # The first estimate is 1, given back over sigma_data: 2; the output is 3, and only it has a gradient.
            assert (network.seen[1] == 2).all() and found.total.item() == pytest.approx(9.0)
            assert network.weight.grad.item() == pytest.approx(6.0)
        else:
            assert found.total.item() == pytest.approx(1.0) and network.weight.grad.item() == pytest.approx(2.0)
    assert 80 <= looked <= 120
    never = Objective(UniformWeight(), UniformTime(), X0(0.5), self_condition=0.0)
    network.seen.clear()
    for step in range(20):
        never(denoiser, torch.zeros(2, 3), None, KeyedNoise(torch.arange(2)), step)
    assert len(network.seen) == 20
    denoiser.eval()
    never(denoiser, torch.zeros(2, 3), None, KeyedNoise(torch.arange(2)), 0)
    assert len(network.seen) == 22


def test_self_conditioning_keeps_the_gradient_under_autocast():
    """A cast of a weight cached by the pass without a gradient would cut it off in the second."""

    class Linear(nn.Module):
        self_condition = True

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, noise, cond, previous):
            return self.layer(torch.cat([x, previous], 1))

    objective = Objective(UniformWeight(), UniformTime(), X0(1.0), self_condition=1.0)
    network = Linear()
    denoiser = Preconditioned(network, Gaussian(EDM()), X0(1.0))
    with torch.autocast("cpu", torch.bfloat16):
        objective(denoiser, torch.ones(4, 3), None, KeyedNoise(torch.arange(4))).total.backward()
    assert network.layer.weight.grad is not None and network.layer.weight.grad.abs().max() > 0


def test_self_conditioning_in_sampling_remembers_until_time_rises():
    network = Echo()
    plain = Preconditioned(network, Gaussian(EDM()), X0(1.0))
    denoiser = SelfConditioned(plain)
    x = torch.zeros(4, 3)
    assert [denoiser(x, t).x0[0, 0].item() for t in (0.9, 0.5, 0.5, 0.1)] == [1, 2, 2, 3]
    assert denoiser(x, 0.9).x0[0, 0].item() == 1  # another draw
    denoiser.reset()
    assert denoiser(x, 0.2).x0[0, 0].item() == 1
    assert plain(x, 0.1).x0[0, 0].item() == 1  # without the wrapper there is no memory
    # Rows of their own times.
    denoiser.reset()
    denoiser(x, torch.full((4,), 0.5))
    assert denoiser(x, torch.tensor([0.4, 0.6, 0.5, 0.1])).x0[:, 0].tolist() == [2, 1, 1, 2]
    assert denoiser(x, 0.0).x0[:, 0].tolist() == [3, 2, 2, 3]
    assert denoiser(x, torch.tensor(0.0)).x0[:, 0].tolist() == [3, 2, 2, 3]
    # One step per draw: the same time again is no progress either.
    denoiser.reset()
    assert [denoiser(x, 1.0).x0[0, 0].item() for _ in range(3)] == [1, 1, 1]


def test_self_conditioning_keeps_the_first_of_several_calls_at_a_time():
    """A perturbed branch of guidance asks at the same time with another network; it must not be remembered."""
    network = Echo()
    denoiser = SelfConditioned(Preconditioned(network, Gaussian(EDM()), X0(1.0)))
    x = torch.zeros(2, 3)
    denoiser(x, 0.9)
    denoiser(x, 0.5)
    with torch.no_grad():
        network.weight.fill_(100.0)
        denoiser(x, 0.5)
        network.weight.fill_(0.0)
    assert (network.seen[1] == network.seen[2]).all()
    assert denoiser(x, 0.1).x0[0, 0].item() == 3


def test_self_conditioning_goes_on_when_guidance_sets_in_or_ends():
    denoiser = SelfConditioned(Preconditioned(Echo(), Gaussian(EDM()), X0(1.0)))
    given = torch.arange(2.0)[:, None].expand(2, 3)
    denoiser(given, 0.9)
    denoiser(given, 0.8)
    assert denoiser(torch.cat([given, given]), 0.7).x0[:, 0].tolist() == [3, 3, 3, 3]
    denoiser(torch.cat([given, given]), 0.6)
    assert denoiser(given, 0.5).x0[:, 0].tolist() == [5, 5]
    assert denoiser(torch.zeros(3, 3), 0.4).x0[:, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("sampler", [Euler(6), Heun(6), Ancestral(6), Multistep(6)], ids=lambda s: type(s).__name__)
def test_samplers_need_no_change_for_self_conditioning(sampler):
    """Every call gets the first estimate of the last higher level: here their number."""
    network = Echo()
    denoiser = SelfConditioned(Preconditioned(network, Gaussian(EDM()), X0(1.0)))
    like = torch.empty(2, 3)
    sample(denoiser, denoiser.process, sampler, Karras()(EDM(), 6), KeyedNoise(torch.arange(2)), like)
    levels = sorted(set(network.levels))
    assert [previous[0, 0].item() for previous in network.seen] == [levels.index(level) for level in network.levels]
    assert len(levels) >= 6


@pytest.mark.parametrize(
    "build",
    [
        lambda: UNet((2, 8, 8), width=8, self_condition=True),
        lambda: DiT((2, 8, 8), width=32, depth=1, heads=2, self_condition=True),
    ],
    ids=["unet", "dit"],
)
def test_networks_see_the_previous_estimate(build):
    torch.manual_seed(0)
    network = build()
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    x, previous = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8, 8)
    level = torch.zeros(2)
    assert torch.equal(network(x, level), network(x, level, None, torch.zeros_like(x)))
    assert (network(x, level) - network(x, level, None, previous)).abs().max() > 1e-3
    denoiser = Preconditioned(network, Gaussian(EDM()), EDMPrecond(0.5))
    assert denoiser.self_condition and denoiser(x, 0.5, None, previous).x0.shape == x.shape


CONF = Path(__file__).parents[1] / "conf" / "objective"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "autoencoder"))
def test_every_option_names_all_arguments_and_trains(name):
    text = (CONF / f"{name}.yaml").read_text()
    node = yaml.safe_load(text)
    assert text.startswith("# ") and set(node) - {"_target_"} == {f.name for f in fields(Objective)}
    objective = build(_fill(node, Facts((3,), (), (), 0.7)), "objective")
    denoiser = Preconditioned(Network(), Gaussian(VPCosine()), objective.parameterization)
    x0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    found = objective(denoiser, x0, None, KeyedNoise(torch.arange(64)))
    found.total.backward()
    assert torch.isfinite(found.per_sample).all() and torch.isfinite(denoiser.network.weight.grad).all()


def test_a_run_with_everything_learned_is_saved_resumed_and_sampled(local, tiny, tmp_path):
    """A learned weight, self-conditioning, transport: a continued run is the whole one bit for bit, and sampling does
    not see the learned weight."""
    words = [*tiny, "objective=edm2", "model.self_condition=true", "objective.coupling=ot", "every.preview=0"]
    assert local("train", *words, "name=whole").returncode == 0
    assert local("train", *words, "name=part").returncode == 0
    whole, part = (tmp_path / "outputs" / "image" / name / "checkpoints" for name in ("whole", "part"))
    (part / "step-000006.ckpt").unlink()
    checkpoint.link(part / "step-000002.ckpt", part / "last.ckpt")
    assert local("train", *words, "name=part", "ckpt=auto").returncode == 0
    a, b = checkpoint.read(whole / "last.ckpt"), checkpoint.read(part / "last.ckpt")
    key = "model.uncertainty.leave.bias"
    assert a["current_model_state"][key].abs().max() > 0
    for kind in ("state_dict", "current_model_state"):
        assert all(torch.equal(a[kind][name], b[kind][name]) for name in a[kind]) and a[kind].keys() == b[kind].keys()
    a["state_dict"][key] = a["state_dict"][key] + 7
    checkpoint.write(a, tmp_path / "moved.ckpt")
    model, moved = Model.load(b), Model.load(a)
    seeds = torch.arange(2)
    recipe = Recipe.build(a["suffuse"]["config"])
    first, again, other = (m.draw(recipe, seeds, m.conditioner.parse({}, 2)) for m in (model, model, moved))
    assert torch.equal(first, again) and torch.equal(first, other)
    assert not any("uncertainty" in name for name, _ in model.denoiser.named_parameters())


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: EDMWeight(0.0), "sigma_data=0.0"), (lambda: EDMWeight(None), "sigma_data=None"),
        (lambda: MinSNR(-1.0), "gamma=-1.0"), (lambda: LogNormal(std=0.0), "std=0.0"),
        (lambda: SoftMinSNR(0.0), "gamma=0.0"), (lambda: P2(k=0.0), "k=0.0"), (lambda: P2(gamma=-1.0), "gamma=-1.0"),
        (lambda: SigmoidWeight(math.inf), "bias=inf"), (lambda: ModeWeight(2.0), "weight.scale=2.0"),
        (lambda: Mode(-1.5), "density.scale=-1.5"), (lambda: UniformLogSNR(1.0, 1.0), "1.0 and 1.0"),
        (lambda: UniformLogSNR(-math.inf, 1.0), "both finite"), (lambda: LogStudent(std=-1.0), "std=-1.0"),
        (lambda: LogStudent(df=0.0), "df=0.0"), (lambda: EDMWeight(most=0.0), "most=0.0"),
        (lambda: LogNormalMixture((1,)), "as many means"), (lambda: LogNormalMixture((), (), ()), "one at least"),
        (lambda: LogNormalMixture((1,), (0,), (1,)), "stds=0"),
        (lambda: LogNormalMixture((1,), (1,), (-1,)), "shares=-1"),
        (lambda: Uncertainty(width=3), "width=3"),
        (lambda: Uncertainty(fields=0), "fields=0"), (lambda: Objective(self_condition=1.5), "self_condition=1.5"),
        (lambda: Objective(coupling="sinkhorn"), "coupling=sinkhorn: no such coupling"),
        (lambda: Objective(field_weights={"a": -1.0}), "-1.0 must be a number"),
        (lambda: Objective(field_weights={"a": None}), "None must be a number"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
