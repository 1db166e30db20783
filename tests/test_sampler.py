"""Samplers: orders against an independent integrator, weak orders without Monte Carlo, and the identities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from suffuse.denoiser import Denoiser, EDMPrecond, Exact, Preconditioned, Prediction
from suffuse.errors import ConfigError
from suffuse.grid import Exponential, Grid, Karras, Linear, Trailing
from suffuse.guidance import ClassifierFree
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian as Process
from suffuse.sampler import (
    DDIM,
    Ancestral,
    Consistency,
    Euler,
    Heun,
    Langevin,
    Multistep,
    PredictorCorrector,
    SingleStep,
    sample,
)  # fmt: skip
from suffuse.schedule import EDM, VE, RectifiedFlow, Shifted, VPCosine, VPLinear
from suffuse.solver import Node, first_order, integrals
from suffuse.state import Dense
from suffuse.targets import Gaussian, GaussianMixture
from torch.utils._python_dispatch import TorchDispatchMode

f64 = torch.float64
SCHEDULES = [VPLinear(), VPCosine(), VPCosine(0.008), VE(), EDM(), RectifiedFlow(), Shifted(RectifiedFlow(), 3.0)]
SAMPLERS = [
    Euler(), Ancestral(), Heun(), Multistep(order=2), Multistep(order=2, eta=1.0), Multistep(order=3),
    Multistep(order=3, eta=0.5), Multistep(order=2, basis="eps"), Multistep(order=3, basis="eps"),
    Multistep(order=3, basis="sigma", start="plain"), Multistep(order=2, basis="flow"),
    Multistep(order=2, form="midpoint"), Multistep(order=3, basis="eps", form="uniform", start="plain"),
    PredictorCorrector(order=1), PredictorCorrector(order=2), PredictorCorrector(order=3, basis="eps"),
    PredictorCorrector(order=2, corrector=1, eta=1.0), SingleStep(order=2), SingleStep(order=3, basis="x0"),
    SingleStep(order=2, basis="flow", share=1.0), SingleStep(order=2, basis="x0", midpoint=True),
    SingleStep(order=2, basis="x0", midpoint=True, eta=1.0), DDIM(eta=0.5), Consistency(), Langevin(corrections=2),
]  # fmt: skip
ODE = [s for s in SAMPLERS if not getattr(s, "eta", 0.0) and not isinstance(s, Consistency)]
STARTS = (Multistep(order=3), Multistep(order=3, basis="eps"))
"""Those that start up by an extra evaluation where all tokens start together."""


def mixture(dtype=f64):
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(6, 2, generator=generator, dtype=f64).to(dtype)
    return GaussianMixture(means, torch.full((6,), 0.05, dtype=dtype), torch.full((6,), 1 / 6, dtype=dtype))


def draw(schedule, sampler, grid, noise=None, like=None, **more):
    process = Process(schedule)
    noise = KeyedNoise(torch.arange(4)) if noise is None else noise
    like = torch.empty(4, 2, dtype=f64) if like is None else like
    return sample(Exact(process, mixture(like.dtype).posterior_mean), process, sampler, grid, noise, like, **more)


# Coefficients.


@pytest.mark.parametrize("h", [1e-8, 1e-3, 0.7, 5.0, 30.0])
@pytest.mark.parametrize("rate", [1.0, 1.25, 2.0, -1.0])
def test_integrals_are_the_closed_forms(h, rate):
    # int_0^h e^{-k tau} (c0 + c1 tau + c2 tau^2) by integration by parts in exact series or closed form.
    def moment(n):
        if abs(rate * h) < 2:
            return sum((-rate) ** j * h ** (j + n + 1) / (math.factorial(j) * (j + n + 1)) for j in range(40))
        value = -math.expm1(-rate * h) / rate
        for k in range(1, n + 1):
            value = (k * value - h**k * math.exp(-rate * h)) / rate
        return value

    p, q, r = h, 1.8 * h, 3.1 * h
    basis = [
        (q * r, -(q + r), 1.0, (p - q) * (p - r)), (p * r, -(p + r), 1.0, (q - p) * (q - r)),
        (p * q, -(p + q), 1.0, (r - p) * (r - q)),
    ]  # fmt: skip
    wanted = [(c0 * moment(0) + c1 * moment(1) + c2 * moment(2)) / d for c0, c1, c2, d in basis]
    assert integrals(h, rate, [p, q, r]) == pytest.approx(wanted, rel=1e-10)
    assert integrals(h, rate, [h]) == pytest.approx([moment(0)], rel=1e-13)
    assert sum(integrals(h, rate, [p, q, r])) == pytest.approx(moment(0), rel=1e-12)
    found = quad(lambda tau: math.exp(-rate * tau) * (tau - q) * (tau - r) / ((p - q) * (p - r)), 0, h, epsabs=0)[0]
    assert integrals(h, rate, [p, q, r])[0] == pytest.approx(found, rel=1e-7)


def test_first_order_meets_its_limits():
    pure, some, clean = Node(0.0, 1.0, -math.inf), Node(0.6, 0.8, math.log(0.75)), Node(1.0, 0.0, math.inf)
    step = first_order(pure, some)
    assert (step.a, step.b) == pytest.approx((0.8, 0.6))
    step = first_order(some, clean)
    assert (step.a, step.b, step.c) == (0.0, 1.0, ())
    noisy = first_order(pure, some, 1.0)
    assert (noisy.a, noisy.b, *noisy.c) == pytest.approx((0.0, 0.6, 0.8))


def test_ancestral_is_the_posterior_of_ddpm():
    """x_s | x_t, x0 of Ho et al. 2020, eq. 7, in alpha and sigma."""
    schedule = VPLinear()
    (a_t, s_t), (a_s, s_s) = ([float(v) for v in schedule(t)] for t in (0.7, 0.5))
    step = first_order(Node(a_t, s_t, math.log(a_t / s_t)), Node(a_s, s_s, math.log(a_s / s_s)), 1.0)
    ratio = a_t / a_s
    beta = s_t**2 - ratio**2 * s_s**2
    assert step.a == pytest.approx(ratio * s_s**2 / s_t**2, rel=1e-12)
    assert step.b == pytest.approx(a_s * beta / s_t**2, rel=1e-12)
    assert step.c[0] == pytest.approx(math.sqrt(beta) * s_s / s_t, rel=1e-12)


# Order.


@pytest.fixture(scope="module")
def exact():
    """Start at sigma = 20 and the end at 0.02 of the probability-flow ODE, by DOP853 in log sigma."""
    target, rows = mixture(), 24
    start = 20 * KeyedNoise(torch.arange(rows)).normal(torch.empty(rows, 2, dtype=f64), 0)

    def slope(log_sigma, y):
        x, sigma = torch.from_numpy(y.reshape(rows, 2)), torch.tensor(math.exp(log_sigma), dtype=f64)
        return (x - target.posterior_mean(x, torch.ones((), dtype=f64), sigma)).numpy().ravel()

    ends = math.log(20), math.log(0.02)
    solved = solve_ivp(slope, ends, start.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    return start, torch.from_numpy(solved.y[:, -1].reshape(rows, 2))


@pytest.mark.parametrize(
    ("sampler", "order", "at32"),
    [
        (Euler(), 1, 2.5e-2), (Heun(), 2, 2.7e-3), (Multistep(order=2), 2, 2.2e-3), (Multistep(order=3), 3, 2.1e-4),
        (Multistep(order=2, basis="eps"), 2, 2.3e-3), (Multistep(order=3, basis="eps"), 3, 1.9e-4),
    ],
    ids=str,
)  # fmt: skip
def test_order(sampler, order, at32, exact):
    start, end = exact
    schedule, counts = VE(0.02, 20.0), (32, 64, 128, 256)
    builder = Exponential(sigma_min=0.02, sigma_max=20.0, end="min")
    errors = []
    for n in counts:
        found = draw(schedule, sampler, builder(schedule, n), KeyedNoise(torch.arange(24)), start, x=start)
        errors.append(((found - end) ** 2).mean(1).sqrt().mean().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope >= order - 0.2, errors
    assert at32 / 2 < errors[0] < at32 * 2, errors


class Units:
    """Noise whose draw number i is one in row i + 1 and zero elsewhere: a sampler's response, one row per draw."""

    def normal(self, like, step, stream=0):
        found = torch.zeros_like(like)
        found[step + 1] = 1
        return found


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (Ancestral(), 1),
        (Multistep(order=1, eta=0.5), 1),
        (Multistep(order=2, eta=1.0), 2),
        (Multistep(order=2, eta=0.5), 2),
    ],
    ids=str,
)
def test_weak_order_without_monte_carlo(sampler, order):
    """On a Gaussian the sampler is affine, so unit inputs give the mean and the variance of its output exactly."""
    mean, variance, schedule = 0.7, 0.3, VE(0.02, 20.0)
    target = Gaussian(torch.tensor([mean], dtype=f64), torch.tensor([variance], dtype=f64))
    process, counts, errors, means = Process(schedule), (32, 64, 128, 256), [], []
    for n in counts:
        grid = Exponential(sigma_min=0.02, sigma_max=20.0, end="min")(schedule, n)
        x = torch.full((n + 2, 1), mean, dtype=f64)
        x[1] += math.sqrt(variance + 400)
        out = sample(Exact(process, target.posterior_mean), process, sampler, grid, Units(), x, x=x).flatten()
        errors.append(abs(float(((out[1:] - out[0]) ** 2).sum()) / (variance + 0.02**2) - 1))
        means.append(abs(float(out[0]) - mean))
    assert max(means) < 1e-12
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] >= order - 0.2, errors


