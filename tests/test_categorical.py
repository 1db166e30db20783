"""Categorical processes and their samplers: laws by enumeration, bounds by quadrature, and mixed states."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from suffuse.categorical import Masked, Uniform, choose, limited
from suffuse.denoiser import Denoiser, EDMPrecond, Preconditioned, Prediction
from suffuse.errors import ConfigError
from suffuse.grid import Grid, Karras, Linear, Trailing
from suffuse.guidance import ClassifierFree
from suffuse.nelbo import nelbo
from suffuse.noise import KeyedNoise
from suffuse.objective import Objective, UniformTime, UniformWeight
from suffuse.process import Frozen, Gaussian
from suffuse.rates import CosineRate, LogLinear
from suffuse.sampler import (
    Ancestral,
    AncestralTokens,
    CachedAncestral,
    Confidence,
    Euler,
    Multistep,
    PredictorCorrector,
    Restart,
    SingleStep,
    TauLeaping,
    sample,
)
from suffuse.schedule import EDM, RectifiedFlow
from suffuse.space import Padded, Symmetric
from suffuse.state import Dense

f64 = torch.float64
P = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]], dtype=f64)
"""A product of three categoricals of four classes."""
KINDS = [Masked(LogLinear(), classes=4), Uniform(CosineRate(), classes=4)]


def forward(process, alpha):
    """q(x_t | x_0) as a matrix (x_0, x_t), by its definition."""
    k = process.classes
    if isinstance(process, Masked):
        return torch.cat([alpha * torch.eye(k, dtype=f64), torch.full((k, 1), 1 - alpha, dtype=f64)], 1)
    return alpha * torch.eye(k, dtype=f64) + (1 - alpha) / k


def posterior(process, x, alpha):
    """p(x_0 | x_t) of the product, by Bayes: (B, 3, 4)."""
    likely = forward(process, alpha)[:, x].permute(1, 2, 0)
    joint = P * likely
    return joint / joint.sum(-1, keepdim=True)


class Oracle(Denoiser):
    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, t, cond=None):
        alpha = float(self.process.schedule(t).alpha)
        return Prediction(posterior(self.process, x, alpha).clamp(min=1e-300).log())


# Processes.


@pytest.mark.parametrize("process", KINDS, ids=str)
def test_corruption_has_its_law(process):
    rows = 40000
    x0 = torch.randint(4, (1, 3), generator=torch.Generator().manual_seed(0)).expand(rows, 3)
    noise = KeyedNoise(torch.arange(rows))
    for t in (0.0, 0.3, 0.8, 1.0):
        x = process.corrupt(x0, t, process.draw(x0, noise, 3))
        wanted = forward(process, float(process.schedule(t).alpha))[x0[0]]
        found = torch.nn.functional.one_hot(x, wanted.shape[1]).double().mean(0)
        assert (found - wanted).abs().max() < 0.012
    x_s = process.corrupt(x0, 0.3, process.draw(x0, noise, 4))
    x_t = process.transition(x_s, 0.3, 0.8, process.draw(x0, noise, 5))
    found = torch.nn.functional.one_hot(x_t, wanted.shape[1]).double().mean(0)
    assert (found - forward(process, float(process.schedule(0.8).alpha))[x0[0]]).abs().max() < 0.012


@pytest.mark.parametrize("process", KINDS, ids=str)
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.6), (0.5, 0.1), (0.6, 0.0)])
def test_one_reverse_step_is_bayes(process, t, s):
    """sum_{x_0} q(x_s | x_t, x_0) p(x_0 | x_t) against a table of the joint law of (x_0, x_s, x_t)."""
    at, to = float(process.schedule(t).alpha), float(process.schedule(s).alpha)
    q_s, states = forward(process, to), forward(process, to).shape[1]
    between = torch.zeros(states, states, dtype=f64)
    ratio = at / to
    if isinstance(process, Masked):
        between[:4, :4] = ratio * torch.eye(4, dtype=f64)
        between[:4, 4], between[4, 4] = 1 - ratio, 1.0
    else:
        between = ratio * torch.eye(4, dtype=f64) + (1 - ratio) / 4
    prior = P[0]
    joint = prior[:, None, None] * q_s[:, :, None] * between[None]
    wanted = joint.sum(0) / joint.sum((0, 1)).clamp(min=1e-300)  # (x_s, x_t)
    for x_t in range(states):
        if joint.sum((0, 1))[x_t] == 0:
            continue
        x = torch.tensor([[x_t]])
        logits = (prior * forward(process, at)[:, x_t]).clamp(min=1e-300).log()[None, None]
        levels = [torch.full((1, 1), v, dtype=f64) for v in (at, to)]
        moved, shares = process.moves(x, logits, *levels)
        found = torch.zeros(states, dtype=f64)
        found[x_t] = 1 - moved[0, 0]
        found[:4] += moved[0, 0] * shares[0, 0]
        assert (found - wanted[:, x_t]).abs().max() < 1e-6  # softmax of float32-sized logits


def test_a_small_rate_is_exact_among_many_classes():
    """Probability 1e-3 over 50,000 classes, which a race of float32 numbers gets wrong by a factor of ten."""
    k = 50_000
    process = Masked(LogLinear(), classes=k)
    x = torch.full((400, 1), k)
    at, to = (torch.full((400, 1), v, dtype=f64) for v in (0.0, 1e-3))
    logits = torch.zeros(400, 1, k)
    moved, shares = process.moves(x, logits, at, to)
    assert (moved - 1e-3).abs().max() < 1e-15 and (shares.sum(-1) - 1).abs().max() < 1e-9
    u = (torch.arange(400, dtype=f64)[:, None] + 0.5) / 400
    assert torch.equal(choose(shares, u)[:, 0], (u[:, 0] * k).ceil().long() - 1)
    many = KeyedNoise(torch.arange(400)).uniform(torch.empty(400, 5000), 0)
    assert float((many < 1e-3).double().mean()) == pytest.approx(1e-3, rel=0.05)


def test_draws_are_uniform_and_two_per_token():
    process = Uniform(classes=7)
    u = process.draw(torch.zeros(3000, 2, dtype=torch.int64), KeyedNoise(torch.arange(3000)), 1)
    assert u.shape == (3000, 2, 2) and u.min() > 0 and u.max() < 1
    assert (u.mean((0, 1)) - 0.5).abs().max() < 0.02 and abs(float((u[..., 0] * u[..., 1]).mean()) - 0.25) < 0.02


# Bounds.


@pytest.mark.parametrize("process", KINDS, ids=str)
def test_the_bound_of_the_exact_denoiser_is_the_entropy(process):
    """E over x_0 of the integral of the NELBO over t is H(x_0) when the reverse process is exact."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    total = torch.zeros(3, dtype=f64)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        t = torch.tensor([node], dtype=f64)
        q = forward(process, float(process.schedule(node).alpha))
        for x0, x_t in itertools.product(range(4), range(q.shape[1])):
            x = torch.full((1, 3), x_t)
            logits = posterior(process, x, float(process.schedule(node).alpha)).clamp(min=1e-300).log()
            found = process.nelbo(torch.full((1, 3), x0), x, logits, t)[0].double()
            total += weight * P[:, x0] * q[x0, x_t] * found
    entropy = -(P * P.log()).sum(-1)
    assert (total - entropy).abs().max() < 2e-3


