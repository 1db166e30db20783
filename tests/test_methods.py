"""Methods: every sampler's order, its agreement with the peers that are right, and the laws of the stochastic ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from suffuse.denoiser import Exact
from suffuse.errors import ConfigError
from suffuse.grid import Exponential, Grid, Karras, Trailing
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian as Process
from suffuse.sampler import (
    DDIM,
    Adaptive,
    Ancestral,
    Churn,
    Consistency,
    Euler,
    Heun,
    Langevin,
    Multistep,
    PredictorCorrector,
    Resample,
    Restart,
    SingleStep,
    invert,
    sample,
)  # fmt: skip
from suffuse.schedule import EDM, VE, RectifiedFlow, VPCosine, VPLinear
from suffuse.solver import Node, interpolated, transition
from suffuse.targets import Gaussian, GaussianMixture

f64 = torch.float64
ROWS = 24
LEVELS = Exponential(sigma_min=0.02, sigma_max=20.0, end="min")


def mixture():
    means = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=f64)
    return GaussianMixture(means, torch.full((6,), 0.05, dtype=f64), torch.full((6,), 1 / 6, dtype=f64))


def draw(schedule, sampler, grid, x, target=None, **more):
    process, noise = Process(schedule), KeyedNoise(torch.arange(len(x)))
    mean = (target or mixture()).posterior_mean
    return sample(Exact(process, mean), process, sampler, grid, noise, x, x=x, **more)


def start(scale, rows=ROWS):
    return scale * KeyedNoise(torch.arange(rows)).normal(torch.empty(rows, 2, dtype=f64), 0)


# Order.


@pytest.fixture(scope="module")
def exact():
    """The end at sigma = 0.02 of the probability-flow ODE from sigma = 20, by DOP853 in log sigma."""
    target = mixture()

    def slope(log_sigma, y):
        x, sigma = torch.from_numpy(y.reshape(ROWS, 2)), torch.tensor(math.exp(log_sigma), dtype=f64)
        return (x - target.posterior_mean(x, torch.ones((), dtype=f64), sigma)).numpy().ravel()

    ends = math.log(20), math.log(0.02)
    solved = solve_ivp(slope, ends, start(20).numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    return torch.from_numpy(solved.y[:, -1].reshape(ROWS, 2))


@pytest.mark.parametrize(
    ("sampler", "order", "at32"),
    [
        (SingleStep(order=1), 1, 2.5e-2), (SingleStep(order=2), 2, 4.3e-4),
        (SingleStep(order=2, basis="x0"), 2, 5.7e-4), (SingleStep(order=2, basis="x0", midpoint=True), 2, 1.4e-3),
        (SingleStep(order=2, basis="flow", share=1.0), 2, 5.7e-4), (SingleStep(order=2, basis="flow"), 2, 3.0e-4),
        (SingleStep(order=3), 3, 1.2e-5), (SingleStep(order=3, basis="x0"), 3, 2.0e-5),
        (SingleStep(order=3, basis="flow"), 3, 1.1e-5), (Multistep(order=2, form="midpoint"), 2, 1.2e-3),
        (Multistep(order=2, basis="sigma"), 1.95, 5.8e-3), (Multistep(order=3, basis="sigma"), 2.9, 2.2e-3),
        (Multistep(order=2, basis="flow"), 2, 1.9e-3), (Multistep(order=3, basis="flow"), 3, 3.7e-4),
        (Multistep(order=3, basis="eps", form="uniform", start="plain"), 2, 7.3e-4),
        (PredictorCorrector(order=1), 2, 3.4e-3), (PredictorCorrector(order=2), 3, 4.2e-4),
        (PredictorCorrector(order=3), 4, 6.3e-5), (PredictorCorrector(order=2, basis="eps"), 3, 4.0e-4),
        (PredictorCorrector(order=3, basis="eps"), 3.9, 8.6e-5), (PredictorCorrector(order=2, corrector=0), 2, 2.0e-3),
    ],
    ids=str,
)  # fmt: skip
def test_order(sampler, order, at32, exact):
    counts, errors = (32, 64, 128, 256), []
    for n in counts:
        found = draw(VE(0.02, 20.0), sampler, LEVELS(VE(0.02, 20.0), n), start(20))
        errors.append(((found - exact) ** 2).mean(1).sqrt().mean().item())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] >= order - 0.2, errors
    assert at32 / 2 < errors[0] < at32 * 2, errors


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), RectifiedFlow(), VE(0.01, 50.0)], ids=str)
def test_third_order_on_every_schedule(schedule, exact):
    lam = torch.from_numpy(np.linspace(-math.log(20), -math.log(0.02), 65))
    grid = Grid(schedule.time(lam).numpy(), clean=False)
    alpha, sigma = schedule(torch.from_numpy(grid.t))
    for sampler in (SingleStep(order=3), Multistep(order=3), PredictorCorrector(order=3)):
        found = draw(schedule, sampler, grid, start(20) * alpha[0]) / alpha[-1]
        assert ((found - exact) ** 2).mean().sqrt() < 5e-5
    assert float(sigma[0] / alpha[0]) == pytest.approx(20, rel=1e-9)


def test_adaptive_keeps_to_its_tolerance(exact):
    errors, tried = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        seen = []
        found = draw(
            VE(0.02, 20.0), Adaptive(rtol=tolerance, atol=tolerance), LEVELS(VE(0.02, 20.0), 4), start(20),
            callback=lambda i, n, x, x0, seen=seen: seen.append(i),
        )  # fmt: skip
        errors.append(((found - exact) ** 2).mean(1).sqrt().max().item())
        tried.append(seen[-1])
    assert errors[0] < 1e-2 and errors[1] < 2e-4 and errors[2] < 2e-6
    assert tried[0] < tried[1] < tried[2] < 300


def test_adaptive_steps_are_per_sample():
    """A row alone takes the steps it takes among others, and a clean end and an end without signal are walked."""
    for schedule, grid in ((EDM(), Karras()), (VPCosine(), Trailing()), (RectifiedFlow(), Trailing())):
        nodes = grid(schedule, 10)
        whole = draw(schedule, Adaptive(rtol=1e-3, atol=1e-3), nodes, start(80 if schedule == EDM() else 1))
        alone = sample_one(schedule, Adaptive(rtol=1e-3, atol=1e-3), nodes, 5, 80 if schedule == EDM() else 1)
        assert (whole[5:6] - alone).abs().max() < 1e-12
        assert mixture().log_prob(whole, torch.tensor(1.0, dtype=f64), torch.tensor(0.1, dtype=f64)).min() > -12


def sample_one(schedule, sampler, grid, row, scale):
    process = Process(schedule)
    x = start(scale)[row : row + 1]
    noise = KeyedNoise(torch.tensor([row]))
    return sample(Exact(process, mixture().posterior_mean), process, sampler, grid, noise, x, x=x)


def test_adaptive_errors():
    nodes = Karras()(EDM(), 5)
    with pytest.raises(ConfigError, match=r"sampler\.limit=2 steps do not reach"):
        draw(EDM(), Adaptive(rtol=1e-5, atol=1e-5, limit=2), nodes, start(80))
    with pytest.raises(ConfigError, match=r"sampler\.rtol=0 must be positive"):
        Adaptive(rtol=0)
    table = Grid(np.repeat(nodes.t[:, None], 2, 1), nodes.clean)
    with pytest.raises(ConfigError, match="one time for all tokens"):
        draw(EDM(), Adaptive(), table, start(80))


# Two ways to write the same.


def test_solver_weights_of_every_basis_by_quadrature():
    """One step with two predictions against an independent integration of the basis' own linear form."""
    t, m, s = (Node(a, b, math.log(a / b)) for a, b in ((0.3, 0.9), (0.5, 0.8), (0.8, 0.5)))
    q_t, q_m, x = 0.7, -0.4, 1.1
    axis = {
        "x0": (lambda n: n.lam, lambda n: n.sigma, lambda n: math.exp(n.lam)),
        "eps": (lambda n: n.lam, lambda n: n.alpha, lambda n: math.exp(-n.lam)),
        "sigma": (lambda n: n.sigma / n.alpha, lambda n: n.alpha, lambda n: n.sigma / n.alpha),
        "flow": (lambda n: n.sigma / (n.alpha + n.sigma), lambda n: n.alpha + n.sigma,
                 lambda n: n.sigma / (n.alpha + n.sigma)),
    }  # fmt: skip
    for basis, (place, scale, measure) in axis.items():
        lam = np.linspace(t.lam, s.lam, 20001)
        sigma = 1 / np.sqrt(1 + np.exp(2 * lam))  # any curve with this lam: only ratios matter
        nodes = [Node(a, b, c) for a, b, c in zip(sigma * np.exp(lam), sigma, lam, strict=True)]
        where, m_axis = np.array([place(n) for n in nodes]), np.array([measure(n) for n in nodes])
        line = q_t + (q_m - q_t) * (where - place(t)) / (place(m) - place(t))
        wanted = scale(s) * (x / scale(t) + np.trapezoid(line, m_axis))
        step = interpolated(t, s, [(t, None), (m, 0)], basis)
        # d that gives the quantity q_t at x: q = p x + q d.
        d = (q_t - step.p * x) / step.q
        assert step.a * x + step.b * d + step.past[0] * q_m == pytest.approx(wanted, rel=1e-7), basis


