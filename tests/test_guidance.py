"""Guidance: each formula against its closed form, its interval, and that a scale of one is nothing."""

from __future__ import annotations

import copy
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from suffuse.build import build
from suffuse.denoiser import Denoiser, EDMPrecond, Exact, Preconditioned, Prediction, eps_of, flow_of, v_of
from suffuse.errors import CheckpointError, ConfigError
from suffuse.grid import Exponential, Grid, Karras, Trailing
from suffuse.guidance import (
    APG,
    CFG,
    CFGZero,
    Classifier,
    ClassifierFree,
    Composed,
    Energy,
    Guidance,
    Linear,
    Optimal,
    Perturbed,
    PlusPlus,
    Projected,
    Rescaled,
    Setting,
    Still,
    Weaker,
)
from suffuse.guidance.momentum import Momentum
from suffuse.guidance.perturbed import named_layers
from suffuse.model import Facts, Model, Recipe
from suffuse.nn import DiT, UNet
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian, Process
from suffuse.sampler import Euler, Heun, Multistep, sample
from suffuse.schedule import EDM, VE, RectifiedFlow, VPCosine, VPLinear
from suffuse.state import Dense
from suffuse.targets import Gaussian as TargetGaussian
from suffuse.targets import GaussianMixture
from torch.utils._python_dispatch import TorchDispatchMode

f64 = torch.float64


class Shifted(Denoiser):
    """x0 = x / 2 + vector, counting its calls."""

    def __init__(self, process=None):
        super().__init__()
        self.process, self.calls = process or Gaussian(EDM()), 0

    def forward(self, x, t, cond=None):
        self.calls += 1
        if isinstance(x, dict):
            return Prediction({name: leaf / 2 + cond["vector"] for name, leaf in x.items()})
        vector = 0 if cond is None else cond["vector"]
        return Prediction(x / 2 + (vector if x.ndim == 2 or cond is None else vector[..., None]))


X = torch.randn(3, 4, dtype=f64, generator=torch.Generator().manual_seed(0))
COND = {"vector": torch.arange(12.0, dtype=f64).reshape(3, 4)}
NULL = {"vector": -torch.ones(3, 4, dtype=f64)}


def test_formula_in_one_call():
    inner = Shifted()
    found = ClassifierFree(inner, 2.5, NULL)(X, 0.5, COND).x0
    assert inner.calls == 1
    assert (found - (X / 2 + NULL["vector"] + 2.5 * (COND["vector"] - NULL["vector"]))).abs().max() < 1e-14
    assert (ClassifierFree(inner, 0.0, NULL)(X, 0.5, COND).x0 - (X / 2 - 1)).abs().max() < 1e-14
    one_row = ClassifierFree(inner, 2.5, {"vector": NULL["vector"][:1]})(X, 0.5, COND).x0
    assert torch.equal(one_row, found)


def test_scale_one_is_none():
    process = Gaussian(EDM())
    grid, noise, like = Karras()(EDM(), 6), KeyedNoise(torch.arange(3)), torch.empty(3, 4, dtype=f64)
    plain = sample(Shifted(), process, Multistep(), grid, noise, like, COND)
    guided = sample(ClassifierFree(Shifted(), 1.0, NULL), process, Multistep(), grid, noise, like, COND)
    assert torch.equal(plain, guided)
    near = sample(ClassifierFree(Shifted(), 1 + 1e-9, NULL), process, Multistep(), grid, noise, like, COND)
    assert 0 < (near - plain).abs().max() < 1e-6


def test_interval_is_in_log_snr():
    times = torch.linspace(0.02, 0.98, 25, dtype=f64)
    for schedule in (EDM(), VE()):
        inner = Shifted(Gaussian(schedule))
        guided = ClassifierFree(inner, 3.0, NULL, (-2.0, 1.5))
        for t in times.tolist():
            acts = -2.0 <= float(schedule.lam(t)) <= 1.5
            wanted = X / 2 + (NULL["vector"] + 3 * (COND["vector"] - NULL["vector"]) if acts else COND["vector"])
            by_float, by_tensor = guided(X, t, COND).x0, guided(X, torch.full((3,), t, dtype=f64), COND).x0
            by_scalar = guided(X, torch.tensor(t, dtype=f64), COND).x0
            for found in (by_float, by_tensor, by_scalar):
                assert (found - wanted).abs().max() < 1e-14


def test_open_sides():
    schedule = EDM()
    low, high = (ClassifierFree(Shifted(), 3.0, NULL, i) for i in ((None, 0.0), (0.0, None)))
    for t in (0.1, 0.9):
        plain, below = X / 2 + COND["vector"], float(schedule.lam(t)) <= 0
        assert (low(X, t, COND).x0 - plain).abs().max().item() > 1 if below else torch.equal(low(X, t, COND).x0, plain)
        assert torch.equal(high(X, t, COND).x0, plain) if below else (high(X, t, COND).x0 - plain).abs().max() > 1


def test_outside_the_interval_the_denoiser_sees_one_batch():
    rows = []

    class Counting(Shifted):
        def forward(self, x, t, cond=None):
            rows.append(len(x))
            return super().forward(x, t, cond)

    guided = ClassifierFree(Counting(), 3.0, NULL, (0.0, 20.0))
    guided(X, 0.99, COND)
    guided(X, 0.01, COND)
    assert rows == [3, 6]


def test_per_token_times_guide_per_token():
    process = Gaussian(EDM(), Dense((2,)))
    guided = ClassifierFree(Shifted(process), 3.0, NULL, (0.0, math.inf))
    x = torch.zeros(3, 4, 2, dtype=f64)
    t = torch.tensor([[0.01, 0.99]], dtype=f64).expand(3, -1)
    found = guided(x, t, COND).x0
    assert (found[..., 0] - (NULL["vector"] + 3 * (COND["vector"] - NULL["vector"]))).abs().max() < 1e-14
    assert (found[..., 1] - COND["vector"]).abs().max() < 1e-14


def test_named_fields_and_no_condition():
    inner = Shifted({"a": Gaussian(EDM()), "b": Gaussian(EDM())})
    found = ClassifierFree(inner, 2.0, NULL)({"a": X, "b": 2 * X}, 0.5, COND).x0
    guided = NULL["vector"] + 2 * (COND["vector"] - NULL["vector"])
    assert (found["b"] - (X + guided)).abs().max() < 1e-13
    assert torch.equal(ClassifierFree(Shifted(), 2.0, NULL)(X, 0.5).x0, X / 2)