def test_masked_bound_is_a_weighted_cross_entropy():
    process = Masked(LogLinear(), classes=4)
    logits, x0 = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2], [3, 3, 0]])
    x = torch.tensor([[4, 1, 4], [4, 4, 4]])
    found = process.nelbo(x0, x, logits, torch.tensor([0.25, 0.5], dtype=f64))
    entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x0.flatten(), reduction="none").reshape(2, 3)
    wanted = entropy * torch.tensor([[4.0], [2.0]]) * (x == 4)  # -alpha' / (1 - alpha) = 1 / t
    assert (found - wanted).abs().max() < 1e-5


# Samplers.


def law(process, sampler, rows=60000):
    grid = (
        Linear(0.0)(process.schedule, sampler.steps) if isinstance(process, Masked) else Trailing()(None, sampler.steps)
    )
    like = torch.zeros(rows, 3, dtype=torch.int64)
    found = sample(Oracle(process), process, sampler, grid, KeyedNoise(torch.arange(rows)), like)
    return torch.nn.functional.one_hot(found, 4).double().mean(0)


@pytest.mark.parametrize("process", KINDS, ids=str)
def test_ancestral_is_exact_for_independent_tokens(process):
    for steps in (1, 3, 8):
        assert (law(process, AncestralTokens(steps)) - P).abs().max() < 0.012