def test_heun_in_flow_is_the_trapezoid():
    grid, schedule, target = Trailing()(RectifiedFlow(), 6), RectifiedFlow(), mixture()
    x = start(1.0)
    found = draw(schedule, SingleStep(order=2, basis="flow", share=1.0), grid, x)

    def velocity(x, t):
        at = schedule(torch.tensor(t, dtype=f64))
        return (x - target.posterior_mean(x, *at)) / t

    for t, s in itertools.pairwise(grid.t):
        u = velocity(x, t)
        euler = x + (s - t) * u
        x = euler if s == 0 else x + (s - t) * (u + velocity(euler, s)) / 2
    assert (found - x).abs().max() < 1e-11


def test_lms_and_flow_ab_are_adams_bashforth():
    schedule, target = RectifiedFlow(), mixture()
    t = np.linspace(0.9, 0.1, 9)
    x, last = start(1.0), None
    found = draw(schedule, Multistep(order=2, basis="flow"), Grid(t, clean=False), x)
    for now, then in itertools.pairwise(t):
        u = (x - target.posterior_mean(x, *schedule(torch.tensor(now, dtype=f64)))) / now
        x = x + (then - now) * (u if last is None else 1.5 * u - 0.5 * last)
        last = u
    assert (found - x).abs().max() < 1e-11


