"""Observation: posteriors of Gaussian data in closed form, known entries kept, and draws that start from a sample."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from suffuse.build import build
from suffuse.denoiser import Denoiser, EDMPrecond, Exact, Preconditioned, Prediction
from suffuse.errors import ConfigError
from suffuse.grid import Exponential, Grid, Karras, Trailing
from suffuse.guidance import ClassifierFree
from suffuse.nn import DiT
from suffuse.noise import KeyedNoise
from suffuse.observation import DPS, MMPS, Inpaint, PiGDM, conjugate_gradient, from_time, noised, sdedit
from suffuse.process import Gaussian
from suffuse.sampler import Ancestral, Multistep, Resample, sample
from suffuse.schedule import EDM, VE, RectifiedFlow, VPCosine, VPLinear
from suffuse.state import Dense
from suffuse.targets import Gaussian as TargetGaussian
from suffuse.targets import GaussianMixture
from torch.utils._python_dispatch import TorchDispatchMode

f64 = torch.float64
OF_TOKENS = {"confidence", "mask_ancestral", "mask_cached", "tau_leaping"}
SAMPLERS = sorted({p.stem for p in (Path(__file__).parents[1] / "conf" / "sampler").glob("*.yaml")} - OF_TOKENS)


def solver(name, steps=5):
    node = yaml.safe_load((Path(__file__).parents[1] / "conf" / "sampler" / f"{name}.yaml").read_text())
    return build({**node, "steps": steps}, "sampler")


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=torch.Generator().manual_seed(seed))


class Prior:
    """N(mean, covariance) in five dimensions, and its posterior given y = A x0 + noise."""

    def __init__(self, isotropic=None, deviation=0.3):
        root = 0.5 * random(5, 5, seed=1)
        self.mean = random(5, seed=2)
        self.covariance = root @ root.T + 0.05 * torch.eye(5, dtype=f64)
        if isotropic is not None:
            self.covariance = isotropic**2 * torch.eye(5, dtype=f64)
        self.a, self.deviation = random(3, 5, seed=3), deviation

    def measure(self, x0):
        return x0 @ self.a.T

    def posterior_mean(self, x, alpha, sigma):
        spread, axes = torch.linalg.eigh(self.covariance)
        gain = alpha * spread / (alpha**2 * spread + sigma**2)
        return self.mean + ((x - alpha * self.mean) @ axes * gain) @ axes.T

    def given(self, y, x=None, at=None):
        """Mean and covariance of x0 given y, and x_t where there is one, from the sum of precisions."""
        precision = torch.linalg.inv(self.covariance) + self.a.T @ self.a / self.deviation**2
        shift = torch.linalg.inv(self.covariance) @ self.mean + y @ self.a / self.deviation**2
        if x is not None:
            precision = precision + (at.alpha / at.sigma) ** 2 * torch.eye(5, dtype=f64)
            shift = shift + at.alpha / at.sigma**2 * x
        covariance = torch.linalg.inv(precision)
        return shift @ covariance, covariance

    def uncertainty(self, at):
        """V, the covariance of x0 given x_t."""
        return torch.linalg.inv(
            torch.linalg.inv(self.covariance) + (at.alpha / at.sigma) ** 2 * torch.eye(5, dtype=f64)
        )


Y = random(4, 3, seed=4)
SCHEDULES = [EDM(), VPLinear(), RectifiedFlow()]


# The posterior mean at one level.


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("explicit", [False, True])
def test_mmps_is_the_exact_posterior_of_gaussian_data(schedule, explicit):
    """As many iterations as measurements solve the system: what is left is rounding."""
    prior, process = Prior(), Gaussian(schedule)
    inner = Exact(process, prior.posterior_mean)
    adjoint = (lambda v: v @ prior.a) if explicit else None
    guided = MMPS(inner, Y, prior.measure, prior.deviation, iterations=4, adjoint=adjoint)
    for t in (0.1, 0.5, 0.95):
        x = 3 * random(4, 5, seed=5)
        wanted = prior.given(Y, x, schedule(t))[0]
        assert (guided(x, t).x0 - wanted).abs().max() < 1e-9
        assert (guided(x, torch.full((4,), t, dtype=f64)).x0 - wanted).abs().max() < 1e-9
        with torch.inference_mode():
            assert (guided(x.clone(), t).x0 - wanted).abs().max() < 1e-9


def test_fewer_iterations_go_part_of_the_way():
    prior, process = Prior(), Gaussian(EDM())
    inner, x, t = Exact(process, prior.posterior_mean), random(4, 5, seed=5), 0.4
    wanted = prior.given(Y, x, process.schedule(t))[0]
    errors = [float((MMPS(inner, Y, prior.measure, prior.deviation, k)(x, t).x0 - wanted).norm()) for k in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2] and errors[0] < float((inner(x, t).x0 - wanted).norm())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_pigdm_is_exact_where_its_covariance_is(schedule):
    process, x, t = Gaussian(schedule), random(4, 5, seed=5), 0.5
    for prior, exact in ((Prior(isotropic=0.8), True), (Prior(), False)):
        guided = PiGDM(Exact(process, prior.posterior_mean), Y, prior.measure, prior.deviation, sigma_data=0.8)
        away = (guided(x, t).x0 - prior.given(Y, x, schedule(t))[0]).abs().max()
        assert (away < 1e-9) == exact
        rows = guided(x, torch.full((4,), t, dtype=f64)).x0
        assert (rows - guided(x, t).x0).abs().max() < 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_dps_is_its_formula_and_right_only_without_noise(schedule):
    prior, process, x = Prior(), Gaussian(schedule), random(4, 5, seed=5)
    inner, away = Exact(process, prior.posterior_mean), []
    for t in (schedule.time(5.0), schedule.time(-1.0)):
        at, t = schedule(t), float(t)
        x0, v = inner(x, t).x0, prior.uncertainty(at)
        pull = (Y - x0 @ prior.a.T) @ prior.a @ v
        found = DPS(inner, Y, prior.measure, prior.deviation, scale=0.7)(x, t).x0
        assert (found - (x0 + 0.7 * pull / prior.deviation**2)).abs().max() < 1e-9
        norm = (Y - x0 @ prior.a.T).norm(dim=1, keepdim=True)
        found = DPS(inner, Y, prior.measure, scale=0.7, normalize=True)(x, t).x0
        assert (found - (x0 + 0.7 * pull / norm)).abs().max() < 1e-9
        wanted = prior.given(Y, x, at)[0]
        found = DPS(inner, Y, prior.measure, prior.deviation)(x, t).x0
        away.append(float((found - wanted).norm() / (wanted - x0).norm()))
    assert away[0] < 0.05 and away[1] > 0.5
    assert torch.equal(DPS(inner, Y, prior.measure, 0.3, 0.0)(x, 0.5).x0, inner(x, 0.5).x0)


def test_dps_takes_operators_that_are_not_linear():
    process = Gaussian(EDM())
    inner = Exact(process, TargetGaussian(torch.zeros(2, dtype=f64), torch.ones(2, dtype=f64)).posterior_mean)
    x, y, t = random(3, 2), torch.ones(3, 1, dtype=f64), 0.4
    sigma = float(process.schedule(t).sigma)
    v = sigma**2 / (1 + sigma**2)
    x0 = x / (1 + sigma**2)
    found = DPS(inner, y, lambda z: z.square().sum(-1, keepdim=True), 0.5)(x, t).x0
    # grad of -(y - |z|^2)^2 / (2 s^2) by hand.
    wanted = x0 + v * 2 * x0 * (y - x0.square().sum(-1, keepdim=True)) / 0.25
    assert (found - wanted).abs().max() < 1e-10


def test_one_measurement_for_all_rows_noise_per_entry_and_no_noise():
    prior, process, t = Prior(), Gaussian(EDM()), 0.4
    inner, x = Exact(process, prior.posterior_mean), random(4, 5, seed=5)
    one = MMPS(inner, Y[:1], prior.measure, 0.3, 4)(x, t).x0
    assert (one - MMPS(inner, Y[:1].expand(4, -1), prior.measure, 0.3, 4)(x, t).x0).abs().max() < 1e-12
    each = MMPS(inner, Y, prior.measure, torch.full((3,), 0.3, dtype=f64), 4)(x, t).x0
    assert (each - MMPS(inner, Y, prior.measure, 0.3, 4)(x, t).x0).abs().max() < 1e-12
    for kind in (MMPS(inner, Y, prior.measure, 0.0, 5), PiGDM(inner, Y, prior.measure, 0.0)):
        # Without noise MMPS has A x0 = y; PiGDM has it where V is r^2 I.
        left = (prior.measure(kind(x, t).x0) - Y).abs().max()
        assert left < 1e-8 if isinstance(kind, MMPS) else left > 1e-3


def test_pure_noise_says_nothing_and_stays_finite():
    prior, process = Prior(), Gaussian(VPCosine())
    x = random(4, 5, seed=5)
    for kind in (MMPS, PiGDM, DPS):
        guided = kind(Exact(process, prior.posterior_mean), Y, prior.measure, 0.3)
        assert torch.equal(guided(x, 1.0).x0, prior.mean.expand(4, 5))
        assert torch.equal(guided(x, torch.ones(4, dtype=f64)).x0, prior.mean.expand(4, 5))


def test_outside_the_interval_nothing_is_known():
    prior, process, x = Prior(), Gaussian(EDM()), random(4, 5, seed=5)
    inner = Exact(process, prior.posterior_mean)
    guided = MMPS(inner, Y, prior.measure, 0.3, interval=(0.0, None))
    t = torch.tensor([0.99, 0.01, 0.99, 0.01], dtype=f64)
    plain = Each(inner)(x, t).x0
    found = MMPS(Each(inner), Y, prior.measure, 0.3, interval=(0.0, None))(x, t).x0
    assert (found[::2] - plain[::2]).abs().max() < 1e-12 and (found[1::2] - plain[1::2]).abs().max() > 1e-4
    assert torch.equal(guided(x, 0.99).x0, inner(x, 0.99).x0)


class Each(Denoiser):
    """A denoiser called row by row, each with its own time."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.process = inner, inner.process

    def forward(self, x, t, cond=None):
        if not isinstance(t, torch.Tensor):
            return self.inner(x, t)
        return Prediction(torch.cat([self.inner(row[None], s).x0 for row, s in zip(x, t, strict=True)]))