@pytest.mark.parametrize(
    ("scale", "interval", "text"), [(-1.0, (None, None), "scale=-1.0"), (2.0, (1.0, 0.0), "interval")]
)
def test_bad_arguments_are_one_line(scale, interval, text):
    with pytest.raises(ConfigError, match=text) as caught:
        ClassifierFree(Shifted(), scale, NULL, interval)
    assert "\n" not in str(caught.value)


# Gaussian classes: the guided law in closed form.


class Classes(Denoiser):
    """The exact denoiser of N(vector, variance): one class per row's condition."""

    def __init__(self, process, variance=0.3):
        super().__init__()
        self.process, self.variance, self.rows = process, variance, []

    def forward(self, x, t, cond=None):
        self.rows.append(len(x))
        alpha, sigma = (self.process.space.expand(torch.as_tensor(v), x) for v in self.process.schedule(t))
        mean = cond["vector"]
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return Prediction(mean + gain * (x - alpha * mean))


MU = torch.tensor([0.8, -0.4], dtype=f64)
OF_TOKENS = {"confidence", "mask_ancestral", "mask_cached", "tau_leaping"}
SAMPLERS = sorted({p.stem for p in (Path(__file__).parents[1] / "conf" / "sampler").glob("*.yaml")} - OF_TOKENS)


def solver(name, steps=5):
    node = yaml.safe_load((Path(__file__).parents[1] / "conf" / "sampler" / f"{name}.yaml").read_text())
    return build({**node, "steps": steps}, "sampler")


def law(denoiser, process, cond, mean):
    """Return how far draws are from where the probability-flow ODE of N(mean, 0.3 I) leads."""
    grid = Exponential()(process.schedule, 64)
    alpha, sigma = process.schedule(float(grid.t[0]))
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=f64) * sigma
    out = sample(
        denoiser, process, Multistep(order=3), grid, KeyedNoise(torch.arange(2)), x,
        {"vector": cond.expand(2, -1)}, x=x,
    )  # fmt: skip
    zero = torch.zeros((), dtype=f64)
    wanted = TargetGaussian(mean, torch.full((2,), 0.3, dtype=f64)).flow(x, (alpha, sigma), (zero + 1, zero))
    return (out - wanted).abs().max()


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), RectifiedFlow()], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classes_of_one_variance_move_to_scale_times_their_mean(schedule, scale):
    """N(mu, c) to the power w times N(0, c) to the power 1 - w is N(w mu, c) at every level: so is what is drawn."""
    process = Gaussian(schedule)
    null = {"vector": torch.zeros(1, 2, dtype=f64)}
    assert law(ClassifierFree(Classes(process), scale, null), process, MU, scale * MU) < 1e-3


def test_composed_means_add():
    process, other = Gaussian(EDM()), torch.tensor([[0.5, 1.5]], dtype=f64)
    null = {"vector": torch.zeros(1, 2, dtype=f64)}
    guided = Composed(Classes(process), 1.5, [({"vector": other}, 2.0), ({"vector": -other}, -0.5)], null)
    assert law(guided, process, MU, 1.5 * MU + 2.5 * other[0]) < 1e-3
    assert set(guided.denoiser.rows) == {8}


def test_composed_alone_is_classifier_free_and_one_is_none():
    inner = Shifted()
    assert torch.equal(
        Composed(inner, 2.5, [], NULL)(X, 0.5, COND).x0, ClassifierFree(inner, 2.5, NULL)(X, 0.5, COND).x0
    )
    assert torch.equal(Composed(inner, 1.0, [(NULL, 0.0)], NULL)(X, 0.5, COND).x0, inner(X, 0.5, COND).x0)
    at_one = Composed(inner, 1.0, [(COND, 0.5)], NULL)(X, 0.5, COND).x0
    assert (at_one - (X / 2 + COND["vector"] + 0.5 * (COND["vector"] - NULL["vector"]))).abs().max() < 1e-13


def test_composed_outside_the_interval_follows_the_first_alone():
    guided = Composed(Shifted(), 3.0, [(NULL, 2.0), ({"vector": 2 * COND["vector"]}, 1.0)], NULL, (0.0, None))
    t = torch.tensor([0.99, 0.01, 0.99], dtype=f64)
    found, plain = guided(X, t, COND).x0, X / 2 + COND["vector"]
    inside = X / 2 + NULL["vector"] + 3 * (COND["vector"] - NULL["vector"]) + 2 * COND["vector"] - NULL["vector"]
    assert (found - torch.stack([plain[0], inside[1], plain[2]])).abs().max() < 1e-13
    assert torch.equal(guided(X, 0.99, COND).x0, plain)


def test_different_variances_are_the_power_of_the_densities():
    """x0 from the gradient of w log p_t(x|c) + (1 - w) log p_t(x), by autograd on the densities."""
    process, w, t = Gaussian(VPLinear()), 3.0, 0.4
    alpha, sigma = process.schedule(t)
    given = TargetGaussian(MU, torch.tensor([0.2, 0.5], dtype=f64))
    whole = TargetGaussian(torch.zeros(2, dtype=f64), torch.tensor([1.0, 0.7], dtype=f64))

    class Pair(Denoiser):
        def forward(self, x, t, cond=None):
            own, null = (target.posterior_mean(x, alpha, sigma) for target in (given, whole))
            return Prediction(torch.where(cond["vector"] > 0, own, null))

    pair = Pair()
    pair.process = process
    x = torch.randn(5, 2, dtype=f64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    log_density = w * given.log_prob(x, alpha, sigma) + (1 - w) * whole.log_prob(x, alpha, sigma)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    wanted = (x + sigma**2 * score) / alpha
    ones = {"vector": torch.ones(5, 1, dtype=f64)}
    found = ClassifierFree(pair, w, {"vector": -torch.ones(1, 1, dtype=f64)})(x.detach(), t, ones).x0
    assert (found - wanted).abs().max() < 1e-12


# Rules.


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(4)
    x, given, weak = (torch.randn(3, 2, 5, dtype=f64, generator=generator) for _ in range(3))
    return x, given + 0.5, weak


class Fixed(Denoiser):
    """Two answers, whatever is asked."""

    def __init__(self, process, given, weak):
        super().__init__()
        self.process, self.given, self.answers = process, given, torch.cat([given, weak])

    def forward(self, x, t, cond=None):
        return Prediction(self.answers if len(x) > len(self.given) else self.given)


def guide_with(rule, predictions, scale=3.0, t=0.4, schedule=None):
    x, given, weak = predictions
    fixed = Fixed(Gaussian(schedule or VPLinear()), given, weak)
    cond = {"vector": torch.zeros(3, 1, dtype=f64)}
    return ClassifierFree(fixed, scale, cond, (None, None), rule)(x, t, cond).x0


def in_quantity(quantity, x, x0, at):
    return {"x0": lambda x, x0, at: x0, "eps": eps_of, "v": v_of, "flow": flow_of}[quantity](x, x0, at)


@pytest.mark.parametrize("quantity", ["x0", "eps", "v", "flow"])
@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), RectifiedFlow()], ids=str)
def test_rescaled_is_eq_15_and_16_in_its_quantity(predictions, quantity, schedule):
    x, given, weak = predictions
    at = schedule(0.4)
    found = in_quantity(quantity, x, guide_with(Rescaled(quantity, 0.7), predictions, schedule=schedule), at).numpy()
    pos, neg = (in_quantity(quantity, x, q, at).numpy() for q in (given, weak))
    for row in range(3):
        cfg = neg[row] + 3.0 * (pos[row] - neg[row])
        wanted = 0.7 * cfg * pos[row].std() / cfg.std() + 0.3 * cfg
        assert np.abs(found[row] - wanted).max() < 1e-10 * np.abs(wanted).max()