def test_pndm_is_ddim_with_adams_bashforth_noise():
    schedule, target, n = VPLinear(), mixture(), 12
    grid = Grid(np.linspace(0.9, 0.05, n + 1), clean=False)
    x, old = start(1.0), []
    found = draw(schedule, Multistep(order=3, basis="eps", form="uniform", start="plain"), grid, x)
    for now, then in itertools.pairwise(grid.t):
        (a, s), (a2, s2) = (schedule(torch.tensor(v, dtype=f64)) for v in (now, then))
        old = [(x - a * target.posterior_mean(x, a, s)) / s, *old][:3]
        share = {1: (1,), 2: (1.5, -0.5), 3: (23 / 12, -16 / 12, 5 / 12)}[len(old)]
        eps = sum(w * e for w, e in zip(share, old, strict=True))
        x = a2 * (x - s * eps) / a + s2 * eps
    assert (found - x).abs().max() < 1e-10


def test_dpmpp_2s_is_lus():
    """DPM-Solver++(2S), r = 1/2, and DPM-Solver-2 in its exact form, written out."""
    schedule, target = VPLinear(), mixture()
    lam = np.linspace(-2.0, 3.0, 7)
    grid = Grid(schedule.time(torch.from_numpy(lam)).numpy(), clean=False)
    x = start(1.0)
    found = draw(schedule, SingleStep(order=2, basis="x0", midpoint=True), grid, x)
    for a, b in itertools.pairwise(lam):
        (at, st), (am, sm), (an, sn) = (schedule(schedule.time(float(v))) for v in (a, (a + b) / 2, b))
        h = b - a
        u = sm / st * x - am * math.expm1(-h / 2) * target.posterior_mean(x, at, st)
        x = sn / st * x - an * math.expm1(-h) * target.posterior_mean(u, am, sm)
    assert (found - x).abs().max() < 1e-10


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_the_papers(eta):
    """Song et al. 2021, eq. 12 and 16, in alpha-bar."""
    schedule, target = VPLinear(), mixture()
    grid = Grid(np.linspace(1.0, 0.1, 6), clean=False)
    x, noise = start(1.0), KeyedNoise(torch.arange(ROWS))
    found = draw(schedule, DDIM(eta=eta), grid, x)
    for i, (now, then) in enumerate(itertools.pairwise(grid.t)):
        bar, bar2 = (schedule(torch.tensor(v, dtype=f64)).alpha ** 2 for v in (now, then))
        x0 = target.posterior_mean(x, bar.sqrt(), (1 - bar).sqrt())
        eps = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
        spread = eta * ((1 - bar2) / (1 - bar)).sqrt() * (1 - bar / bar2).sqrt()
        x = bar2.sqrt() * x0 + (1 - bar2 - spread**2).sqrt() * eps + spread * noise.normal(x, i + 1)
    assert (found - x).abs().max() < 1e-10