def test_times_per_row_are_those_of_each_row():
    prior, process, x = Prior(), Gaussian(RectifiedFlow()), random(4, 5, seed=5)
    inner = Each(Exact(process, prior.posterior_mean))
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=f64)
    for kind in (
        MMPS(inner, Y, prior.measure, 0.3, 4),
        PiGDM(inner, Y, prior.measure, 0.3),
        DPS(inner, Y, prior.measure, 0.3),
    ):
        found = kind(x, t).x0
        for i in range(4):
            alone = type(kind)(inner, Y[i : i + 1], prior.measure, 0.3)
            alone.iterations = getattr(kind, "iterations", None)
            assert (found[i] - alone(x[i : i + 1], float(t[i])).x0[0]).abs().max() < 1e-10


def test_times_per_token():
    """Entries that are independent and seen directly, each at its own level: the scalar formula for each."""
    process = Gaussian(EDM(), Dense((1,)))
    target = TargetGaussian(torch.tensor([0.3, -0.2], dtype=f64), torch.tensor([0.5, 1.5], dtype=f64))
    inner, x, y = Exact(process, target.posterior_mean), random(3, 2), random(3, 2, seed=1)
    t = torch.tensor([[0.3, 0.6]], dtype=f64).expand(3, -1)
    found = MMPS(inner, y, lambda z: z, 0.4, 3)(x, t).x0
    sigma = process.schedule(t).sigma
    precision = 1 / target.variance + 1 / sigma**2 + 1 / 0.16
    assert (found - (target.mean / target.variance + x / sigma**2 + y / 0.16) / precision).abs().max() < 1e-9


