"""Denoisers: the table of parameterisations, one oracle behind all of them, and the network's contract."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from suffuse.denoiser import (
    X0,
    Carried,
    EDMPrecond,
    Eps,
    Exact,
    Flow,
    Preconditioned,
    Score,
    V,
    carried,
    eps_of,
    flow_of,
    score_of,
    v_of,
)  # fmt: skip
from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian as Process
from suffuse.sampler import Multistep, sample
from suffuse.schedule import EDM, VE, AlphaSigma, RectifiedFlow, VPCosine, VPLinear
from suffuse.state import Dense
from suffuse.targets import Gaussian, GaussianMixture
from torch import nn

f64 = torch.float64
D = 0.7
ALL = [X0(D), Eps(D), V(D), Flow(D), Score(D), EDMPrecond(D)]
SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), RectifiedFlow()]
LEVELS = [(a, s) for a in (0.05, 0.6, 1.0) for s in (0.003, 0.8, 40.0)]


def table(what, a, s, d):
    root = math.sqrt(s * s + a * a * d * d)
    return {
        "X0": (0, 1), "Eps": (1 / a, -s / a), "V": (a / (a * a + s * s), -s / (a * a + s * s)),
        "Flow": (1 / (a + s), -s / (a + s)), "Score": (1 / a, s * s / a),
        "EDMPrecond": (a * d * d / root**2, s * d / root),
    }[type(what).__name__]  # fmt: skip


@pytest.mark.parametrize("what", ALL, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize(("a", "s"), LEVELS)
def test_table_and_target(what, a, s):
    alpha, sigma = torch.tensor(a, dtype=f64), torch.tensor(s, dtype=f64)
    affine = what.affine(alpha, sigma)
    assert [float(affine.skip), float(affine.out)] == pytest.approx(table(what, a, s, D), rel=1e-12)
    assert float(affine.inp) == pytest.approx((a * a * D * D + s * s) ** -0.5, rel=1e-12)
    assert float(affine.noise) == pytest.approx(max(-15, min(15, math.log(a / s))) / 4, rel=1e-12)
    x0, eps = torch.randn(50, dtype=f64), torch.randn(50, dtype=f64)
    back = affine.skip * (alpha * x0 + sigma * eps) + affine.out * what.target(x0, eps, alpha, sigma)
    scale = max(1.0, float((affine.skip * sigma).abs()))
    assert (back - x0).abs().max() < 1e-12 * scale


def test_targets_are_what_they_are_called():
    at = AlphaSigma(torch.tensor(0.6, dtype=f64), torch.tensor(0.8, dtype=f64))
    x0, eps = torch.randn(9, dtype=f64), torch.randn(9, dtype=f64)
    x = at.alpha * x0 + at.sigma * eps
    for what, of in ((Eps(), eps_of), (V(), v_of), (Flow(), flow_of), (Score(), score_of)):
        assert (what.target(x0, eps, *at) - of(x, x0, at)).abs().max() < 1e-14


@pytest.mark.parametrize("a", [1.0, 0.6])
def test_edm_inputs_and_targets_have_unit_variance(a):
    for s in (0.002, 0.5, 80.0):
        what, alpha, sigma = EDMPrecond(D), torch.tensor(a, dtype=f64), torch.tensor(s, dtype=f64)
        p, q = what.target_weights(alpha, sigma)
        assert float(p**2 * D * D + q**2) == pytest.approx(1, rel=1e-12)
        assert float(what.affine(alpha, sigma).inp ** 2 * (a * a * D * D + s * s)) == pytest.approx(1, rel=1e-12)


class Oracle(nn.Module):
    """A network that outputs what its parameterisation should, from the exact posterior mean."""

    def __init__(self, what, process, target):
        super().__init__()
        self.what, self.process, self.target, self.t = what, process, target, None

    def forward(self, x, noise, cond):
        at = self.process.schedule(self.t)
        x = x / self.what.affine(*at).inp
        x0 = self.target.posterior_mean(x, *at)
        p, q = self.what.target_weights(*at)
        return p * x0 + q * eps_of(x, x0, at)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_parameterisation_of_one_oracle_agrees(schedule):
    target = GaussianMixture(
        torch.randn(4, 3, dtype=f64), torch.full((4,), 0.2, dtype=f64), torch.full((4,), 0.25, dtype=f64)
    )
    process = Process(schedule)
    for t in (0.05, 0.4, 0.97):
        alpha, sigma = schedule(t)
        x = alpha * target.sample(0, 8) + sigma * torch.randn(8, 3, dtype=f64)
        exact = Exact(process, target.posterior_mean)(x, t).x0
        for what in ALL:
            network = Oracle(what, process, target)
            network.t = t
            found = Preconditioned(network, process, what)(x, t).x0
            assert (found - exact).abs().max() < 1e-10 * max(1.0, float(sigma / alpha))


def test_gaussian_target_is_consistent():
    target = Gaussian(torch.tensor([0.3, -1.0], dtype=f64), torch.tensor([0.5, 2.0], dtype=f64))
    x, at = torch.randn(6, 2, dtype=f64, requires_grad=True), VPLinear()(0.4)
    (score,) = torch.autograd.grad(target.log_prob(x, *at).sum(), x)
    assert (score - score_of(x, target.posterior_mean(x, *at), at)).abs().max() < 1e-12
    mixture = GaussianMixture(
        torch.randn(5, 2, dtype=f64), torch.rand(5, dtype=f64) + 0.1, torch.full((5,), 0.2, dtype=f64)
    )
    (score,) = torch.autograd.grad(mixture.log_prob(x, *at).sum(), x)
    assert (score - score_of(x, mixture.posterior_mean(x, *at), at)).abs().max() < 1e-12


class Recorder(nn.Module):
    def forward(self, x, noise, cond):
        self.x, self.noise, self.cond = x, noise, cond
        return torch.ones_like(x).to(torch.bfloat16)


def test_network_contract():
    network = Recorder()
    denoiser = Preconditioned(network, Process(EDM(), Dense((2,))), EDMPrecond(0.5))
    x = torch.randn(3, 2, 4) * 5
    cond = {"vector": torch.zeros(3, 8)}
    by_float = denoiser(x, 0.6, cond).x0
    assert network.noise.shape == (3,) and network.noise.dtype == torch.float32 and network.cond is cond
    assert network.noise[0].item() == pytest.approx(float(EDM().lam(0.6)) / 4, rel=1e-6)
    assert by_float.dtype == torch.float32
    by_row = denoiser(x, torch.full((3,), 0.6)).x0
    assert network.noise.shape == (3,)
    by_scalar = denoiser(x, torch.tensor(0.6, dtype=f64)).x0
    by_token = denoiser(x, torch.full((3, 4), 0.6, dtype=f64)).x0
    assert network.noise.shape == (3, 4)
    for other in (by_row, by_scalar, by_token):
        assert (other - by_float).abs().max() < 1e-5 * by_float.abs().max()
    assert network.x.std() < 5


@pytest.mark.parametrize("what", [V(D), Flow(D), EDMPrecond(D), X0(D)], ids=lambda w: type(w).__name__)
def test_residual_is_the_error_of_x0(what):
    process = Process(VPCosine())
    linear = nn.Linear(3, 3).double()
    denoiser = Preconditioned(_Plain(linear), process, what)
    x0, eps, t = torch.randn(5, 3, dtype=f64), torch.randn(5, 3, dtype=f64), torch.rand(5, dtype=f64)
    away, out = denoiser.residual(x0, eps, t)
    error = denoiser(process.corrupt(x0, t, eps), t).x0 - x0
    assert (out[:, None] * away - error).abs().max() < 1e-10
    away, out = denoiser.residual(x0, eps, torch.ones(5, dtype=f64))
    assert torch.isfinite(away).all() and torch.isfinite(out).all()


class _Plain(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, noise, cond):
        return self.inner(x)


def test_composite_state_calls_the_network_once():
    class Pair(nn.Module):
        calls = 0

        def forward(self, x, noise, cond):
            self.calls += 1
            return {"a": x["a"] * 0 + 1, "b": x["b"] * 0 + 2}

    network, process = Pair(), {"a": Process(EDM()), "b": Process(RectifiedFlow())}
    denoiser = Preconditioned(network, process, EDMPrecond({"a": 0.5, "b": 2.0}))
    x = {"a": torch.randn(2, 3, dtype=f64), "b": torch.randn(2, 4, dtype=f64)}
    found = denoiser(x, 0.3).x0
    assert network.calls == 1
    for name, d, f in (("a", 0.5, 1), ("b", 2.0, 2)):
        skip, out, _, _ = EDMPrecond(d).affine(*process[name].schedule(0.3))
        assert (found[name] - (skip * x[name] + out * f)).abs().max() < 1e-12


def test_errors():
    for bad in (0.0, -1.0, None, "x", {"a": 0.0}):
        with pytest.raises(ConfigError, match="sigma_data"):
            V(bad)
    with pytest.raises(ConfigError, match="grid=karras"):
        Preconditioned(Recorder(), Process(RectifiedFlow()), Eps())(torch.zeros(1, 2), 1.0)


@pytest.mark.parametrize("what", [V(0.7), Flow(0.7), Eps(0.7), EDMPrecond(0.7)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("other", [EDM(0.002, 80.0), VPCosine(), RectifiedFlow()], ids=str)
def test_a_change_of_schedule_after_training(other, what):
    """A network trained on one schedule and sampled on another draws the same x0 trajectory at the same levels."""
    trained = VPLinear()
    network = torch.nn.Sequential()
    network.forward = lambda x, noise, cond: torch.tanh(x + noise[:, None])
    first = Preconditioned(network, Process(trained), what)
    second = Carried(first, Process(other))
    unit, lam = torch.randn(5, 3, dtype=f64, generator=torch.Generator().manual_seed(0)), np.linspace(-3, 4, 9)
    seen = []
    for denoiser, schedule in ((first, trained), (second, other)):
        grid, kept = Grid(schedule.time(torch.from_numpy(lam)).numpy(), clean=False), []
        x = unit * schedule(float(grid.t[0])).sigma
        sample(
            denoiser, Process(schedule), Multistep(8), grid, KeyedNoise(torch.arange(5)), x, x=x,
            callback=lambda i, n, x, x0, kept=kept: kept.append(x0),
        )  # fmt: skip
        seen.append(torch.stack(kept))
    assert (seen[0] - seen[1]).abs().max() < 1e-5  # the network's noise input is float32
    t = torch.tensor([0.2, 0.5, 0.5, 0.7, 0.9], dtype=f64)
    rows = torch.cat([second(unit[i : i + 1], float(t[i])).x0 for i in range(5)])
    assert (second(unit, t).x0 - rows).abs().max() < 1e-5


def test_carrying_a_state_without_signal_or_noise():
    x = torch.ones(2, dtype=f64)
    for t, to in ((1.0, 1.0), (0.0, 0.0)):
        found = carried(x, VPCosine()(t), RectifiedFlow()(to))
        assert torch.isfinite(found).all() and (found - 1).abs().max() < 1e-12