def test_ddim_and_ancestral_meet_at_the_ends():
    grid = Karras()(EDM(), 7)
    assert (draw(EDM(), DDIM(eta=1.0), grid, start(80)) - draw(EDM(), Ancestral(), grid, start(80))).abs().max() < 1e-10
    assert torch.equal(draw(EDM(), DDIM(), grid, start(80)), draw(EDM(), Euler(), grid, start(80)))


def test_churn_is_edms():
    """Karras et al. 2022, algorithm 2."""
    sampler, target, one = Churn(churn=3.0, low=0.1, high=30.0, spread=1.01), mixture(), torch.ones((), dtype=f64)
    grid, n = Karras()(EDM(), 8), 8
    sigma = torch.from_numpy(grid.table(EDM())[1])
    x, noise, leg = start(80), KeyedNoise(torch.arange(ROWS)), 0
    found = draw(EDM(), sampler, grid, x)
    for now, then in itertools.pairwise(sigma):
        gamma = min(3.0 / n, math.sqrt(2) - 1) if 0.1 <= now <= 30 else 0.0
        hat = now * (1 + gamma)
        if gamma:
            leg += 1
            x = x + (hat**2 - now**2).sqrt() * 1.01 * noise.normal(x, leg)
        leg += 1
        d = (x - target.posterior_mean(x, one, hat)) / hat
        euler = x + (then - hat) * d
        if then > 0:
            d = (d + (euler - target.posterior_mean(euler, one, then)) / then) / 2
        x = x + (then - hat) * d
    assert (found - x).abs().max() < 1e-9
    assert torch.equal(draw(EDM(), Churn(churn=0.0), grid, start(80)), draw(EDM(), Heun(), grid, start(80)))


def test_unipc_of_order_one_written_out():
    """Predict with x0 held, correct with the line through both ends from the same base."""
    sampler, schedule, target = PredictorCorrector(order=1), VE(0.02, 20.0), mixture()
    grid, one = LEVELS(schedule, 6), torch.ones((), dtype=f64)
    sigma = schedule(torch.from_numpy(grid.t)).sigma
    base, d_old = start(20), None
    x = base
    found = draw(schedule, sampler, grid, base)
    for i in range(6):
        d = target.posterior_mean(x, one, sigma[i])
        if i:
            h = math.log(sigma[i - 1] / sigma[i])
            at_end = 1 + math.expm1(-h) / h  # int_0^h e^-tau (1 - tau/h) dtau
            base = sigma[i] / sigma[i - 1] * base + at_end * d + (-math.expm1(-h) - at_end) * d_old
        h = math.log(sigma[i] / sigma[i + 1])
        x = sigma[i + 1] / sigma[i] * base - math.expm1(-h) * d
        d_old = d
    assert (found - x).abs().max() < 1e-10


def test_consistency_writes_noise_over_its_prediction():
    grid, target, noise = Karras()(EDM(), 4), mixture(), KeyedNoise(torch.arange(ROWS))
    sigma = torch.from_numpy(grid.table(EDM())[1])
    x = start(80)
    found = draw(EDM(), Consistency(), grid, x)
    for i in range(4):
        x = target.posterior_mean(x, torch.ones((), dtype=f64), sigma[i]) + sigma[i + 1] * noise.normal(x, i + 1)
    assert (found - x).abs().max() < 1e-10