def test_named_fields_with_their_own_schedules():
    process = {"a": Gaussian(EDM()), "b": Gaussian(VPLinear())}
    variance = {"a": 0.5, "b": 2.0}

    class Fields(Denoiser):
        def forward(self, x, t, cond=None):
            found = {}
            for name, leaf in x.items():
                alpha, sigma = self.process[name].schedule(t)
                found[name] = leaf * alpha * variance[name] / (alpha**2 * variance[name] + sigma**2)
            return Prediction(found)

    inner = Fields()
    inner.process = process
    x = {"a": random(3, 2), "b": random(3, 2, seed=1)}
    weights, t = {"a": random(2, 2, seed=2), "b": random(2, 2, seed=3)}, 0.5
    y = random(3, 2, seed=4)
    found = MMPS(inner, y, lambda s: s["a"] @ weights["a"].T + s["b"] @ weights["b"].T, 0.4, 3)(x, t).x0
    diagonal, shift = [], []
    for name, leaf in x.items():
        alpha, sigma = process[name].schedule(t)
        diagonal += [float(1 / variance[name] + (alpha / sigma) ** 2)] * 2
        shift.append(alpha / sigma**2 * leaf)
    a = torch.cat([weights["a"], weights["b"]], 1)
    precision = torch.diag(torch.tensor(diagonal, dtype=f64)) + a.T @ a / 0.16
    wanted = torch.linalg.solve(precision, (torch.cat(shift, 1) + y @ a / 0.16).T).T
    assert (torch.cat([found["a"], found["b"]], 1) - wanted).abs().max() < 1e-9


