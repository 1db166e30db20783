"""Likelihood: closed forms, the estimate's law, subspaces, and fields on schedules of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.integrate import solve_ivp
from suffuse import targets
from suffuse.denoiser import EDMPrecond, Exact, Preconditioned, Prediction
from suffuse.errors import ConfigError
from suffuse.integrate import Point, adaptive, fixed
from suffuse.likelihood import Likelihood
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian, Process
from suffuse.schedule import EDM, VE, RectifiedFlow, VPCosine, VPLinear
from suffuse.state import Dense
from torch import nn

f64 = torch.float64
ONE = torch.tensor(1.0, dtype=f64)
SCHEDULES = [VPLinear(0.1, 30.0), VPCosine(), VE(0.002, 3000.0), RectifiedFlow()]
SHARP = Likelihood(rtol=1e-7, atol=1e-7, prior="data")


def normal(dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, variance = (
        torch.randn(dim, generator=generator, dtype=f64),
        0.3 + torch.rand(dim, generator=generator, dtype=f64),
    )
    return targets.Gaussian(mean, variance)


def mixture(dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(5, dim, generator=generator, dtype=f64)
    return targets.GaussianMixture(means, torch.full((5,), 0.05, dtype=f64), torch.full((5,), 0.2, dtype=f64))


def points(target, rows=16):
    if isinstance(target, targets.GaussianMixture):
        return target.sample(1, rows)
    generator = torch.Generator().manual_seed(1)
    return target.mean + target.variance.sqrt() * torch.randn(rows, len(target.mean), generator=generator, dtype=f64)


def noise_of(schedule):
    """Return sigma / alpha where the integration of this schedule starts."""
    return torch.tensor(math.exp(-min(float(schedule.lam(0.0)), 8.0)), dtype=f64)


@pytest.mark.parametrize("target", [normal(), mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_exact_trace_gives_the_density(schedule, target):
    """log p of the data with the noise of the first level."""
    x = points(target)
    found = SHARP(Exact(Gaussian(schedule), target.posterior_mean), x)
    assert (found.nats - target.log_prob(x, ONE, noise_of(schedule))).abs().max() < 1e-4
    assert found.dof.tolist() == [x.shape[1]] * 16
    assert found.bits_per_dim.tolist() == pytest.approx((-found.nats / (x.shape[1] * math.log(2))).tolist())


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), RectifiedFlow()], ids=str)
def test_the_default_prior_gives_the_density_of_the_samples(schedule):
    """The flow of a Gaussian is affine, so what it makes of N(0, sigma^2) is a Gaussian in closed form."""
    target = normal()
    x = points(target)
    found = Likelihood(rtol=1e-8, atol=1e-8)(Exact(Gaussian(schedule), target.posterior_mean), x)
    high, low = min(float(schedule.lam(0.0)), 8.0), max(float(schedule.lam(1.0)), -8.0)
    start, end = torch.tensor([math.exp(-low), math.exp(-high)], dtype=f64)
    stretch = ((target.variance + end**2) / (target.variance + start**2)).sqrt()
    made = torch.distributions.Normal(target.mean * (1 - stretch), stretch * start)
    assert (found.nats - made.log_prob(x).sum(1)).abs().max() < 1e-6
    # And the latent is where the flow leads, in the frame alpha = 1.
    latent = target.flow(x, (ONE, end), (ONE, start))
    assert (found.latent / latent - 1).abs().max() < 1e-6


def test_equal_steps_are_of_fifth_order():
    target, schedule = mixture(), RectifiedFlow()
    x, denoiser = points(target), Exact(Gaussian(schedule), target.posterior_mean)
    exact = Likelihood(rtol=1e-10, atol=1e-10)(denoiser, x).nats
    errors = [(Likelihood(steps=n)(denoiser, x).nats - exact).abs().max().item() for n in (80, 160)]
    assert errors[1] < 1e-5 and math.log2(errors[0] / errors[1]) > 4.5
    assert Likelihood(steps=20)(denoiser, x).evaluations == 120


@pytest.mark.parametrize("probe", ["rademacher", "normal"])
def test_hutchinson_is_unbiased(probe):
    """One probe per row and many rows of the same point: within three standard errors, and not by luck of no spread."""
    target, schedule = mixture(), VPCosine()
    denoiser = Exact(Gaussian(schedule), target.posterior_mean)
    x = points(target, 2)[1:]
    exact = Likelihood(steps=60)(denoiser, x).nats.item()
    rows = 1500
    one = Likelihood(probes=1, probe=probe, steps=60)
    found = one(denoiser, x.expand(rows, -1), noise=KeyedNoise(torch.arange(rows))).nats
    error = found.std().item() / math.sqrt(rows)
    assert abs(found.mean().item() - exact) < 3 * error and 0.01 < found.std().item() < 5
    four = Likelihood(probes=4, probe=probe, steps=60)
    found4 = four(denoiser, x.expand(400, -1), noise=KeyedNoise(torch.arange(400))).nats
    assert found4.std().item() == pytest.approx(found.std().item() / 2, rel=0.2)


def test_a_row_does_not_depend_on_its_batch():
    target = mixture()
    denoiser, x = Exact(Gaussian(EDM()), target.posterior_mean), points(target, 6)
    how = Likelihood(probes=2, steps=8)
    whole = how(denoiser, x, noise=KeyedNoise(torch.arange(6))).nats
    part = how(denoiser, x[3:5], noise=KeyedNoise(torch.arange(3, 5))).nats
    assert (whole[3:5] - part).abs().max() < 1e-10


@dataclass(frozen=True)
class Centred(Dense):
    """Clouds (B, N, 3) with their mean at zero."""

    def project(self, x):
        return x - x.mean(1, keepdim=True)

    def dof(self, like):
        return torch.full((like.shape[0],), 3.0 * (like.shape[1] - 1))


@pytest.mark.parametrize("schedule", [VPCosine(), VE(0.002, 3000.0)], ids=str)
def test_a_subspace_has_fewer_degrees_of_freedom(schedule):
    """A cloud of n nodes without a centre: the density on the 3 (n - 1) coordinates of an orthonormal basis."""
    c, nodes = 0.4, 5
    process = Gaussian(schedule, Centred())
    generator = torch.Generator().manual_seed(0)
    x = process.space.project(math.sqrt(c) * torch.randn(8, nodes, 3, generator=generator, dtype=f64))
    # Off the space the denoiser may say what it likes: it must not count.
    denoiser = Exact(process, lambda y, alpha, sigma: alpha * c / (alpha**2 * c + sigma**2) * y + 0.7 * y.mean(1, True))
    total = c + noise_of(schedule) ** 2
    wanted = -0.5 * (x.flatten(1).square().sum(1) / total + 3 * (nodes - 1) * math.log(2 * math.pi * total))
    assert (SHARP(denoiser, x).nats - wanted).abs().max() < 1e-4
    assert SHARP(denoiser, x).dof.tolist() == [12.0] * 8
    rows = 600
    estimate = Likelihood(probes=1, steps=40, prior="data")(
        denoiser, x[:1].expand(rows, -1, -1), noise=KeyedNoise(torch.arange(rows))
    ).nats
    assert abs(estimate.mean() - wanted[0]) < 3 * estimate.std() / math.sqrt(rows) + 1e-4


class Fields(Exact):
    """Independent fields, each with its own exact denoiser."""

    def __init__(self, parts):
        super().__init__({name: part.process for name, part in parts.items()}, None)
        self.parts = nn.ModuleDict(parts)

    def forward(self, x, t, cond=None):
        return Prediction({name: self.parts[name](x[name], t).x0 for name in self.parts})


def test_fields_on_schedules_of_their_own_add_up():
    a, b = mixture(), normal(3)
    parts = {
        "a": Exact(Gaussian(VE(0.002, 3000.0)), a.posterior_mean),
        "b": Exact(Gaussian(EDM(0.001, 2000.0)), b.posterior_mean),
    }
    x = {"a": points(a), "b": points(b)}
    found = SHARP(Fields(parts), x)
    wanted = a.log_prob(x["a"], ONE, 0.002 * ONE) + b.log_prob(x["b"], ONE, 0.001 * ONE)
    assert (found.nats - wanted).abs().max() < 1e-4 and found.dof.tolist() == [7.0] * 16
    rows = 400
    many = {name: leaf[:1].expand(rows, -1) for name, leaf in x.items()}
    estimate = Likelihood(probes=1, steps=60, prior="data")(Fields(parts), many, noise=KeyedNoise(torch.arange(rows)))
    error = estimate.nats.std() / math.sqrt(rows)
    assert abs(estimate.nats.mean() - wanted[0]) < 3 * error + 1e-3


class Linear(nn.Module):
    """A network with a condition, so that the density depends on it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, noise, cond):
        return torch.tanh(self.layer(x + cond["vector"])) * noise[:, None].cos()