def test_rules_differ_between_quantities_but_for_the_linear(predictions):
    linear = guide_with(Linear(), predictions)
    for rule in (Rescaled, Projected, Optimal):
        found = [guide_with(rule(quantity=q), predictions) for q in ("x0", "eps", "v", "flow")]
        for a, b in itertools.combinations(found, 2):
            assert (a - b).abs().max() > 0.1
    neutral = [Rescaled(q, 0.0) for q in ("x0", "eps", "v", "flow")] + [Projected(q, 1.0) for q in ("x0", "eps", "v")]
    for rule in neutral:
        assert (guide_with(rule, predictions) - linear).abs().max() < 1e-12


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_projected_by_hand(predictions, threshold):
    _, given, weak = (value.flatten(1).numpy() for value in predictions)
    found = guide_with(Projected(parallel=0.2, threshold=threshold), predictions).flatten(1).numpy()
    for row in range(3):
        d = given[row] - weak[row]
        if threshold is not None:
            d = d * min(1.0, threshold / np.linalg.norm(d))
        unit = given[row] / np.linalg.norm(given[row])
        along = (d @ unit) * unit
        assert np.abs(found[row] - (given[row] + 2.0 * (d - along + 0.2 * along))).max() < 1e-12


def test_projected_without_parallel_is_orthogonal_and_within_its_norm(predictions):
    given = predictions[1]
    moved = guide_with(Projected(threshold=0.5), predictions, scale=2.0) - given
    assert (moved * given).flatten(1).sum(1).abs().max() < 1e-12
    assert moved.flatten(1).norm(dim=1).max() <= 0.5 + 1e-12


def test_optimal_scale_is_least_squares(predictions):
    x, given, weak = predictions
    at = VPLinear()(0.4)
    found = in_quantity("flow", x, guide_with(Optimal(), predictions), at).flatten(1).numpy()
    g, u = (in_quantity("flow", x, q, at).flatten(1).numpy() for q in (given, weak))
    for row in range(3):
        (s,), *_ = np.linalg.lstsq(u[row][:, None], g[row], rcond=None)
        assert np.abs(found[row] - (3.0 * g[row] - 2.0 * s * u[row])).max() < 1e-11


def test_a_rule_per_token_time_is_that_of_each_level():
    process = Gaussian(RectifiedFlow(), Dense((2,)))
    x = torch.randn(2, 3, 2, dtype=f64, generator=torch.Generator().manual_seed(3))
    given, weak = torch.ones(2, 3, 2, dtype=f64), x / 3
    cond = {"vector": torch.zeros(2, 1, dtype=f64)}
    guided = ClassifierFree(Fixed(process, given, weak), 3.0, cond, (None, None), Rescaled("v"))
    t = torch.tensor([[0.3, 0.6]], dtype=f64).expand(2, -1)
    found = guided(x, t, cond).x0
    alpha, sigma = (value[:, None] for value in process.schedule(t))
    v = [alpha * (x - alpha * q) / sigma - sigma * q for q in (given, weak)]
    cfg = v[1] + 3 * (v[0] - v[1])
    ratio = v[0].flatten(1).std(1, correction=0) / cfg.flatten(1).std(1, correction=0)
    cfg = cfg * (0.7 * ratio + 0.3)[:, None, None]
    wanted = (alpha * x - sigma * cfg) / (alpha**2 + sigma**2)
    assert (found - wanted).abs().max() < 1e-12


# Momentum.


def test_momentum_is_the_recursion_of_one_draw():
    deltas = {t: torch.full((2, 3), float(i + 1), dtype=f64) for i, t in enumerate((0.9, 0.6, 0.3))}
    process, beta = Gaussian(EDM()), -0.5
    wanted = [1.0, 2.0 + beta, 3.0 + beta * (2.0 + beta)]
    for times in (lambda t: t, lambda t: torch.full((2,), t, dtype=f64)):
        momentum = Momentum(beta)
        for _ in range(2):  # a second draw begins anew, and the same time again takes the place of the first
            for (t, delta), value in zip(deltas.items(), wanted, strict=True):
                momentum.add(times(t), 7 * delta, process)
                assert (momentum.add(times(t), delta, process) - value).abs().max() < 1e-14
    rows = Momentum(beta)
    rows.add(torch.tensor([0.9, 0.2]), torch.ones(2, 3), process)
    assert rows.add(torch.tensor([0.5, 0.5]), torch.ones(2, 3), process)[:, 0].tolist() == [0.5, 1.0]
    assert Momentum(beta).add(0.5, {"a": torch.ones(2)}, {"a": process})["a"].tolist() == [1.0, 1.0]
    assert rows.add(0.4, torch.ones(4, 3), process).unique().tolist() == [1.0]  # other rows: another draw


def test_momentum_depends_on_the_own_draw_and_row_alone():
    process = Gaussian(EDM())
    guided = ClassifierFree(
        Classes(process), 4.0, {"vector": torch.zeros(1, 2, dtype=f64)}, rule=Projected(momentum=-0.7)
    )
    grid, noise = Karras()(EDM(), 6), KeyedNoise(torch.arange(3))
    cond = {"vector": MU * torch.arange(1.0, 4.0, dtype=f64)[:, None]}
    like = torch.empty(3, 2, dtype=f64)
    first = sample(guided, process, Heun(), grid, noise, like, cond)
    assert torch.equal(sample(guided, process, Heun(), grid, noise, like, cond), first)
    alone = sample(
        guided, process, Heun(), grid, KeyedNoise(torch.arange(3)[1:2]), like[:1], {"vector": cond["vector"][1:2]}
    )
    assert (alone - first[1:2]).abs().max() < 1e-12
    without = ClassifierFree(guided.denoiser, 4.0, guided.null, rule=Projected())
    assert (sample(without, process, Heun(), grid, noise, like, cond) - first).abs().max() > 1e-3