# What is drawn.


@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow()], ids=str)
@pytest.mark.parametrize("kind", ["mmps", "pigdm"])
def test_draws_have_the_exact_posterior_moments(schedule, kind):
    """The sampler is affine in its start, so unit starts give mean and covariance without Monte Carlo.

    What is left are the steps' error (third order) and the start, whose covariance leaves out the data's: 1e-4 of it.
    """
    prior = Prior() if kind == "mmps" else Prior(isotropic=0.8)
    process, grid = Gaussian(schedule), Exponential()(schedule, 96)
    inner, y = Exact(process, prior.posterior_mean), Y[:1]
    guided = MMPS(inner, y, prior.measure, 0.3, 5) if kind == "mmps" else PiGDM(inner, y, prior.measure, 0.3, 0.8)
    start = float(schedule(float(grid.t[0])).sigma)
    x = torch.cat([torch.zeros(1, 5, dtype=f64), start * torch.eye(5, dtype=f64)])
    with torch.inference_mode():
        out = sample(guided, process, Multistep(order=3), grid, KeyedNoise(torch.arange(6)), x, x=x)
    mean, covariance = prior.given(y)
    moved = out[1:] - out[0]
    scale = float(covariance.diagonal().max())
    assert (moved.T @ moved - covariance).abs().max() < 2e-3 * scale
    # The start is N(0, sigma^2), not about alpha m: at sigma/alpha = 80 a shift of a few thousandths.
    assert (out[0] - mean).abs().max() < 2e-2
    without = sample(inner, process, Multistep(order=3), grid, KeyedNoise(torch.arange(6)), x, x=x)
    assert ((without[1:] - without[0]).T @ (without[1:] - without[0]) - covariance).abs().max() > 0.1 * scale


def test_dps_draws_are_roughly_right_when_little_is_said():
    """The weaker the measurement, the nearer its pull is to the posterior's; it is too strong throughout."""
    process, grid, away = Gaussian(EDM()), Karras()(EDM(), 100), []
    for deviation in (1.0, 4.0, 16.0):
        prior = Prior(deviation=deviation)
        inner, x = Exact(process, prior.posterior_mean), prior.mean[None]
        guided = DPS(inner, Y[:1], prior.measure, deviation)
        out = sample(guided, process, Multistep(order=2), grid, KeyedNoise(torch.arange(1)), x, x=x)
        mean = prior.given(Y[:1])[0]
        away.append(float((out - mean).norm() / (prior.mean - mean).norm()))
    assert away[0] < 0.8 and away[1] < away[0] and away[2] < away[1] and away[2] < 0.3


