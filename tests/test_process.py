"""Processes: the marginals, their composition, and spaces."""

from __future__ import annotations

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian, reference, streams
from suffuse.schedule import EDM, VE, RectifiedFlow, VPCosine, VPLinear
from suffuse.state import Dense, leaves, map_state

ALL = [VPLinear(), VPCosine(), VE(), EDM(), RectifiedFlow()]
f64 = torch.float64


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_transition_composes_to_the_marginal(schedule):
    """Corrupting to s, then moving up to t, has the mean and the variance of corrupting to t."""
    process, one, zero = Gaussian(schedule), torch.ones(1, 1, dtype=f64), torch.zeros(1, 1, dtype=f64)
    for s, t in ((0.1, 0.4), (0.3, 0.9), (0.5, 0.5), (0.2, 1.0)):
        mean = process.transition(process.corrupt(one, s, zero), s, t, zero)
        first = process.transition(process.corrupt(zero, s, one), s, t, zero)
        second = process.transition(zero, s, t, one)
        assert mean.item() == pytest.approx(float(schedule(t).alpha), abs=1e-12)
        assert (first**2 + second**2).item() == pytest.approx(float(schedule(t).sigma) ** 2, rel=1e-10)


def test_corrupt_prior_and_source():
    process = Gaussian(RectifiedFlow())
    x0, eps = torch.tensor([[2.0]]), torch.tensor([[-4.0]])
    assert process.corrupt(x0, 0.25, eps).item() == pytest.approx(0.75 * 2 - 0.25 * 4)
    assert process.corrupt(x0, 0.25, eps, source=torch.tensor([[8.0]])).item() == pytest.approx(0.75 * 2 + 0.25 * 8)
    assert Gaussian(EDM()).prior(x0, eps).item() == pytest.approx(-320, rel=1e-6)
    assert process.prior(x0, eps, 0.5).item() == pytest.approx(-2)


def test_times_per_row_and_per_token():
    process = Gaussian(RectifiedFlow(), Dense((2,)))
    x0, eps = torch.ones(2, 3, 4, 5, dtype=f64), torch.zeros(2, 3, 4, 5, dtype=f64)
    rows = process.corrupt(x0, torch.tensor([0.25, 0.5]), eps)
    assert rows[0].unique().tolist() == [0.75] and rows[1].unique().tolist() == [0.5]
    tokens = process.corrupt(x0, torch.tensor([[0.0, 0.25, 0.5, 1.0]]).expand(2, -1), eps)
    assert tokens[1, 2, :, 3].tolist() == [1.0, 0.75, 0.5, 0.0]


def test_draw_is_the_keyed_noise():
    noise, like = KeyedNoise(torch.arange(3)), torch.empty(3, 5)
    assert torch.equal(Gaussian(EDM()).draw(like, noise, 2, 1), noise.normal(like, 2, 1))


def test_float64_is_kept_and_float32_is_rounded_once():
    process = Gaussian(VPLinear())
    x0, eps = torch.randn(4, 6, dtype=f64), torch.randn(4, 6, dtype=f64)
    exact = process.corrupt(x0, 0.37, eps)
    assert exact.dtype == f64
    assert (process.corrupt(x0.float(), 0.37, eps.float()).double() - exact).abs().max() < 1e-6


def test_composite_states():
    process = {"a": Gaussian(EDM()), "b": {"c": Gaussian(VE()), "d": Gaussian(RectifiedFlow())}}
    assert reference(process).schedule == EDM()
    assert streams(process) == {"a": 0, "b": {"c": 1, "d": 2}}
    state = {"a": torch.ones(1), "b": {"c": torch.ones(1) * 2, "d": torch.ones(1) * 3}}
    doubled = map_state(lambda x, factor: x * factor, state, 2)
    assert [leaf.item() for leaf in leaves(doubled)] == [2.0, 4.0, 6.0]


def test_dense_space():
    r = torch.arange(12.0).reshape(2, 3, 2)
    assert Dense().mean(r).tolist() == [2.5, 8.5] and Dense().dof(r).tolist() == [6, 6]
    with pytest.raises(ConfigError, match=r"tokens=\(\)"):
        Dense().expand(torch.ones(2, 3), r)
    with pytest.raises(ConfigError, match=r"tokens=\(0,\)"):
        Dense((0,))