@pytest.mark.parametrize("process", KINDS, ids=str)
def test_tau_leaping_converges(process):
    errors = [float((law(process, TauLeaping(steps), 30000) - P).abs().max()) for steps in (2, 60)]
    assert errors[1] < 0.02


class Pair(Denoiser):
    """Two dependent tokens, p(a, b) of a Markov pair, with their exact marginal posteriors under masks."""

    joint = torch.tensor([[0.4, 0.1], [0.05, 0.45]], dtype=f64)

    def __init__(self):
        super().__init__()
        self.process = Masked(LogLinear(), classes=2)

    def forward(self, x, t, cond=None):
        seen = torch.cat([torch.eye(2, dtype=f64), torch.ones(1, 2, dtype=f64)])[x]  # which values are possible
        joint = self.joint * seen[:, 0, :, None] * seen[:, 1, None, :]
        joint = joint / joint.sum((1, 2), keepdim=True)
        return Prediction(torch.stack([joint.sum(2), joint.sum(1)], 1).clamp(min=1e-300).log())


def pair_law(sampler, rows=30000):
    denoiser, like = Pair(), torch.zeros(rows, 2, dtype=torch.int64)
    grid = Trailing()(None, sampler.steps)
    found = sample(denoiser, denoiser.process, sampler, grid, KeyedNoise(torch.arange(rows)), like)
    assert int(found.max()) < 2
    counts = torch.bincount(found[:, 0] * 2 + found[:, 1], minlength=4).double() / rows
    return counts.reshape(2, 2)


def test_dependent_tokens_need_steps():
    """Tokens drawn in one step know nothing of each other; the law converges with the steps."""
    divergence = []
    for steps in (1, 2, 4, 32):
        found = pair_law(AncestralTokens(steps))
        divergence.append(float((found * (found / Pair.joint).log()).sum()))
    alone = torch.outer(Pair.joint.sum(1), Pair.joint.sum(0))
    assert divergence[0] == pytest.approx(float((alone * (alone / Pair.joint).log()).sum()), abs=0.02)
    assert divergence[0] > divergence[1] > divergence[2] > divergence[3] and divergence[3] < 0.01


def test_confidence_unmasks_as_many_as_the_schedule_says():
    """One token per step of two: the second is drawn knowing the first, so the pair's law is exact without noise."""
    greedy = Confidence(2, noise=0.0)
    seen = []
    denoiser, like = Pair(), torch.zeros(50, 2, dtype=torch.int64)
    grid = Trailing()(None, 2)
    sample(
        denoiser, denoiser.process, greedy, grid, KeyedNoise(torch.arange(50)), like,
        callback=lambda i, n, x, x0: seen.append((x == 2).sum(1)),
    )  # fmt: skip
    assert (seen[0] == 1).all() and (seen[1] == 0).all()
    assert (pair_law(Confidence(2, noise=1000.0)) - Pair.joint).abs().max() < 0.02  # then the order is random
    assert (pair_law(Confidence(2, noise=1000.0, choice="entropy")) - Pair.joint).abs().max() < 0.02