def kinds(inner, y, mask):
    def seen(x0):
        return x0[:, :1]

    return {
        "inpaint": Inpaint(inner, y, mask), "mmps": MMPS(inner, y[:, :1], seen, 0.1),
        "pigdm": PiGDM(inner, y[:, :1], seen, 0.1), "dps": DPS(inner, y[:, :1], seen, scale=0.3, normalize=True),
        "guided": Inpaint(ClassifierFree(inner, 2.0, {"vector": torch.zeros(1, 1)}), y, mask),
    }  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_kind_with_every_sampler(name):
    process, sampler = Gaussian(EDM(sigma_min=0.02)), solver(name)
    grid, like = Karras(sigma_min=0.02)(process.schedule, 5), torch.empty(3, 2, dtype=f64)
    inner = Exact(process, mixture().posterior_mean)
    noise, y = KeyedNoise(torch.arange(3)), torch.tensor([[0.4, math.nan]], dtype=f64)
    cond = {"vector": torch.ones(3, 1)}
    with torch.inference_mode():
        plain = sample(inner, process, sampler, grid, noise, like, cond)
        for kind, guided in kinds(inner, y, torch.tensor([True, False])).items():
            found = sample(guided, process, sampler, grid, noise, like, cond)
            assert found.isfinite().all(), kind
            assert (found - plain).abs().max() > 1e-4, kind
            if kind in ("inpaint", "guided"):
                assert (found[:, 0] - 0.4).abs().max() < 1e-12
                assert found[:, 1].unique().numel() == 3


def mixture():
    means = torch.tensor([[1.0, 0.5], [-1.0, 1.0], [0.2, -1.0]], dtype=f64)
    return GaussianMixture(means, torch.full((3,), 0.1, dtype=f64), torch.full((3,), 1 / 3, dtype=f64))


# Inpainting.


@pytest.mark.parametrize("schedule", [*SCHEDULES, VPCosine()], ids=str)
def test_known_entries_follow_the_path_of_their_own_noise(schedule):
    """x_t = alpha y + sigma eps at every node of an ODE, to rounding, at any step size and order."""
    process, y = Gaussian(schedule), random(3, 2, seed=1)
    inner, noise = Exact(process, mixture().posterior_mean), KeyedNoise(torch.arange(3))
    grid = Trailing()(schedule, 6) if float(schedule(1.0).alpha) < 0.01 else Karras()(schedule, 6)
    start, nodes = noised(process, y, float(grid.t[0]), noise), []
    eps = process.draw(y, noise, 0)
    alpha, sigma, _ = grid.table(schedule)
    for sampler in (Multistep(order=2), Multistep(order=3), Multistep(order=2, basis="eps")):
        nodes.clear()
        guided = Inpaint(inner, y, torch.tensor([True, False]))
        sample(guided, process, sampler, grid, noise, y, x=start, callback=lambda i, n, x, x0: nodes.append(x.clone()))
        for x, a, s in zip(nodes, alpha[1:], sigma[1:], strict=True):
            assert (x[:, 0] - (a * y + s * eps)[:, 0]).abs().max() < 1e-10


class Units:
    """Noise whose draw number i is one in row i and zero elsewhere."""

    def normal(self, like, step, stream=0):
        found = torch.zeros_like(like)
        found[step] = 1
        return found


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_known_entries_have_the_law_of_the_forward_process(eta):
    """Along an SDE: mean alpha y and variance sigma^2 at every node, from the response to each draw of noise."""
    schedule = VPLinear()
    process, grid, y = Gaussian(schedule), Karras()(schedule, 6), 0.7
    known = torch.full((8, 1), y, dtype=f64)
    inner = Exact(process, TargetGaussian(torch.zeros(1, dtype=f64), torch.ones(1, dtype=f64)).posterior_mean)
    guided, seen = Inpaint(inner, known, torch.tensor(True)), []
    start = noised(process, known, float(grid.t[0]), Units())
    sampler = Ancestral(eta=eta)
    sample(guided, process, sampler, grid, Units(), known, x=start, callback=lambda i, n, x, x0: seen.append(x.clone()))
    alpha, sigma, _ = grid.table(schedule)
    for x, a, s in zip(seen, alpha[1:], sigma[1:], strict=True):
        mean = x[7]  # a row that no draw touches
        assert (mean - a * y).abs().max() < 1e-12
        assert abs(float(((x - mean) ** 2).sum()) - s**2) < 1e-12


class Draws:
    """Noise whose every draw of every entry is one in a row of its own and zero elsewhere."""

    def __init__(self):
        self.rows = {}

    def normal(self, like, step, stream=0):
        found = torch.zeros_like(like)
        for entry in range(like.shape[1]):
            found[self.rows.setdefault((step, entry), len(self.rows)), entry] = 1
        return found