# CFG++ and still first steps.


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), VPCosine(), RectifiedFlow()], ids=str)
def test_plus_plus_is_ddim_with_the_guided_x0_and_the_unconditional_noise(schedule):
    process, grid, scale = Gaussian(schedule), Trailing()(schedule, 7), 0.6
    if isinstance(schedule, EDM):
        grid = Karras()(schedule, 7)
    inner, cond = Classes(process), {"vector": MU.expand(3, -1)}
    null = {"vector": torch.zeros(3, 2, dtype=f64)}
    alpha, sigma, _ = grid.table(schedule)
    x = sigma[0] * torch.randn(3, 2, dtype=f64, generator=torch.Generator().manual_seed(5))
    found = sample(
        PlusPlus(inner, scale, null, grid), process, Euler(), grid, KeyedNoise(torch.arange(3)), x, cond, x=x
    )
    for i in range(7):
        t = float(grid.t[i])
        given, without = inner(x, t, cond).x0, inner(x, t, null).x0
        eps = (x - alpha[i] * without) / sigma[i]
        x = alpha[i + 1] * (without + scale * (given - without)) + sigma[i + 1] * eps
    assert (found - x).abs().max() < 1e-11


def test_plus_plus_scales_by_float_tensor_and_field():
    grid = Karras()(EDM(), 5)
    guided = PlusPlus(Shifted({"a": Gaussian(EDM()), "b": Gaussian(EDM())}), 0.5, NULL, grid)
    lam = grid.table(EDM())[2]
    for i in range(5):
        wanted = 0.5 / (1 - math.exp(lam[i] - lam[i + 1]))
        t = float(grid.t[i])
        assert guided.scale_at(t)["b"] == pytest.approx(wanted, rel=1e-12)
        assert guided.scale_at(t * (1 - 1e-9) if i else t)["a"] == pytest.approx(wanted, rel=1e-12)
        assert guided.scale_at(torch.full((2, 1), t, dtype=f64))["a"].tolist() == [[pytest.approx(wanted)]] * 2
    assert guided.scale_at(float(grid.t[4]))["a"] == 0.5
    single = PlusPlus(Shifted(), 0.5, NULL, grid)
    for t in (0.7, torch.full((3,), 0.7, dtype=f64)):
        w = float(torch.as_tensor(single.scale_at(t), dtype=f64).flatten()[0])
        assert (
            single(X, t, COND).x0 - X / 2 - NULL["vector"] - w * (COND["vector"] - NULL["vector"])
        ).abs().max() < 1e-12


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), RectifiedFlow()], ids=str)
def test_still_steps_do_not_move_the_flow(schedule):
    process, grid = Gaussian(schedule), Exponential(sigma_max=50.0)(schedule, 8)
    inner = Shifted(process)
    guided = CFGZero(2.0, still=3)(inner, Setting(grid, NULL))
    assert isinstance(guided, Still)
    seen = []
    x = torch.randn(3, 4, dtype=f64, generator=torch.Generator().manual_seed(5))
    noise = KeyedNoise(torch.arange(3))
    sample(guided, process, Euler(), grid, noise, x, COND, callback=lambda i, n, x, x0: seen.append(x.clone()), x=x)
    alpha, sigma, _ = grid.table(schedule)
    start = x / (alpha[0] + sigma[0])
    for i, state in enumerate(seen[:3]):
        assert (state / (alpha[i + 1] + sigma[i + 1]) - start).abs().max() < 1e-12
    assert (seen[3] / (alpha[4] + sigma[4]) - start).abs().max() > 1e-4
    assert inner.calls == 5
    t = torch.tensor([float(grid.t[2]), float(grid.t[3]), float(grid.t[0])], dtype=f64)
    both, free = guided(x, t, COND).x0, guided.denoiser(x, t, COND).x0
    scales = [sum(map(float, schedule(value))) for value in t]
    assert (both[0] - x[0] / scales[0]).abs().max() < 1e-12 and (both[2] - x[2] / scales[2]).abs().max() < 1e-12
    assert torch.equal(both[1], free[1])


# Autoguidance.


def test_weaker_model_is_moved_away_from():
    inner, worse = Shifted(), Shifted()
    guided = Weaker(inner, 2.5, worse, {"vector": NULL["vector"]})
    found = guided(X, 0.5, COND).x0
    assert (found - (X / 2 + NULL["vector"] + 2.5 * (COND["vector"] - NULL["vector"]))).abs().max() < 1e-13
    assert (inner.calls, worse.calls) == (1, 1)
    assert torch.equal(Weaker(inner, 2.5, worse)(X, 0.5, COND).x0, inner(X, 0.5, COND).x0)
    assert torch.equal(Weaker(inner, 1.0, worse, NULL)(X, 0.5, COND).x0, inner(X, 0.5, COND).x0)
    with pytest.raises(ConfigError, match=r"the weaker model's process .* same process and schedule"):
        Weaker(inner, 2.0, Shifted(Gaussian(VE())))


# Perturbed networks.


def randomised(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def transformer():
    return randomised(DiT((2, 4, 4), width=16, depth=3, heads=2))


def of(network):
    return Preconditioned(network, Gaussian(EDM()), EDMPrecond(0.5))


IMAGES = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("how", ["attention", "skip"])
def test_perturbed_is_the_network_rebuilt(transformer, how):
    worse = copy.deepcopy(transformer)
    if how == "skip":
        worse.blocks = torch.nn.ModuleList([worse.blocks[0], worse.blocks[2]])
        layers = ["blocks.1"]
    else:
        layers = ["blocks.1.attention", "blocks.2.attention"]
        for block in worse.blocks[1:]:
            attention = block.attention
            # With the identity for a map, each token is its own value through the output layer.
            attention.forward = lambda x, table, mask=None, a=attention: a.out(a.qkv(x)[..., -16:])
    inner = of(transformer)
    before, spoilt = inner(IMAGES, 0.6).x0, of(worse)(IMAGES, 0.6).x0
    assert (before - spoilt).abs().max() > 1e-2
    guided = Perturbed(inner, 3.0, layers, how)
    assert (guided(IMAGES, 0.6).x0 - (before + 2 * (before - spoilt))).abs().max() < 1e-5
    assert torch.equal(inner(IMAGES, 0.6).x0, before)  # nothing is left behind
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in transformer.modules())
    assert torch.equal(Perturbed(inner, 1.0, layers, how)(IMAGES, 0.6).x0, before)
    outside = Perturbed(inner, 3.0, layers, how, interval=(10.0, None))
    assert torch.equal(outside(IMAGES, 0.6).x0, before)
    t = torch.tensor([0.2, 0.9], dtype=f64)
    mixed = Perturbed(inner, 3.0, layers, how, interval=(0.0, None))(IMAGES, t).x0
    assert torch.equal(mixed[1], inner(IMAGES, t).x0[1]) and not torch.equal(mixed[0], inner(IMAGES, t).x0[0])