def test_remasking_takes_tokens_back():
    denoiser, like, counts = Pair(), torch.zeros(400, 2, dtype=torch.int64), []
    for remask in (False, True):
        states = []
        sample(
            denoiser, denoiser.process, Confidence(6, remask=remask, noise=5.0), Trailing()(None, 6),
            KeyedNoise(torch.arange(400)), like, callback=lambda i, n, x, x0, states=states: states.append(x.clone()),
        )  # fmt: skip
        counts.append(sum(int(((b == 2) & (a != 2)).sum()) for a, b in itertools.pairwise(states)))
    assert counts[0] == 0 and counts[1] > 0


def test_temperature_and_truncation():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))
    assert torch.softmax(limited(logits, 0.5, None, None), -1)[0] == pytest.approx(
        (np.array([0.5, 0.25, 0.15, 0.1]) ** 2 / np.sum(np.array([0.5, 0.25, 0.15, 0.1]) ** 2)).tolist(), rel=1e-5
    )
    assert torch.softmax(limited(logits, 1, 2, None), -1)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert torch.softmax(limited(logits, 1, None, 0.8), -1)[0].tolist() == pytest.approx(
        [5 / 9, 2.5 / 9, 1.5 / 9, 0], rel=1e-5
    )
    assert torch.equal(limited(logits, 1, 9, 1.0), logits)


def test_tokens_of_resting_levels_and_padding_stay():
    mask = torch.tensor([[True, True, False]])
    process = {"a": Masked(LogLinear(), Padded(mask="mask"), classes=4), "mask": Frozen()}

    class Both(Denoiser):
        def __init__(self):
            super().__init__()
            self.process = process

        def forward(self, x, t, cond=None):
            return Prediction({"a": P.log().expand(len(x["a"]), 3, 4), "mask": x["mask"]})

    like = {"a": torch.zeros(1, 3, dtype=torch.int64), "mask": mask}
    for sampler in (AncestralTokens(4), TauLeaping(4), Confidence(4)):
        found = sample(Both(), process, sampler, Trailing()(None, 4), KeyedNoise(torch.arange(1)), like)
        assert found["a"][0, 2] == 0 and found["a"].max() < 4 and torch.equal(found["mask"], mask)
    grid = Trailing()(None, 4)
    table = np.repeat(grid.t[:, None], 3, 1)
    table[:, 1] = 0.5
    start = {"a": torch.tensor([[4, 4, 4]]), "mask": torch.ones(1, 3, dtype=torch.bool)}
    found = sample(Both(), process, AncestralTokens(4), Grid(table), KeyedNoise(torch.arange(1)), start, x=start)
    assert found["a"][0, 1] == 4 and found["a"][0, 0] < 4 and found["a"][0, 2] < 4


class Mixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, noise, cond=None):
        assert x["atoms"].dtype == torch.int64 and x["bonds"].dtype == torch.int64 and noise.ndim == 1
        atoms = torch.nn.functional.one_hot(x["atoms"].clamp(max=4), 5)[..., :4].float() + self.weight
        return {"pos": self.weight * x["pos"], "atoms": atoms, "bonds": torch.randn(*x["bonds"].shape, 3) * self.weight}


MIXED = {
    "pos": Gaussian(EDM(), Padded(mask="mask")),
    "atoms": Masked(LogLinear(), Padded(mask="mask"), classes=4),
    "bonds": Uniform(CosineRate(), Symmetric(mask="mask"), classes=3),
    "mask": Frozen(),
}


def mixed_state(rows=4):
    mask = torch.tensor([[True, True, True, False]]).expand(rows, 4).clone()
    bonds = torch.randint(3, (rows, 4, 4), generator=torch.Generator().manual_seed(1)).triu(1)
    return {
        "pos": torch.randn(rows, 4, 3, generator=torch.Generator().manual_seed(0)) * mask[..., None],
        "atoms": torch.randint(4, (rows, 4), generator=torch.Generator().manual_seed(2)) * mask,
        "bonds": (bonds + bonds.transpose(1, 2)) * mask[:, :, None] * mask[:, None],
        "mask": mask,
    }