def test_going_up_and_down_again_brings_the_unknown_into_agreement():
    """Mean and variance of one entry of a correlated pair given the other, from the response to each draw of noise."""
    prior, rho, process = Prior(), 0.9, Gaussian(VPLinear())
    prior.mean, prior.covariance = torch.zeros(2, dtype=f64), torch.tensor([[1, rho], [rho, 1]], dtype=f64)
    inner, grid = Exact(process, prior.posterior_mean), Karras()(VPLinear(), 100)
    y = torch.tensor([[1.0, 0.0]], dtype=f64)

    def moments(denoiser, repeats):
        like = torch.empty(2 * 100 * (2 * repeats + 1) + 10, 2, dtype=f64)
        sampler = Resample(jump=1, repeats=repeats)
        out = sample(denoiser, process, sampler, grid, Draws(), like)
        return float(out[-1, 1]), float((out - out[-1]).square().sum(0)[1])

    known = Inpaint(inner, y, torch.tensor([True, False]))
    once, five, twenty = (moments(known, repeats) for repeats in (1, 5, 20))
    exact = moments(MMPS(inner, y[:, :1], lambda x0: x0[:, :1], 0.0, 1), 1)
    assert (once[0], five[0], twenty[0]) == pytest.approx((0.61, 0.85, 0.89), abs=5e-3)
    assert once[1] > five[1] > twenty[1] > 0.15
    assert abs(exact[0] - rho) < 1e-3 and abs(exact[1] - (1 - rho**2)) < 0.03  # steps of first order


def test_masks_of_every_form():
    inner = Exact(Gaussian(EDM()), mixture().posterior_mean)
    x, y = random(3, 2), random(3, 2, seed=1)
    plain = inner(x, 0.5).x0
    bools, ones = torch.tensor([[True, False]] * 3), torch.tensor([1, 0])
    wanted = torch.where(bools, y, plain)
    for mask in (bools, ones, bools.double()):
        assert (Inpaint(inner, y, mask)(x, 0.5).x0 - wanted).abs().max() < 1e-14
    soft = Inpaint(inner, y, torch.tensor([0.25, 0.0], dtype=f64))(x, 0.5).x0
    assert (soft[:, 0] - (0.25 * y + 0.75 * plain)[:, 0]).abs().max() < 1e-14
    assert torch.equal(soft[:, 1], plain[:, 1])
    assert torch.equal(Inpaint(inner, y, torch.zeros(2))(x, 0.5).x0, plain)


def test_named_fields_and_tokens_are_put_in():
    class Fields(Denoiser):
        process = None

        def forward(self, x, t, cond=None):
            return Prediction({"pos": x["pos"] / 2, "kind": torch.zeros(2, 3, 4)})

    x = {"pos": random(2, 3), "kind": torch.zeros(2, 3, dtype=torch.int64)}
    known = {"kind": torch.tensor([[1, 2, 3], [0, 0, 0]])}
    mask = {"kind": torch.tensor([[True, False, True], [False, False, True]])}
    found = Inpaint(Fields(), known, mask)(x, 0.5).x0
    assert torch.equal(found["pos"], x["pos"] / 2)
    share = found["kind"].softmax(-1)
    assert share[0, 0].tolist() == [0, 1, 0, 0] and share[0, 2].tolist() == [0, 0, 0, 1]
    assert share[1, 2].tolist() == [1, 0, 0, 0] and share[0, 1].tolist() == [0.25] * 4


# Starting from a sample.


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_sdedit_is_the_flow_of_the_noised_sample(schedule):
    target = TargetGaussian(torch.tensor([0.5, -1.0], dtype=f64), torch.tensor([0.3, 1.2], dtype=f64))
    process, x0, noise = Gaussian(schedule), random(3, 2), KeyedNoise(torch.arange(3))
    inner, t = Exact(process, target.posterior_mean), 0.55
    found = sdedit(inner, process, Multistep(order=3), Exponential()(schedule, 96), noise, x0, t)
    at = schedule(t)
    start = at.alpha * x0 + at.sigma * noise.normal(x0, 0)
    assert torch.equal(noised(process, x0, t, noise), start)
    one, zero = torch.ones((), dtype=f64), torch.zeros((), dtype=f64)
    assert (found - target.flow(start, at, (one, zero))).abs().max() < 2e-3