def test_perturbed_with_classifier_free_guidance():
    network = randomised(DiT((2, 4, 4), cond_dim=3, width=16, depth=3, heads=2))
    inner, cond, null = of(network), {"vector": torch.ones(2, 3)}, {"vector": -torch.ones(1, 3)}
    given, without = inner(IMAGES, 0.6, cond).x0, inner(IMAGES, 0.6, {"vector": -torch.ones(2, 3)}).x0
    spoilt = given - (Perturbed(inner, 2.0, ["blocks.1"], "skip")(IMAGES, 0.6, cond).x0 - given)
    found = Perturbed(inner, 3.0, ["blocks.1"], "skip", null, 1.5)(IMAGES, 0.6, cond).x0
    assert (found - (given + 2 * (given - spoilt) + 0.5 * (given - without))).abs().max() < 1e-4
    free = Perturbed(inner, 1.0, ["blocks.1"], "skip", null, 1.5)(IMAGES, 0.6, cond).x0
    assert (free - ClassifierFree(inner, 1.5, null)(IMAGES, 0.6, cond).x0).abs().max() < 1e-5


def test_the_middle_layers_of_a_unet_keep_their_shape():
    network = UNet((1, 8, 8), width=8, blocks=1)
    x = torch.randn(2, 1, 8, 8)
    for how in ("attention", "skip"):
        guided = Perturbed(of(randomised(network)), 2.0, None, how)
        assert guided(x, 0.5).x0.isfinite().all(), guided.layers


def test_perturbed_runs_a_compiled_network_uncompiled(transformer):
    network = copy.deepcopy(transformer)
    wanted = Perturbed(of(network), 3.0, ["blocks.1"], "skip")(IMAGES, 0.6).x0
    network.compile(backend="eager")
    inner = of(network)
    inner(IMAGES, 0.6)
    assert (Perturbed(inner, 3.0, ["blocks.1"], "skip")(IMAGES, 0.6).x0 - wanted).abs().max() < 1e-5


def test_layers_are_chosen_and_matched(transformer):
    assert named_layers(transformer, None) == ("blocks.1.attention",)
    assert named_layers(transformer, None, "skip") == ("blocks.1",)
    assert named_layers(transformer, ["blocks.*.attention"]) == tuple(f"blocks.{i}.attention" for i in range(3))
    around = Perturbed(ClassifierFree(of(transformer), 2.0, {}), 2.0)
    assert around.layers == ("blocks.1.attention",)


@pytest.mark.parametrize(
    ("layers", "how", "text"),
    [
        (["blocks.1.atention"], "attention", "no module 'blocks.1.atention'; did you mean 'blocks.1.attention'"),
        (["nothing"], "skip", "no module 'nothing'; its parts: blocks, embed, enter"),
        ([], "skip", "must be a list of module paths"), ("blocks.1", "skip", "must be a list of module paths"),
        (None, "swirl", "how=swirl"),
    ],
)  # fmt: skip
def test_bad_layers_are_one_line(transformer, layers, how, text):
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        Perturbed(of(transformer), 2.0, layers, how)
    assert "\n" not in str(caught.value)


def test_layers_that_cannot_be_perturbed(transformer):
    with pytest.raises(ConfigError, match=r"blocks.1.feed calls no scaled_dot_product_attention"):
        Perturbed(of(transformer), 2.0, ["blocks.1.feed"])(IMAGES, 0.5)
    with pytest.raises(ConfigError, match="enter cannot be skipped"):
        Perturbed(of(transformer), 2.0, ["enter"], "skip")(IMAGES, 0.5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in transformer.modules())
    with pytest.raises(ConfigError, match="has no attention layers to choose from"):
        Perturbed(of(torch.nn.Linear(2, 2)), 2.0)


# Energies.


def two_classes():
    generator = torch.Generator().manual_seed(7)
    means = torch.randn(2, 3, dtype=f64, generator=generator)
    variances, weights = torch.tensor([0.2, 0.6], dtype=f64), torch.tensor([0.3, 0.7], dtype=f64)
    return GaussianMixture(means, variances, weights)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), RectifiedFlow()], ids=str)
def test_classifier_guidance_is_bayes(schedule, inference):
    """With p(c | x_t) of a mixture's components the guided denoiser is that of the component."""
    target, process = two_classes(), Gaussian(schedule)
    alone = TargetGaussian(target.means[0], target.variances[0].expand(3))

    def log_prob(x, t, cond):
        at = process.schedule(t)
        return target._joint(
            x, at.alpha.reshape(-1, 1), at.alpha.reshape(-1, 1) ** 2 * target.variances + at.sigma.reshape(-1, 1) ** 2
        ).log_softmax(-1)[:, 0]

    x = torch.randn(4, 3, dtype=f64, generator=torch.Generator().manual_seed(8))
    inner = Exact(process, target.posterior_mean)
    for t in (0.3, 0.7):
        with torch.inference_mode(inference):
            found = Classifier(inner, log_prob)(x.clone(), t).x0
            rows = Classifier(inner, log_prob)(x.clone(), torch.full((4,), t, dtype=f64)).x0
        wanted = alone.posterior_mean(x, *schedule(t))
        assert (found - wanted).abs().max() < 1e-11 and (rows - wanted).abs().max() < 1e-11
    with torch.inference_mode(inference):
        assert torch.equal(Classifier(inner, log_prob, 0.0)(x, 0.3).x0, inner(x, 0.3).x0)
        assert torch.equal(Classifier(inner, log_prob, 1.0, (50.0, None))(x, 0.3).x0, inner(x, 0.3).x0)


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), RectifiedFlow()], ids=str)
def test_a_linear_energy_shifts_a_gaussian_by_its_covariance(schedule, through):
    """p(x0) exp(w c.x0) of N(m, C) is N(m + w C c, C): in closed form at every level."""
    variance = torch.tensor([0.2, 0.9, 0.5], dtype=f64) if through else torch.full((3,), 0.49, dtype=f64)
    mean, c = torch.tensor([0.1, -1.0, 0.7], dtype=f64), torch.tensor([1.0, -0.5, 2.0], dtype=f64)
    process, x = Gaussian(schedule), torch.randn(4, 3, dtype=f64, generator=torch.Generator().manual_seed(9))
    inner = Exact(process, TargetGaussian(mean, variance).posterior_mean)
    guided = Energy(inner, lambda x0: -(x0 * c).sum(-1), 1.5, through, sigma_data=0.7)
    tilted = TargetGaussian(mean + 1.5 * variance * c, variance)
    for t in (0.2, 0.8):
        with torch.inference_mode():
            found, rows = guided(x.clone(), t).x0, guided(x.clone(), torch.full((4,), t, dtype=f64)).x0
        assert (found - tilted.posterior_mean(x, *schedule(t))).abs().max() < 1e-11
        assert (rows - found).abs().max() < 1e-12
    assert torch.equal(Energy(inner, lambda x0: x0.sum(-1), 0.0, through)(x, 0.4).x0, inner(x, 0.4).x0)