# Identities.


@pytest.mark.parametrize("sampler", ODE, ids=str)
def test_same_levels_give_the_same_x0_on_every_schedule(sampler):
    lam = np.linspace(-3, 4, 9)
    found = []
    for schedule in (VPLinear(0.1, 20.0), VPCosine(), VE(0.001, 100.0), EDM(0.001, 100.0), RectifiedFlow()):
        grid = Grid(schedule.time(torch.from_numpy(lam)).numpy(), clean=False)
        alpha, sigma = schedule(torch.from_numpy(grid.t))
        start = torch.randn(4, 2, dtype=f64, generator=torch.Generator().manual_seed(3))
        trajectory = []
        end = draw(
            schedule, sampler, grid, x=start * sigma[0], callback=lambda i, n, x, x0, keep=trajectory: keep.append(x0)
        )
        found.append((torch.stack(trajectory), end / alpha[-1]))
    for trajectory, end in found[1:]:
        assert (trajectory - found[0][0]).abs().max() < 1e-9
        assert (end - found[0][1]).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_order_one_is_one_method(schedule):
    grid = Karras()(schedule, 9)
    euler = draw(schedule, Euler(), grid)
    for other in (Multistep(order=1), Multistep(order=1, basis="eps"), Multistep(order=1, eta=0.0), Ancestral(eta=0.0)):
        assert (draw(schedule, other, grid) - euler).abs().max() < 1e-11
    alpha, sigma, _ = grid.table(schedule)
    x = sigma[0] * KeyedNoise(torch.arange(4)).normal(torch.empty(4, 2, dtype=f64), 0)
    for i in range(9):
        x0 = mixture().posterior_mean(x, torch.tensor(alpha[i]), schedule(grid.t[i]).sigma)
        x = alpha[i + 1] * x0 + sigma[i + 1] * (x - alpha[i] * x0) / sigma[i]
    assert (x - euler).abs().max() < 1e-11