def test_sdedit_at_the_ends():
    process, x0, noise = Gaussian(EDM()), random(3, 2), KeyedNoise(torch.arange(3))
    inner, grid = Exact(process, mixture().posterior_mean), Karras()(EDM(), 8)
    near = sdedit(inner, process, Multistep(), grid, noise, x0, 1e-3)
    assert (near - x0).abs().max() < 0.05
    far = sdedit(inner, process, Multistep(), grid, noise, x0, 1.0)
    prior = sample(inner, process, Multistep(), grid, noise, x0)
    assert (far - prior).abs().max() < 0.1  # what is left of x0 under sigma = 80
    whole = sample(inner, process, Multistep(), grid, noise, x0, x=noised(process, x0, 1.0, noise))
    assert torch.equal(far, whole)


def test_grids_from_a_time():
    grid = Grid(np.array([1.0, 0.6, 0.2, 0.0]))
    assert from_time(grid, 0.4).t.tolist() == [0.4, 0.2, 0.0] and from_time(grid, 0.6).t.tolist() == [0.6, 0.2, 0.0]
    assert from_time(grid, 0.4).clean and not from_time(Grid(grid.t, False), 0.4).clean
    assert from_time(grid, 0.1).t.tolist() == [0.1, 0.0]


# Conjugate gradients, graphs, devices.


def test_conjugate_gradient_solves_each_row_and_never_divides_by_zero():
    roots = random(3, 4, 4)
    matrices = roots @ roots.mT + 0.1 * torch.eye(4, dtype=f64)
    b = random(3, 4, seed=1) * torch.tensor([[1e-8], [1.0], [1e8]], dtype=f64)

    def product(v):
        return torch.einsum("bij,bj->bi", matrices, v)

    wanted = torch.linalg.solve(matrices, b)
    for iterations in (8, 30):
        found = conjugate_gradient(product, b, iterations)
        assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 1e-8
    assert torch.equal(conjugate_gradient(product, torch.zeros(3, 4, dtype=f64), 5), torch.zeros(3, 4, dtype=f64))
    assert torch.equal(conjugate_gradient(lambda v: -v, b, 5), torch.zeros(3, 4, dtype=f64))
    assert conjugate_gradient(lambda v: 2 * v, b.reshape(3, 2, 2).float(), 5).shape == (3, 2, 2)