def test_energies_of_named_fields_pull_each_field():
    process = {"a": Gaussian(EDM()), "b": Gaussian(VPLinear())}
    x = {"a": X, "b": 2 * X}

    class Halves(Denoiser):
        def forward(self, x, t, cond=None):
            return Prediction({"a": x["a"] / 2, "b": x["a"] + x["b"] / 3})

    inner = Halves()
    inner.process = process
    found = Energy(inner, lambda x0: x0["b"].sum(-1))(x, 0.4).x0
    factor = {name: float(p.schedule(0.4).sigma ** 2 / p.schedule(0.4).alpha) for name, p in process.items()}
    assert (found["a"] - (X / 2 - factor["a"])).abs().max() < 1e-10
    assert (found["b"] - (X + 2 * X / 3 - factor["b"] / 3)).abs().max() < 1e-10


def test_gradients_under_autocast_in_inference_mode(transformer):
    """Weights that autocast has cast in inference mode do not come back in a graph."""
    guided = Energy(of(transformer), lambda x0: x0.float().square().flatten(1).sum(1), 0.1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        guided.denoiser(IMAGES, 0.5)
        found = guided(IMAGES.clone(), 0.5, {"unused": torch.ones(2)}).x0
        guided.denoiser(IMAGES, 0.5)
    wanted = guided(IMAGES, 0.5).x0
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


# Fields that are not Gaussian.


@dataclass(frozen=True)
class Classed(Process):
    """A categorical field of three classes, as far as guidance asks."""

    def draw(self, like, noise, step, stream=0):
        return like

    def prior(self, like, eps, t=1.0):
        return like

    def corrupt(self, x0, t, eps, source=None):
        return x0

    def transition(self, x_s, s, t, eps):
        return x_s


def test_logits_take_the_linear_rule_and_numbers_stay():
    process = {"pos": Gaussian(EDM()), "kind": Classed(RectifiedFlow()), "size": Classed(RectifiedFlow())}
    x = {"pos": X, "kind": torch.zeros(3, 2, dtype=torch.int64), "size": torch.arange(3)[:, None]}
    logits = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1), dtype=f64)

    class Mixed(Denoiser):
        def forward(self, x, t, cond=None):
            vector = cond["vector"]
            kind = logits[: len(vector)] + vector[:, :1, None] + x["pos"].mean()
            return Prediction({"pos": x["pos"] / 2 + vector, "kind": kind, "size": x["size"]})

    inner = Mixed()
    inner.process = process
    at = EDM()(0.4)
    given, without = (in_quantity("v", X, X / 2 + c["vector"], at) for c in (COND, NULL))
    cfg = without + 3 * (given - without)
    cfg = cfg * given.std(1, keepdim=True) / cfg.std(1, keepdim=True)
    for t in (0.4, torch.full((3,), 0.4, dtype=f64)):
        found = ClassifierFree(inner, 3.0, NULL, rule=Rescaled(share=1.0))(x, t, COND).x0
        one, two = logits[:3] + COND["vector"][:, :1, None], logits[3:] + NULL["vector"][:, :1, None]
        assert (found["kind"] - X.mean() - two - 3 * (one - two)).abs().max() < 1e-12
        assert torch.equal(found["size"], x["size"])
        assert (in_quantity("v", X, found["pos"], at) - cfg).abs().max() < 1e-10 * cfg.abs().max()
        held = Still(inner, 5.0)(x, t, COND).x0
        assert (held["pos"] - X / sum(at)).abs().max() < 1e-12 and held["kind"].shape == (3, 2, 3)
        # The energy reaches the positions through the logits as well, which stay as they are.
        moved = Energy(inner, lambda x0: x0["kind"].sum((1, 2)))(x, t, COND).x0
        shift = X / 2 + COND["vector"] - float(at.sigma**2) * 3 * 6 / X.numel()
        assert (moved["pos"] - shift).abs().max() < 1e-9 * shift.abs().max()
        assert torch.equal(moved["kind"], inner(x, t, COND).x0["kind"])


# Every kind with every sampler.


def kinds(inner, null, grid):
    """Every kind of guidance at a scale of its own, and what it is at no guidance."""
    worse = Shifted(inner.process)
    return {
        "cfg": ClassifierFree(inner, 2.0, null), "rescaled": ClassifierFree(inner, 2.0, null, rule=Rescaled()),
        "apg": ClassifierFree(inner, 2.0, null, rule=Projected(momentum=-0.5, threshold=1.0)),
        "plusplus": PlusPlus(inner, 0.5, null, grid),
        "zero": Still(ClassifierFree(inner, 2.0, null, rule=Optimal()), -3.0),
        "composed": Composed(inner, 2.0, [(null, 0.5)], null), "weaker": Weaker(inner, 2.0, worse),
        "energy": Energy(inner, lambda x0: 0.1 * x0.square().sum(-1)),
        "classifier": Classifier(inner, lambda x, t, cond: -1e-4 * x.square().sum(-1)),
        "nested": ClassifierFree(Energy(inner, lambda x0: 0.1 * x0.square().sum(-1)), 2.0, null),
    }  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_kind_with_every_sampler(name):
    process, sampler = Gaussian(EDM(sigma_min=0.02)), solver(name)
    grid = Karras(sigma_min=0.02)(process.schedule, 5)
    inner, null = Classes(process), {"vector": torch.zeros(1, 2, dtype=f64)}
    cond, noise, like = {"vector": MU.expand(2, -1)}, KeyedNoise(torch.arange(2)), torch.empty(2, 2, dtype=f64)
    with torch.inference_mode():
        plain = sample(inner, process, sampler, grid, noise, like, cond)
        for kind, guided in kinds(inner, null, grid).items():
            found = sample(guided, process, sampler, grid, noise, like, cond)
            assert found.isfinite().all() and (found - plain).abs().max() > 1e-6, kind
            assert torch.equal(found, sample(guided, process, sampler, grid, noise, like, cond)), kind