# Laws.


class Units:
    """Noise whose draw is one in a row of its own: a sampler's response to each, one row per draw."""

    def __init__(self):
        self.rows = {}

    def normal(self, like, step, stream=0):
        found = torch.zeros_like(like)
        found[2 + self.rows.setdefault(step, len(self.rows))] = 1
        return found


def moments(sampler, n, schedule=None, mean=0.7, variance=0.3, rows=6000):
    """Return mean and variance at the end, exactly: on a Gaussian a sampler is affine in its start and its draws."""
    schedule = schedule or VE(0.02, 20.0)
    target = Gaussian(torch.tensor([mean], dtype=f64), torch.tensor([variance], dtype=f64))
    grid, process, noise = LEVELS(schedule, n), Process(schedule), Units()
    alpha, sigma = (float(v) for v in schedule(torch.tensor(grid.t[0], dtype=f64)))
    x = torch.full((rows, 1), alpha * mean, dtype=f64)
    x[1] += math.sqrt(alpha**2 * variance + sigma**2)
    out = sample(Exact(process, target.posterior_mean), process, sampler, grid, noise, x, x=x).flatten()
    used = out[1 : 2 + len(noise.rows)] - out[0]
    return float(out[0]), float((used**2).sum())


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (SingleStep(order=2, basis="x0", midpoint=True, eta=1.0), 2), (SingleStep(order=2, basis="x0", eta=1.0), 2),
        (SingleStep(order=2, basis="x0", share=1.0, eta=0.5), 2), (Multistep(order=2, eta=1.0, form="midpoint"), 2),
        (PredictorCorrector(order=2, corrector=1, eta=1.0), 2), (PredictorCorrector(order=1, eta=1.0), 1),
        (Langevin(), 1), (DDIM(eta=1.0), 1),
    ],
    ids=str,
)  # fmt: skip
def test_weak_order_without_monte_carlo(sampler, order):
    counts, errors = (32, 64, 128, 256), []
    for n in counts:
        mean, variance = moments(sampler, n)
        assert mean == pytest.approx(0.7, abs=1e-10)
        errors.append(abs(variance / (0.3 + 0.02**2) - 1))
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] >= order - 0.2, errors


def test_independent_increments_would_be_of_first_order():
    """What the correlated noise of the stages is for: with the stage's own noise left out the variance is worse."""

    class Broken(SingleStep):
        def column(self, legs, whole):
            rows = super().column(legs, whole)
            return [[row[0], row[1]._replace(draws=(2, 1))] if len(row) == 2 else row for row in rows]

    right, wrong = (
        [abs(moments(kind(order=2, basis="x0", midpoint=True, eta=1.0), n)[1] / 0.3004 - 1) for n in (64, 128)]
        for kind in (SingleStep, Broken)
    )
    assert wrong[1] > 5 * right[1] and wrong[0] / wrong[1] < 2.5 < right[0] / right[1]


@pytest.mark.parametrize(
    "sampler",
    [
        Churn(churn=40.0, low=0.05, high=15.0, spread=1.0), Restart(low=0.1, high=2.0, repeats=3, inside=16),
        Langevin(corrections=3), Resample(jump=4, repeats=3),
    ],
    ids=str,
)  # fmt: skip
def test_going_up_and_down_keeps_the_law(sampler):
    errors = [abs(moments(sampler, n)[1] / 0.3004 - 1) for n in (64, 256)]
    assert errors[1] < 0.03 and errors[1] < errors[0]
    assert moments(sampler, 64)[0] == pytest.approx(0.7, abs=1e-10)


def test_langevin_steps_have_the_variance_of_their_recursion():
    """On a point mass, in units of sigma^2: V <- q^2 V + 1 - q^2 down to q sigma, then (1 - delta)^2 V + 2 delta."""
    delta, q, variance = 2 * 0.3**2, (0.02 / 20) ** (1 / 40), 1.0
    for _ in range(40):
        variance = q**2 * variance + 1 - q**2
        for _ in range(5):
            variance = (1 - delta) ** 2 * variance + 2 * delta
    mean, found = moments(Langevin(corrections=5, snr=0.3), 40, mean=0.7, variance=1e-12)
    assert (mean, found) == (pytest.approx(0.7), pytest.approx(variance * 0.02**2, rel=1e-6))


