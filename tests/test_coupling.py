"""Coupling: exact assignments, permuted noise and nothing else, shorter paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from suffuse.coupling import Independent, OptimalTransport, assignment, coupling
from suffuse.denoiser import EDMPrecond, Preconditioned
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.objective import EDMWeight, LogNormal, Objective
from suffuse.process import Gaussian
from suffuse.schedule import EDM, VE, RectifiedFlow
from suffuse.state import Dense
from torch import nn


@pytest.mark.parametrize("kind", ["random", "points", "integers", "constant", "large"])
@pytest.mark.parametrize("count", [1, 2, 3, 17, 100])
def test_assignment_costs_what_scipy_finds(count, kind):
    rng = np.random.default_rng(count)
    cost = {
        "random": lambda: rng.normal(size=(count, count)),
        "points": lambda: -rng.normal(size=(count, 2)) @ rng.normal(size=(count, 2)).T,
        "integers": lambda: rng.integers(0, 4, size=(count, count)).astype(float),
        "constant": lambda: np.full((count, count), 3.0),
        "large": lambda: 1e12 + 1e6 * rng.normal(size=(count, count)),
    }[kind]()
    found = assignment(cost)
    rows, columns = linear_sum_assignment(cost)
    assert sorted(found) == list(range(count))
    assert cost[rows, found].sum() == pytest.approx(cost[rows, columns].sum(), rel=1e-12, abs=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 7).flatmap(
        lambda n: st.lists(st.lists(st.integers(-9, 9), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_assignment_is_the_cheapest(cost):
    cost = np.array(cost, dtype=np.float64)
    rows, columns = linear_sum_assignment(cost)
    assert cost[rows, assignment(cost)].sum() == cost[rows, columns].sum()


def pairs(rows=64, size=(3, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, *size, generator=generator) + 0.5, torch.randn(rows, *size, generator=generator))


def test_transport_permutes_the_noise_and_shortens_the_paths():
    x0, eps = pairs()
    moved = OptimalTransport()(x0, eps, Gaussian(RectifiedFlow()))
    square = ((x0[:, None] - eps[None]) ** 2).flatten(2).sum(2).double().numpy()
    _, columns = linear_sum_assignment(square)
    assert torch.equal(moved, eps[torch.from_numpy(columns)])
    assert torch.equal(moved.flatten(1).sort(0).values, eps.flatten(1).sort(0).values)
    assert ((x0 - moved) ** 2).sum() < 0.8 * ((x0 - eps) ** 2).sum()


def test_fields_move_together_by_the_sum_of_their_costs():
    (a, ea), (b, eb) = pairs(), pairs(size=(4,), seed=1)
    x0, eps = {"a": a, "b": b}, {"a": ea, "b": eb}
    process = {"a": Gaussian(EDM()), "b": Gaussian(VE())}
    moved = OptimalTransport()(x0, eps, process)
    cost = sum(((x[:, None] - e[None]) ** 2).flatten(2).sum(2).double() for x, e in ((a, ea), (b, eb)))
    _, columns = linear_sum_assignment(cost.numpy())
    assert torch.equal(moved["a"], ea[columns]) and torch.equal(moved["b"], eb[columns])


def test_a_large_batch_is_coupled_in_groups():
    x0, eps = pairs(rows=10)
    moved = OptimalTransport(rows=4)(x0, eps, Gaussian(EDM()))
    for part in (slice(0, 4), slice(4, 8), slice(8, 10)):
        assert torch.equal(moved[part], OptimalTransport()(x0[part], eps[part], Gaussian(EDM())))


def test_values_that_are_not_finite_are_left_to_the_loss():
    x0, eps = pairs(rows=4)
    x0[2, 0, 0] = torch.nan
    assert torch.equal(OptimalTransport()(x0, eps, Gaussian(EDM())), eps)


def test_names():
    assert coupling("ot") == coupling("immiscible") == OptimalTransport() and coupling("independent") == Independent()
    assert coupling(OptimalTransport(8)) == OptimalTransport(8)


class Recorder(nn.Module):
    def forward(self, x, noise, cond):
        return torch.zeros_like(x)


def test_the_objective_trains_on_the_coupled_noise():
    """With a network that predicts nothing, the loss of a row is that of its new noise, and depends on the batch."""
    x0, rows = pairs(rows=32, size=(3,))[0], torch.arange(32)
    what = EDMPrecond(0.5)

    def loss(coupling, part=slice(None)):
        objective = Objective(EDMWeight(0.5), LogNormal(), what, coupling=coupling)
        denoiser = Preconditioned(Recorder(), Gaussian(EDM()), what)
        return objective(denoiser, x0[part], None, KeyedNoise(rows[part]), 5, rows[part], 32)

    found = loss("ot")
    eps = OptimalTransport()(x0, KeyedNoise(rows).normal(x0, 5, 0), Gaussian(EDM()))
    alpha, sigma = (value[:, None] for value in EDM()(EDM().time(found.lam)))
    wanted = what.target(x0, eps, alpha, sigma).float().square().mean(1)
    assert found.per_sample.tolist() == pytest.approx(wanted.tolist(), rel=1e-4)
    assert torch.equal(loss("ot").per_sample, found.per_sample)
    halves = torch.cat([loss("independent", slice(0, 16)).per_sample, loss("independent", slice(16, 32)).per_sample])
    assert torch.equal(halves, loss("independent").per_sample)
    assert not torch.equal(loss("independent").per_sample, found.per_sample)


class Masked(Dense):
    """Rows of which the first half of the batch has one entry less."""

    def project(self, x):
        keep = torch.ones_like(x)
        keep[: len(x) // 2, 0] = 0
        return x * keep


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: coupling("optimal"), "coupling=optimal: no such coupling"),
        (lambda: OptimalTransport(1), "rows=1"),
        (lambda: OptimalTransport(True), "rows=True"),
        (
            lambda: OptimalTransport()(
                *[Masked().project(x) for x in pairs(8, (3,))], Gaussian(EDM(), Masked())
            ),
            "rows of different masks or sizes",
        ),
        (lambda: OptimalTransport()(torch.zeros(2, 3), torch.zeros(2, 3), object()), "no Gaussian field"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