def test_a_scale_of_one_and_outside_the_interval_are_none_bit_for_bit():
    process, grid = Gaussian(EDM()), Karras()(EDM(), 6)
    noise, like, far = KeyedNoise(torch.arange(3)), torch.empty(3, 4, dtype=f64), (90.0, None)
    inner = Shifted(process)
    plain = sample(inner, process, Multistep(), grid, noise, like, COND)
    for rule in (Linear(), Rescaled(), Projected(momentum=-0.5), Optimal()):
        for guided in (
            ClassifierFree(inner, 1.0, NULL, rule=rule), ClassifierFree(inner, 3.0, NULL, far, rule),
            Weaker(inner, 1.0, Shifted(), NULL, rule=rule), Weaker(inner, 3.0, Shifted(), NULL, far, rule),
        ):  # fmt: skip
            assert torch.equal(sample(guided, process, Multistep(), grid, noise, like, COND), plain)
    for guided in (
        Composed(inner, 1.0, [], NULL), Composed(inner, 3.0, [(NULL, 1.0)], NULL, far),
        PlusPlus(inner, 0.5, NULL, grid, far), Still(inner, -90.0),
        Energy(inner, lambda x0: x0.sum(-1), 1.0, interval=far),
    ):  # fmt: skip
        assert torch.equal(sample(guided, process, Multistep(), grid, noise, like, COND), plain)