class NoSync(TorchDispatchMode):
    """Fails when the host reads a value from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "linalg_solve"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["inpaint", "mmps", "pigdm", "dps"])
@pytest.mark.parametrize("rows", [False, True])
def test_nothing_is_read_back_from_the_device(kind, rows):
    network = DiT((2, 4, 4), width=16, depth=1, heads=2)
    inner = Preconditioned(network, Gaussian(EDM()), EDMPrecond(0.5))
    y = torch.ones(3, 2, 4, 4)
    guided = kinds(inner, y, torch.ones(4, 4))[kind]
    t = torch.full((3,), 0.5, dtype=f64) if rows else 0.5
    with torch.inference_mode():
        x = torch.randn(3, 2, 4, 4)
        first = guided(x, t)  # levels of a float are remembered: they are the host's
        with NoSync():
            assert torch.equal(guided(x, t).x0, first.x0)


def test_measurements_and_conditions_made_in_inference_mode():
    network = DiT((2, 4, 4), cond_dim=3, width=16, depth=2, heads=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inner = Preconditioned(network, Gaussian(EDM()), EDMPrecond(0.5))
    guided = ClassifierFree(inner, 2.0, {"vector": torch.zeros(1, 3)})
    found, weight = [], torch.rand(4, 4)
    for inference in (False, True):
        torch.manual_seed(0)
        with torch.inference_mode(inference):
            y, x, cond = torch.randn(2, 1, 4, 4), torch.randn(2, 2, 4, 4), {"vector": torch.randn(2, 3)}
            t = torch.full((2,), 0.4, dtype=f64)
            found.append([
                kind(guided, y, lambda x0, w=weight: w * x0[:, :1], 0.2)(x, time, cond).x0
                for kind in (MMPS, PiGDM, DPS) for time in (0.4, t)
            ])  # fmt: skip
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < 1e-5 * a.abs().max()


# Mistakes.


def test_mistakes_are_one_line():
    inner = Exact(Gaussian(EDM()), mixture().posterior_mean)
    x, y, nan = torch.zeros(3, 2, dtype=f64), torch.zeros(3, 1, dtype=f64), torch.tensor([[math.nan]], dtype=f64)

    def seen(x0):
        return x0[:, :1]

    fields = {"a": torch.zeros(3, 2)}
    cases = [
        (lambda: Inpaint(inner, x, torch.ones(3)), "the mask of shape (3,) does not fit (3, 2)"),
        (lambda: Inpaint(inner, x, torch.ones(4, 3, 2)), "does not fit"),
        (lambda: Inpaint(inner, x, torch.tensor([2.0, 0.0])), "in [0, 1]"),
        (lambda: Inpaint(inner, x, torch.tensor([math.nan, 0.0])), "in [0, 1]"),
        (lambda: Inpaint(inner, x / 0, torch.ones(2)), "known has NaN or infinite values"),
        (lambda: Inpaint(inner, fields, {"b": torch.ones(2)}), "known has the fields ['a'] but mask ['b']"),
        (lambda: Inpaint(inner, fields, {"a": torch.ones(3)}), "the mask of 'a' of shape (3,)"),
        (lambda: Inpaint(inner, x[:2], torch.ones(2))(x, 0.5), "known is (2, 2) but the state is (3, 2)"),
        (lambda: Inpaint(inner, fields, fields)(x, 0.5), "known is ['a'] but the state is (3, 2)"),
        (lambda: MMPS(inner, nan, seen), "y has NaN"),
        (lambda: MMPS(inner, y, seen, -1.0), "standard deviation of at least 0"),
        (lambda: PiGDM(inner, y, seen, math.nan), "standard deviation of at least 0"),
        (lambda: MMPS(inner, y, seen, iterations=0), "iterations=0"),
        (lambda: PiGDM(inner, y, seen, sigma_data=0.0), "sigma_data=0.0"),
        (lambda: DPS(inner, y, seen), "DPS needs noise > 0, or normalize=True"),
        (lambda: DPS(inner, y, seen, 1.0, -1.0), "observation.scale=-1.0"),
        (lambda: MMPS(inner, y, seen, interval=(1.0, 0.0)), "observation.interval=[1.0, 0.0] is empty"),
        (lambda: MMPS(inner, y, lambda x0: x0)(x, 0.5), "the operator gives (3, 2) but y is (3, 1)"),
        (lambda: MMPS(inner, y, lambda x0: 1.0)(x, 0.5), "the operator gives float"),
        (lambda: MMPS(inner, y[:2], seen)(x, 0.5), "the operator gives (3, 1) but y is (2, 1)"),
        (lambda: from_time(Karras()(EDM(), 4), 0.0), "start=0.0"),
        (lambda: from_time(Karras()(EDM(), 4), 1.5), "start=1.5"),
        (lambda: from_time(Karras()(EDM(), 4), math.nan), "start=nan"),
        (lambda: from_time(Grid(np.ones((3, 2))), 0.5), "start=0.5"),
    ]  # fmt: skip
    for call, text in cases:
        with pytest.raises(ConfigError, match=re.escape(text)) as caught:
            call()
        assert "\n" not in str(caught.value), text


def test_fields_that_are_not_there():
    class Fields(Denoiser):
        process = None

        def forward(self, x, t, cond=None):
            return Prediction(x)

    known = {"b": torch.zeros(3, 2)}
    with pytest.raises(ConfigError, match=re.escape("known must name fields of the state, ['a'], not ['b']")):
        Inpaint(Fields(), known, known)({"a": torch.zeros(3, 2)}, 0.5)
    with pytest.raises(ConfigError, match="known must name fields"):
        Inpaint(Fields(), known["b"], known["b"])({"a": torch.zeros(3, 2)}, 0.5)


def test_ve_and_a_sharp_measurement():
    """A measurement far sharper than the data, one entry at a time, is met to its precision."""
    process = Gaussian(VE())
    inner, noise = Exact(process, mixture().posterior_mean), KeyedNoise(torch.arange(4))
    y = torch.tensor([[0.3]], dtype=f64)
    found = sample(
        MMPS(inner, y, lambda x0: x0[:, 1:], 0.01), process, Multistep(),
        Karras(sigma_min=0.01, sigma_max=50.0)(VE(), 60), noise, torch.empty(4, 2, dtype=f64),
    )  # fmt: skip
    assert (found[:, 1] - 0.3).abs().max() < 0.05