def test_heun_is_edms():
    grid, target, one = Karras()(EDM(), 7), mixture(), torch.ones((), dtype=f64)
    sigma = torch.from_numpy(grid.table(EDM())[1])
    x = sigma[0] * KeyedNoise(torch.arange(4)).normal(torch.empty(4, 2, dtype=f64), 0)
    for now, then in itertools.pairwise(sigma):
        d = (x - target.posterior_mean(x, one, now)) / now
        euler = x + (then - now) * d
        if then > 0:
            d = (d + (euler - target.posterior_mean(euler, one, then)) / then) / 2
        x = x + (then - now) * d
    assert (draw(EDM(), Heun(), grid) - x).abs().max() < 1e-10


def test_order_two_is_dpm_solver_2m():
    """The heun form of DPM-Solver++(2M): its correction term is (phi - h) / h_last, phi = 1 - e^{-h}."""
    schedule, n = VE(0.02, 20.0), 8
    grid = Exponential(sigma_min=0.02, sigma_max=20.0, end="min")(schedule, n)
    sigma = np.exp(np.linspace(math.log(20), math.log(0.02), n + 1))
    x, last, step = 20.0 * KeyedNoise(torch.arange(4)).normal(torch.empty(4, 2, dtype=f64), 0), None, math.log(1000) / n
    for i in range(n):
        d = mixture().posterior_mean(x, torch.ones((), dtype=f64), torch.tensor(sigma[i], dtype=f64))
        x = sigma[i + 1] / sigma[i] * x - math.expm1(-step) * d
        if last is not None:
            x = x + (step + math.expm1(-step)) / step * (d - last)
        last = d
    assert (draw(schedule, Multistep(order=2), grid) - x).abs().max() < 1e-11


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sde_without_noise_is_the_ode(order):
    grid = Karras()(EDM(), 9)
    ode = draw(EDM(), Multistep(order=order), grid)
    nearly = draw(EDM(), Multistep(order=order, eta=1e-7), grid)
    assert (draw(EDM(), Multistep(order=order, eta=0.0), grid) - ode).abs().max() == 0
    if order < 3:
        assert (nearly - ode).abs().max() < 1e-5


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("schedule", [EDM(), VPCosine(), RectifiedFlow()], ids=str)
def test_equal_tokens_are_one_time(schedule, sampler):
    target = Gaussian(torch.tensor([0.3], dtype=f64), torch.tensor([0.5], dtype=f64))
    process, like, noise = Process(schedule, Dense((1,))), torch.empty(3, 4, 1, dtype=f64), KeyedNoise(torch.arange(3))
    for grid in (Karras()(schedule, 6), Trailing()(schedule, 5)):
        table = Grid(np.repeat(grid.t[:, None], 4, 1), grid.clean)
        one, many = (
            sample(Exact(process, target.posterior_mean), process, sampler, g, noise, like) for g in (grid, table)
        )
        assert (one - many).abs().max() < 1e-10


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("schedule", [EDM(), VPCosine(), RectifiedFlow()], ids=str)
def test_frozen_tokens_do_not_change(schedule, sampler):
    target = Gaussian(torch.tensor([0.3], dtype=f64), torch.tensor([0.5], dtype=f64))
    process, x = Process(schedule, Dense((1,))), torch.randn(3, 4, 1, dtype=f64)
    grid = Trailing()(schedule, 6)
    table = np.repeat(grid.t[:, None], 4, 1)
    table[:, 0], table[:, 2] = 0.0, 0.5
    noise = KeyedNoise(torch.arange(3))
    found = sample(Exact(process, target.posterior_mean), process, sampler, Grid(table), noise, x, x=x)
    assert torch.equal(found[:, 0], x[:, 0]) and torch.equal(found[:, 2], x[:, 2])
    alone = sample(Exact(process, target.posterior_mean), process, sampler, grid, noise, x, x=x)
    if sampler not in STARTS:
        assert (found[:, 1] - alone[:, 1]).abs().max() < 1e-10