class NoSync(TorchDispatchMode):
    """Fails when the host reads a value from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "linalg_solve"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["cfg", "rescaled", "apg", "composed", "weaker", "zero", "plusplus", "energy"])
@pytest.mark.parametrize("rows", [False, True])
def test_nothing_is_read_back_from_the_device(kind, rows):
    process, grid = Gaussian(EDM()), Karras()(EDM(), 5)
    inner, null = Shifted(process), {"vector": torch.zeros(1, 4, dtype=f64)}
    guided = kinds(inner, null, grid)[kind]
    for t in (0.9, 0.5):
        time = torch.full((3,), t, dtype=f64) if rows else t
        guided(X, time, COND)  # levels of a float are remembered: they are the host's
        with NoSync():
            guided(X, time, COND)


# Options.


CONF = Path(__file__).parents[1] / "conf" / "guidance"
SETTING = Setting(Karras()(EDM(), 5), NULL)


def option(name, **changes):
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert set(changes) <= set(node)
    return build({**node, **changes}, "guidance")


@pytest.mark.parametrize("name", ["apg", "cfg", "cfgpp", "none", "zero"])
def test_options_build_and_are_nothing_without_a_condition(name):
    inner = Shifted()
    made = option(name)
    assert isinstance(made, Guidance)
    assert made(inner, Setting(SETTING.grid)) is inner
    if name not in ("none", "cfgpp"):
        assert option(name, scale=1.0)(inner, SETTING) is inner
    assert (made(inner, SETTING) is inner) == (name == "none")
    assert (CONF / f"{name}.yaml").read_text().startswith("# ")


def test_options_are_what_they_say():
    inner = Shifted()
    assert option("cfg", rescale=0.5)(inner, SETTING).rule == Rescaled("v", 0.5)
    assert option("apg", threshold=2.0)(inner, SETTING).rule == Projected("x0", 0.0, 2.0, -0.5)
    assert option("zero")(inner, SETTING).denoiser.rule == Optimal("flow")
    assert isinstance(option("zero", still=0)(inner, SETTING), ClassifierFree)
    assert isinstance(option("cfgpp")(inner, SETTING), PlusPlus)
    network = of(randomised(DiT((2, 4, 4), width=16, depth=3, heads=2)))
    for name, layer in (("pag", "blocks.1.attention"), ("slg", "blocks.1")):
        guided = option(name)(network, Setting(SETTING.grid))
        assert guided.layers == (layer,) and option(name, scale=1.0)(network, SETTING) is network
    assert option("cfg", interval=[-1, None])(inner, SETTING).interval.low == -1


BAD = [
    ("cfg", {"scale": -1}, "guidance.scale=-1"), ("cfg", {"scale": True}, "guidance.scale=True"),
    ("cfg", {"scale": math.nan}, "guidance.scale=nan"), ("cfg", {"scale": "two"}, "guidance.scale=two"),
    ("cfg", {"interval": [2, 1]}, "guidance.interval=[2.0, 1.0] is empty"),
    ("cfg", {"interval": [math.nan, 1]}, "is empty"), ("cfg", {"interval": [1, 2, 3]}, "must be [lowest, highest]"),
    ("cfg", {"interval": ["a", None]}, "must be [lowest, highest]"),
    ("cfg", {"rescale": 1.5}, "guidance.rescale=1.5"), ("cfg", {"quantity": "score"}, "guidance.quantity=score"),
    ("cfg", {"negative": {"label": [1, 2]}}, "guidance.negative.label=[1, 2] must be one value"),
    ("apg", {"threshold": 0}, "guidance.threshold=0"), ("apg", {"momentum": 1.0}, "guidance.momentum=1.0"),
    ("apg", {"parallel": math.inf}, "guidance.parallel=inf"), ("zero", {"still": -1}, "guidance.still=-1"),
    ("pag", {"cfg": -1}, "guidance.cfg=-1"), ("auto", {}, "guidance.ckpt is not set"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "text"), BAD)
def test_bad_options_are_one_line(name, changes, text):
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        option(name, **changes)
    assert "\n" not in str(caught.value)


def test_bad_calls_are_one_line():
    inner, tokens = Shifted(), Grid(np.linspace([1.0, 0.5], [0.0, 0.0], 4))
    cases = [
        (lambda: option("zero", still=5)(inner, SETTING), "leaves none of the 5 steps"),
        (lambda: option("zero")(inner, Setting(tokens, NULL)), "times per token cannot stand still"),
        (lambda: option("cfgpp")(inner, Setting(tokens, NULL)), "one time for all tokens"),
        (lambda: Still(inner, math.nan), "NaN"),
        (lambda: Energy(inner, lambda x0: x0, 1.0, True, 0.0), "sigma_data=0.0"),
        (lambda: Composed(inner, 1.0, [(NULL, math.nan)], NULL), "must be finite"),
        (lambda: Energy(inner, lambda x0: x0)(X, 0.5), "the energy must be of shape (3,)"),
        (lambda: Energy(inner, lambda x0: torch.zeros(3))(X, 0.5), "does not depend on the sample"),
        (lambda: Classifier(inner, lambda x, t, c: 1.0)(X, 0.5), "the log_prob must be of shape (3,), one value"),
        (
            lambda: ClassifierFree(Shifted(Gaussian(VPCosine())), 2.0, NULL, rule=Rescaled("eps"))(X, 1.0, COND),
            "guidance.quantity=eps: undefined without signal",
        ),
    ]  # fmt: skip
    for call, text in cases:
        with pytest.raises(ConfigError, match=re.escape(text)) as caught:
            call()
        assert "\n" not in str(caught.value)


# In a model, from a config.


SPACED = {
    "sampler": {"_target_": "suffuse.sampler.Euler", "steps": 3}, "grid": {"_target_": "suffuse.grid.Karras"},
}  # fmt: skip


def config(depth=2, labels=("a", "b"), sigma_max=80.0):
    model = {"_target_": "suffuse.nn.DiT", "width": 16, "depth": depth, "heads": 2}
    schedule = {"_target_": "suffuse.schedule.EDM", "sigma_max": sigma_max}
    tree = {
        "model": model, "conditioner": {"_target_": "suffuse.conditioner.ClassConditioner", "width": 8},
        "process": {"_target_": "suffuse.process.Gaussian", "schedule": schedule},
        "objective": {
            "_target_": "suffuse.objective.Objective", "weight": {"_target_": "suffuse.objective.EDMWeight"},
            "density": {"_target_": "suffuse.objective.LogNormal"},
            "parameterization": {"_target_": "suffuse.denoiser.EDMPrecond"},
        },
    }  # fmt: skip
    return tree, Facts((2, 4, 4), tuple(labels), (), 0.5)


def model(**changes):
    made = Model(*config(**changes))
    randomised(made)
    return made


def stored(path, **changes):
    tree, facts = config(**changes)
    record = {"config": tree, "facts": facts.record()}
    torch.save({"suffuse": record, "state_dict": model(**changes).state_dict()}, path)
    return str(path)


def drawn(made, guidance, labels=(0, 1)):
    recipe = Recipe.build({**SPACED, "guidance": guidance})
    return made.draw(recipe, torch.arange(2), {"label": torch.tensor(labels)})


def test_a_model_draws_with_every_option(tmp_path):
    made = model()
    plain = drawn(made, {"scale": 1.0})
    found = {"plain": plain}
    for name in ("apg", "cfg", "cfgpp", "pag", "slg", "zero"):
        found[name] = drawn(made, yaml.safe_load((CONF / f"{name}.yaml").read_text()))
    auto = yaml.safe_load((CONF / "auto.yaml").read_text())
    found["auto"] = drawn(made, {**auto, "ckpt": stored(tmp_path / "weak.ckpt", depth=1)})
    found["negative"] = drawn(made, {"_target_": "suffuse.guidance.CFG", "scale": 1.5, "negative": {"label": "b"}})
    assert all(value.isfinite().all() for value in found.values())
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(found[one], found[other]), (one, other)
    # A model is not moved away from itself, nor a class from the same one.
    same = drawn(made, {**auto, "ckpt": stored(tmp_path / "same.ckpt")})
    assert (same - plain).abs().max() < 1e-4 * plain.abs().max()
    itself = drawn(made, {"_target_": "suffuse.guidance.CFG", "scale": 3.0, "negative": {"label": 1}}, (1, 1))
    assert (itself - drawn(made, {"scale": 1.0}, (1, 1))).abs().max() < 1e-4 * plain.abs().max()


def test_an_unconditional_model_has_nothing_to_be_guided_by():
    made = model(labels=())
    raw = {"label": torch.full((2,), -1)}
    found = [
        made.draw(Recipe.build({**SPACED, "guidance": g}), torch.arange(2), raw)
        for g in ({"scale": 4.0}, {"scale": 1.0})
    ]
    assert torch.equal(*found)


def test_a_negative_condition_that_is_not_there():
    node = {"_target_": "suffuse.guidance.CFG", "scale": 1.5, "negative": {"lable": 1}}
    with pytest.raises(ConfigError, match=r"guidance.negative: condition.lable: .* did you mean 'label'"):
        drawn(model(), node)


def test_autoguidance_of_other_data_or_process(tmp_path):
    made, auto = model(), yaml.safe_load((CONF / "auto.yaml").read_text())
    with pytest.raises(ConfigError, match=r"its labels .* are not the model's .*; choose a model of the same data"):
        drawn(made, {**auto, "ckpt": stored(tmp_path / "a.ckpt", labels=("x", "y"))})
    with pytest.raises(ConfigError, match=r"choose a checkpoint trained with the same process"):
        drawn(made, {**auto, "ckpt": stored(tmp_path / "b.ckpt", sigma_max=20.0)})
    with pytest.raises(CheckpointError, match="no such run directory or file"):
        Recipe.build({**SPACED, "guidance": {**auto, "ckpt": str(tmp_path / "none")}})
    unconditional = drawn(made, {**auto, "ckpt": stored(tmp_path / "c.ckpt", labels=())})
    assert unconditional.isfinite().all()


def test_recipes_of_old_checkpoints_and_new():
    for old in ({"scale": 2.0, "interval": [None, 1.0]}, {"scale": 2.0, "interval": None}, {"scale": 2.0}):
        recipe = Recipe.build({**SPACED, "guidance": old})
        assert isinstance(recipe.guidance, CFG) and recipe.scale == 2.0
    for none in ({}, None):
        assert Recipe.build({**SPACED, "guidance": none}).scale == 1.0
    assert Recipe(Euler(), Karras()).scale == 1.0
    node = yaml.safe_load((CONF / "apg.yaml").read_text())
    assert Recipe.build({**SPACED, "guidance": node}).guidance == APG(4.0, [None, None])
    with pytest.raises(ConfigError, match=r"guidance.scale=-1"):
        Recipe.build({**SPACED, "guidance": {"scale": -1}})