def test_transition_composes():
    for schedule in (VPLinear(), EDM(), RectifiedFlow()):
        low, mid, high = (Node(*map(float, schedule(t)), 0.0) for t in (0.2, 0.5, 0.8))
        one, two, both = transition(low, mid), transition(mid, high), transition(low, high)
        assert two.a * one.a == pytest.approx(both.a)
        assert (two.a * one.c[0]) ** 2 + two.c[0] ** 2 == pytest.approx(both.c[0] ** 2)


def test_the_rows_of_a_restart():
    sampler = Restart(steps=18, low=0.3, high=2.0, repeats=2, inside=3)
    grid = Karras()(EDM(), 18)
    plan = sampler.plan(grid, Process(EDM()))
    ups = [i for i, row in enumerate(plan.rows) if row.t is None]
    assert len(ups) == 2 and plan.evaluations == 2 * 18 - 1 + 2 * 2 * 3
    sigma = EDM()(torch.tensor([float(row.t) for row in plan.rows if row.t is not None])).sigma
    assert sigma[0] == pytest.approx(80)
    after = EDM()(torch.tensor(float(plan.rows[ups[0] + 1].t))).sigma
    assert float(after) == pytest.approx(2.0)
    outside = Restart(low=100.0, high=200.0).plan(grid, Process(EDM()))
    assert outside.evaluations == Heun().plan(grid, Process(EDM())).evaluations


def test_the_rows_of_resampling():
    plan = Resample(jump=2, repeats=3).plan(Trailing()(VPCosine(), 5), Process(VPCosine()))
    times = [None if row.t is None else round(float(row.t), 6) for row in plan.rows]
    # From pure noise there is no way back up to it; the last step ends clean and is walked once.
    assert times == [1.0, 0.8, 0.6, 0.4, None, 0.6, 0.4, None, 0.6, 0.4, 0.2]


# There and back.


@pytest.mark.parametrize(
    ("sampler", "order"), [(Euler(), 1), (Heun(), 2), (Multistep(order=2), 2), (Multistep(order=3), 3)]
)
@pytest.mark.parametrize("schedule", [VE(0.02, 20.0), VPLinear()], ids=str)
def test_inversion_is_the_ode_backwards(schedule, sampler, order):
    process, errors = Process(schedule), []
    denoiser = Exact(process, mixture().posterior_mean)
    x = mixture().sample(3, ROWS)
    for n in (40, 160):
        grid = Exponential(sigma_min=0.02, sigma_max=20.0, end="min")(schedule, n)
        noise = invert(denoiser, process, sampler, grid, x)
        back = sample(denoiser, process, sampler, grid, KeyedNoise(torch.arange(ROWS)), x, x=noise)
        errors.append((back - x).abs().mean().item())
    assert errors[1] < errors[0] / 4 ** (order - 0.5) and errors[1] < 0.1


def test_inversion_of_a_gaussian_is_its_flow():
    schedule = VPLinear()
    target = Gaussian(torch.tensor([0.7], dtype=f64), torch.tensor([0.3], dtype=f64))
    grid = Exponential(sigma_min=0.02, sigma_max=100.0)(schedule, 60)
    x = torch.tensor([[0.1], [1.5]], dtype=f64)
    found = invert(Exact(Process(schedule), target.posterior_mean), Process(schedule), Multistep(order=3), grid, x)
    ends = [schedule(torch.tensor(t, dtype=f64)) for t in (grid.t[-2], grid.t[0])]
    assert (found - target.flow(x, *ends)).abs().max() < 1e-3


def test_inversion_errors():
    denoiser, process, x = Exact(Process(EDM()), mixture().posterior_mean), Process(EDM()), start(1)
    with pytest.raises(ConfigError, match="Ancestral draws noise and cannot be inverted"):
        invert(denoiser, process, Ancestral(), Karras()(EDM(), 5), x)
    with pytest.raises(ConfigError, match="no way back"):
        invert(denoiser, process, Restart(low=0.1, high=1.0), Karras()(EDM(), 9), x)
    with pytest.raises(ConfigError, match="no way back"):
        invert(denoiser, process, Euler(), Karras()(EDM(), 1), x)