def test_a_network_changes_volume_as_its_flow_does():
    """The density of the latent times the determinant of the flow's Jacobian, by central differences; the call is in
    inference mode, as a sampling job's is."""
    torch.manual_seed(0)
    denoiser = Preconditioned(Linear(), Gaussian(VE(0.05, 20.0)), EDMPrecond(0.7)).double()
    x = torch.randn(1, 4, dtype=f64)
    how = Likelihood(steps=100)
    with torch.inference_mode():
        cond = {"vector": torch.full((1, 4), 0.3, dtype=f64)}
        found = how(denoiser, x, cond)
    cond = {"vector": torch.full((1, 4), 0.3, dtype=f64)}
    h = 1e-5
    columns = []
    for i in range(4):
        shift = torch.zeros(1, 4, dtype=f64)
        shift[0, i] = h
        ends = [how(denoiser, x + sign * shift, cond).latent for sign in (1, -1)]
        columns.append((ends[0] - ends[1])[0] / (2 * h))
    volume = torch.linalg.slogdet(torch.stack(columns)).logabsdet
    prior = torch.distributions.Normal(0.0, 20.0).log_prob(found.latent).sum()
    assert found.nats.item() == pytest.approx((prior + volume).item(), abs=1e-5)
    assert denoiser.network.layer.weight.grad is None
    single = denoiser.float()
    cond = {"vector": torch.full((1, 4), 0.3)}
    assert Likelihood(steps=60)(single, x.float(), cond).nats.item() == pytest.approx(found.nats.item(), abs=1e-3)