@pytest.mark.parametrize(
    "sampler",
    [
        Euler(),
        Ancestral(),
        Multistep(order=3),
        PredictorCorrector(),
        SingleStep(order=3),
        SingleStep(2, 2, "x0", eta=1.0),
    ],
    ids=str,
)
def test_mixed_states_walk_together(sampler):
    denoiser = Preconditioned(Mixed(), MIXED, EDMPrecond(0.5))
    like, grid = mixed_state(), Karras()(EDM(), 6)
    with torch.inference_mode():
        found = sample(denoiser, MIXED, sampler, grid, KeyedNoise(torch.arange(4)), like)
        alone = sample(
            denoiser, MIXED, sampler, grid, KeyedNoise(torch.arange(2, 3)), {k: v[2:3] for k, v in like.items()}
        )
    assert found["atoms"].max() < 4 and found["bonds"].max() < 3 and torch.isfinite(found["pos"]).all()
    assert torch.equal(found["bonds"], found["bonds"].transpose(1, 2)) and (found["atoms"][:, 3] == 0).all()
    for name in ("atoms", "bonds"):
        assert torch.equal(alone[name][0], found[name][2])
    assert (alone["pos"][0] - found["pos"][2]).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="goes up again, which tokens do not"):
        sample(denoiser, MIXED, Restart(), Karras()(EDM(), 18), KeyedNoise(torch.arange(4)), like)