# Bad arguments.


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Multistep(form="half"), "sampler.form=half"), (lambda: Multistep(order=3, form="midpoint"), "order 2"),
        (lambda: Multistep(start="slow"), "sampler.start=slow"), (lambda: PredictorCorrector(order=4), "order=4"),
        (lambda: PredictorCorrector(corrector=7), "corrector=7"), (lambda: SingleStep(order=True), "order=True"),
        (lambda: SingleStep(share=0.0), "share=0.0"), (lambda: SingleStep(order=3, midpoint=True), "midpoint"),
        (lambda: SingleStep(order=3, basis="x0", eta=1.0), "eta=1.0"), (lambda: SingleStep(basis="nu"), "basis=nu"),
        (lambda: DDIM(eta=1.5), "eta=1.5"), (lambda: DDIM(eta=math.nan), "eta=nan"),
        (lambda: Churn(churn=-1.0), "churn >= 0"), (lambda: Churn(low=2.0, high=1.0), "low < high"),
        (lambda: Restart(low=1.0, high=0.5), "low < high"), (lambda: Restart(repeats=0), "repeats=0"),
        (lambda: Restart(inside=0), "inside=0"), (lambda: Resample(jump=0), "jump=0"),
        (lambda: Langevin(corrections=-1), "corrections=-1"), (lambda: Langevin(snr=0.9), "snr=0.9"),
        (lambda: Adaptive(limit=0), "limit=0"), (lambda: Consistency(steps=0), "steps=0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", [Churn(), Restart(), Resample()], ids=str)
def test_ways_up_need_one_time(sampler):
    grid = Karras()(EDM(), 6)
    with pytest.raises(ConfigError, match="one time for all tokens"):
        draw(EDM(), sampler, Grid(np.repeat(grid.t[:, None], 2, 1), grid.clean), start(80))


def test_order_falls_where_there_are_too_few_steps():
    """A grid of one or two steps is walked at the order it allows."""
    for n, order in itertools.product((1, 2), (2, 3)):
        for kind in (Multistep(order=order, start="plain"), PredictorCorrector(order=order)):
            assert torch.isfinite(draw(EDM(), kind, Karras()(EDM(), n), start(80))).all()
    one = Karras(end="min")(EDM(), 1)
    plain = draw(EDM(), Multistep(order=3, start="plain"), one, start(80))
    assert (plain - draw(EDM(), Euler(), one, start(80))).abs().max() < 1e-10


X = torch.zeros(3, 2, dtype=f64)
FIELDS = {"pos": Process(EDM()), "mass": Process(EDM())}


@pytest.mark.parametrize(
    ("process", "like", "x", "seeds", "text"),
    [
        (Process(EDM()), X, X.clone().fill_(math.nan), 3, "NaN or infinite"),
        (Process(EDM()), X, torch.zeros(3, 4, dtype=f64), 3, r"a start of shape \(3, 4\)"),
        (Process(EDM()), X, None, 5, "5 seeds for 3 rows"),
        (FIELDS, {"pos": X, "mas": X}, None, 3, "field 'mass' is in the process only; did you mean 'mas'"),
        (FIELDS, {"pos": X, "mass": X, "spin": X}, None, 3, "field 'spin' is in the state only"),
        (FIELDS, X, None, 3, "has no named fields, but the process has pos, mass"),
        (Process(EDM()), {"pos": X}, None, 3, "has named fields, but the process has none"),
        (FIELDS, {"pos": X, "mass": X}, {"pos": X}, 3, "field 'mass' is in the process only"),
    ],
)
def test_what_does_not_fit_is_refused(process, like, x, seeds, text):
    denoiser = Exact(Process(EDM()), mixture().posterior_mean)
    with pytest.raises(ConfigError, match=text) as caught:
        sample(denoiser, process, Euler(), Karras()(EDM(), 4), KeyedNoise(torch.arange(seeds)), like, x=x)
    assert "\n" not in str(caught.value)