class Pair(Denoiser):
    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, t, cond=None):
        return Prediction({name: mixture().posterior_mean(x[name], *p.schedule(t)) for name, p in self.process.items()})


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_two_fields_are_two_runs(sampler):
    process = {"a": Process(EDM()), "b": Process(VE())}
    like = {name: torch.empty(3, 2, dtype=f64) for name in process}
    grid, start = Linear()(EDM(), 7), {name: torch.randn(3, 2, dtype=f64) for name in process}

    class Silent:
        def normal(self, leaf, step, stream=0):
            return KeyedNoise(torch.arange(3)).normal(leaf, step)

    together = sample(Pair(process), process, sampler, grid, Silent(), like, x=start)
    for name, one in process.items():
        alone = sample(Exact(one, mixture().posterior_mean), one, sampler, grid, Silent(), like[name], x=start[name])
        # A stage lies where the first field's schedule puts it, so another schedule alone has its own.
        assert (together[name] - alone).abs().max() < (0.3 if sampler.inner and name == "b" else 1e-12)


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_fields_whose_ends_differ(sampler, names):
    """One field starts without any signal, where a two-row step does not exist; the other is not disturbed by it."""
    schedules = {"a": EDM(), "b": VPCosine()}
    process = {name: Process(schedules[name]) for name in names}
    like = {name: torch.empty(3, 2, dtype=f64) for name in names}
    found = sample(Pair(process), process, sampler, Trailing()(EDM(), 12), KeyedNoise(torch.arange(3)), like)
    for name in names:
        assert torch.isfinite(found[name]).all() and found[name].abs().max() < 5
    if isinstance(sampler, Heun):
        stream = names.index("a")

        class Same:
            def normal(self, leaf, step, _=0):
                return KeyedNoise(torch.arange(3)).normal(leaf, step, stream)

        alone = sample(
            Pair({"a": process["a"]}), {"a": process["a"]}, sampler, Trailing()(EDM(), 12), Same(), {"a": like["a"]}
        )
        assert (found["a"] - alone["a"]).abs().max() < 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("builder", [Karras(), Exponential(end="min"), Linear(), Trailing()], ids=str)