def test_integration_agrees_with_scipy():
    """A pendulum and the integral of its energy's kinetic part."""

    def slope(t, z):
        q, p = z.unbind(1)
        return Point(torch.stack([p, -q.sin() + 0.1 * math.cos(t)], 1), p**2)

    start = Point(torch.tensor([[1.0, 0.2], [0.1, -1.0]], dtype=f64), torch.zeros(2, dtype=f64))
    for row in range(2):
        wanted = solve_ivp(
            lambda t, y: [y[1], -math.sin(y[0]) + 0.1 * math.cos(t), y[1] ** 2], (3.0, -2.0),
            [*start.z[row].tolist(), 0.0], rtol=1e-11, atol=1e-11,
        ).y[:, -1]  # fmt: skip
        for found in (adaptive(slope, start, 3.0, -2.0, 1e-9, 1e-9, 1000), fixed(slope, start, 3.0, -2.0, 200)):
            assert [*found.z[row].tolist(), found.change[row].item()] == pytest.approx(wanted.tolist(), abs=1e-7)
    assert adaptive(slope, start, 0.0, 5.0, 1e-9, 1e-9, 3) is None


class Jump(Process):
    """A process without a flow."""

    draw = prior = corrupt = transition = None


Jump.__abstractmethods__ = frozenset()


def density(how, process=None, shape=(2, 3)):
    target = normal(3)
    return how(Exact(process or Gaussian(EDM()), target.posterior_mean), torch.zeros(*shape, dtype=f64))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Likelihood(probes=-1), "probes=-1"), (lambda: Likelihood(steps=1.5), "steps=1.5"),
        (lambda: Likelihood(rtol=0.0), "rtol=0.0"), (lambda: Likelihood(probe="sobol"), "probe=sobol"),
        (lambda: Likelihood(prior="uniform"), "prior=uniform"), (lambda: Likelihood(sigma_data=0.0), "sigma_data=0.0"),
        (lambda: Likelihood(low=-math.inf), "must be finite"),
        (lambda: density(Likelihood(low=2.0, high=1.0)), "need low < high"),
        (lambda: density(Likelihood(high=9.0)), "outside the schedule"),
        (lambda: density(Likelihood(probes=1)), "probes needs noise"),
        (lambda: density(Likelihood(), shape=(1, 5000)), "each of the 5000 entries"),
        (lambda: density(Likelihood(limit=2)), "limit=2 steps do not reach"),
        (lambda: density(Likelihood(), Jump(EDM())), "a field of Jump has no flow"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