def test_a_mixed_objective_is_the_sum_of_its_fields():
    denoiser, x0 = Preconditioned(Mixed(), MIXED, EDMPrecond(0.5)), mixed_state()
    losses = {}
    for name in ("pos", "atoms", "bonds"):
        weights = {key: float(key == name) for key in MIXED}
        objective = Objective(UniformWeight(), UniformTime(), EDMPrecond(0.5), field_weights=weights)
        losses[name] = objective(denoiser, x0, None, KeyedNoise(torch.arange(4))).per_sample
    whole = Objective(UniformWeight(), UniformTime(), EDMPrecond(0.5))
    found = whole(denoiser, x0, None, KeyedNoise(torch.arange(4)))
    assert (found.per_sample - sum(losses.values())).abs().max() < 1e-4 and all((v > 0).any() for v in losses.values())
    found.total.backward()
    assert torch.isfinite(denoiser.network.weight.grad)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Masked(classes=1), "classes=1"), (lambda: Uniform(classes=True), "classes=True"),
        (lambda: Masked(classes=3, loss="mse"), "loss=mse"),
        (lambda: AncestralTokens(temperature=0.0), "temperature=0.0"),
        (lambda: TauLeaping(top_k=0), "top_k=0"), (lambda: TauLeaping(top_p=0.0), "top_p=0.0"),
        (lambda: Confidence(choice="best"), "choice=best"), (lambda: Confidence(noise=math.inf), "noise=inf"),
        (lambda: law(KINDS[1], Confidence(2)), "needs a masked process"),
        (lambda: sample(None, Gaussian(EDM()), AncestralTokens(2), Karras()(EDM(), 2), None, torch.zeros(1, 2)),
         "draws tokens; for a Gaussian field choose another"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_dense_spaces_of_tokens_take_times_per_token():
    process = Masked(LogLinear(), Dense((1,)), classes=4)
    x0 = torch.zeros(20000, 2, dtype=torch.int64)
    t = torch.tensor([[0.2, 0.9]], dtype=f64).expand(20000, 2)
    x = process.corrupt(x0, t, process.draw(x0, KeyedNoise(torch.arange(20000)), 0))
    assert (x == 4).double().mean(0).tolist() == pytest.approx([0.2, 0.9], abs=0.015)
    assert RectifiedFlow()(0.3).alpha == LogLinear()(0.3).alpha


class Replayed(torch.nn.Module):
    """A network that returns one buffer every time, as the replay of a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.logits, self.mode = torch.empty(2, 3, 4), "never"

    def compile(self, mode=None):
        self.mode = mode

    def forward(self, x, noise, cond=None):
        return self.logits.copy_(noise[:, None, None])


@pytest.mark.parametrize("replay", [False, True])
def test_what_a_replayed_network_returns_is_kept(replay):
    """Logits are the network's own output, which its next run overwrites."""
    network = Replayed()
    denoiser = Preconditioned(network, Masked(LogLinear(), classes=4), EDMPrecond())
    denoiser.compile_network(replay=replay)
    assert network.mode == ("reduce-overhead" if replay else None)
    first = denoiser(torch.zeros(2, 3, dtype=torch.int64), 0.5).x0
    before = first.clone()
    denoiser(torch.zeros(2, 3, dtype=torch.int64), 0.25)
    assert torch.equal(first, before) == replay


class Told(torch.nn.Module):
    """Logits and positions that depend on the condition."""

    def forward(self, x, noise, cond=None):
        shift = cond["vector"].mean(1)
        logits = torch.zeros(*x["atoms"].shape, 4).index_fill(-1, torch.tensor([1]), 1.0) * shift[:, None, None]
        return {"pos": torch.ones_like(x["pos"]) * shift[:, None, None], "atoms": logits,
                "bonds": torch.zeros(*x["bonds"].shape, 3)}  # fmt: skip


def test_guidance_of_a_mixed_state():
    """Logits extrapolate as x0 does, whole fields keep to their masks, and frozen ones are as they were."""
    plain = Preconditioned(Told(), MIXED, EDMPrecond(0.5))
    state, rows = mixed_state(), 4
    guided = ClassifierFree(plain, 3.0, {"vector": torch.zeros(rows, 2)})
    cond = {"vector": torch.ones(rows, 2)}
    found, asked, none = guided(state, 0.5, cond).x0, plain(state, 0.5, cond).x0, plain(state, 0.5, guided.null).x0
    for name in ("pos", "atoms"):
        wanted = none[name] + 3 * (asked[name] - none[name])
        assert (found[name] - wanted).abs().max() < 1e-5
    assert torch.equal(found["mask"], state["mask"]) and (found["pos"][:, 3] == 0).all()


class Timed(Oracle):
    """The oracle with a time per row."""

    def forward(self, x, t, cond=None):
        alpha = self.process.schedule(t).alpha
        rows = [posterior(self.process, x[i : i + 1], float(alpha[i])) for i in range(len(x))]
        return Prediction(torch.cat(rows).clamp(min=1e-300).log())


@pytest.mark.parametrize("process", KINDS, ids=str)
def test_the_estimated_bound_is_the_entropy(process):
    draws = [torch.multinomial(p, 400, True, generator=torch.Generator().manual_seed(k)) for k, p in enumerate(P)]
    x0 = torch.stack(draws, 1)
    found = nelbo(Timed(process), x0, None, KeyedNoise(torch.arange(400)), times=16)
    wanted = -sum(P[k].log()[x0[:, k]] for k in range(3))
    spread = float(found.std()) / 20
    assert abs(float(found.mean() - wanted.mean())) < 4 * spread and found.shape == (400,)
    with pytest.raises(ConfigError, match="times=0"):
        nelbo(Timed(process), x0, None, KeyedNoise(torch.arange(400)), times=0)
    with pytest.raises(ConfigError, match="has Gaussian noise"):
        nelbo(Preconditioned(Mixed(), MIXED, EDMPrecond(0.5)), mixed_state(), None, KeyedNoise(torch.arange(4)))


def test_cached_ancestral_asks_less_and_draws_the_same():
    calls = []

    class Counted(Pair):
        def forward(self, x, t, cond=None):
            calls.append(t)
            return super().forward(x, t, cond)

    denoiser, like = Counted(), torch.zeros(3, 2, dtype=torch.int64)
    grid, noise = Trailing()(None, 100), KeyedNoise(torch.arange(3))
    plain = sample(denoiser, denoiser.process, AncestralTokens(100), grid, noise, like)
    asked = len(calls)
    cached = sample(denoiser, denoiser.process, CachedAncestral(100), grid, noise, like)
    assert torch.equal(plain, cached) and asked == 100 and len(calls) - asked <= 1 + 3 * 2