def test_ends_are_finite(schedule, builder):
    for sampler, n in itertools.product(SAMPLERS, (1, 2, 8)):
        found = draw(schedule, sampler, builder(schedule, n), like=torch.empty(4, 2))
        assert torch.isfinite(found).all(), (sampler, n)
        if n == 8 and not isinstance(sampler, Heun):
            assert found.abs().max() < 20, (sampler, n)


def test_a_repeated_node_lowers_the_order():
    grid = Karras()(EDM(), 8)
    doubled = Grid(np.insert(grid.t, 4, grid.t[4]), grid.clean)
    for sampler in (Euler(), Heun(), Multistep(order=2), Multistep(order=3), Multistep(order=2, basis="eps")):
        found, plain = (draw(EDM(), sampler, g) for g in (doubled, grid))
        assert torch.isfinite(found).all() and (found - plain).abs().max() < 0.5
    assert (draw(EDM(), Euler(), doubled) - draw(EDM(), Euler(), grid)).abs().max() < 1e-12


# Engine.


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(5) * 0.3)

    def forward(self, x, noise, cond):
        shift = noise[:, None] + (0 if cond is None else cond["vector"])
        return x * self.weight + shift


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_sample_depends_on_its_seed_alone(sampler):
    process = Process(EDM())
    denoiser = Preconditioned(Network(), process, EDMPrecond(0.5))
    grid, every = Karras()(EDM(), 6), torch.arange(100, 164)
    with torch.inference_mode():
        whole = sample(denoiser, process, sampler, grid, KeyedNoise(every), torch.empty(64, 5))
        for size in (1, 2, 3, 7):
            part = sample(denoiser, process, sampler, grid, KeyedNoise(every[9 : 9 + size]), torch.empty(size, 5))
            assert torch.equal(part, whole[9 : 9 + size])


class NoSync(TorchDispatchMode):
    """Fails on what would make the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "linalg_solve"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_loop_reads_nothing_back(sampler):
    process, cond = Process(EDM()), {"vector": torch.ones(3, 5)}
    denoiser = ClassifierFree(
        Preconditioned(Network(), process, EDMPrecond(0.5)), 2.0, {"vector": torch.zeros(3, 5)}, (-3.0, 2.0)
    )
    grid, noise, like = Karras()(EDM(), 6), KeyedNoise(torch.arange(3)), torch.empty(3, 5)
    with torch.inference_mode():
        first = sample(denoiser, process, sampler, grid, noise, like, cond)
        with NoSync():
            again = sample(denoiser, process, sampler, grid, noise, like, cond)
    assert torch.equal(first, again)


def test_the_guard_against_reading_back_works():
    for forbidden in (lambda: torch.ones(1).item(), lambda: bool(torch.ones(1) > 0), lambda: torch.ones(2).nonzero()):
        with pytest.raises(AssertionError), NoSync():
            forbidden()


def test_rows_evaluations_and_callback():
    grid, seen = Karras()(EDM(), 6), []
    for sampler, rows in ((Euler(), 6), (Heun(), 11), (Multistep(order=2), 6), (Multistep(order=3), 7)):
        assert sampler.plan(grid, Process(EDM())).evaluations == rows
    out = draw(EDM(), Heun(), grid, callback=lambda i, n, x, x0: seen.append((i, n, x.clone())))
    assert [i for i, _, _ in seen] == [2, 4, 6, 8, 10, 11] and all(n == 11 for _, n, _ in seen)
    assert torch.equal(seen[-1][2], out)


def test_plans_are_remembered_and_not_confused():
    grid, other = Karras()(EDM(), 6), Karras()(EDM(), 7)
    plan = Multistep().plan(grid, Process(EDM()))
    assert Multistep().plan(Karras()(EDM(), 6), Process(EDM())) is plan
    for changed in (
        Multistep().plan(other, Process(EDM())), Multistep(order=3).plan(grid, Process(EDM())),
        Multistep().plan(Grid(grid.t, False), Process(EDM())), Multistep().plan(grid, Process(EDM(rho=6.0))),
        Multistep().plan(grid, {"a": Process(EDM())}),
    ):  # fmt: skip
        assert changed is not plan


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Euler(steps=0), "steps=0"), (lambda: Heun(steps=2.5), "steps=2.5"),
        (lambda: Multistep(order=5), "order=5"),
        (lambda: Multistep(eta=-1.0), "eta=-1.0"), (lambda: Multistep(basis="v"), "basis=v"),
        (lambda: Multistep(eta=1.0, basis="eps"), "basis=x0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
