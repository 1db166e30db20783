"""Properties of schedules and grids that hold for all their arguments."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from suffuse.betas import VPBetas, VPTable
from suffuse.grid import Beta, Exponential, Grid, Karras, Leading, Linear, Polyexponential, Trailing
from suffuse.rates import CosineRate, LogLinear, PolynomialRate
from suffuse.schedule import EDM, VE, Polynomial, RectifiedFlow, VPCosine, VPLinear, VPSigmoid

calm = settings(deadline=None, derandomize=True, max_examples=40)


def number(low, high):
    return st.floats(low, high, allow_nan=False)


def ordered(low, high, gap):
    return st.tuples(number(low, high), number(gap, high)).map(lambda pair: (pair[0], pair[0] + pair[1]))


BASES = st.one_of(
    st.builds(lambda pair: VPLinear(*pair), ordered(1e-3, 30.0, 1e-3)),
    st.builds(VPCosine, number(0.0, 0.1)),
    st.builds(lambda pair, t: VPSigmoid(*pair, t), ordered(-6.0, 3.0, 0.5), number(0.5, 2.0)),
    st.builds(lambda low, ratio: VE(low, low * ratio), number(1e-4, 0.1), number(10.0, 1e5)),
    st.builds(lambda low, ratio, rho: EDM(low, low * ratio, rho), number(1e-4, 0.1), number(10.0, 1e5), number(1, 9)),
    st.just(RectifiedFlow()),
    st.builds(Polynomial, number(0.5, 4.0)),
    st.builds(VPBetas, number(1e-4, 1e-3), number(5e-3, 0.05), st.integers(2, 1500), st.booleans(), st.booleans()),
    st.builds(
        lambda v, zero: VPTable(tuple(v), zero), st.lists(number(0.01, 0.6), min_size=2, max_size=9), st.booleans()
    ),
    st.builds(LogLinear, number(0.0, 0.5)),
    st.just(CosineRate()),
    st.builds(PolynomialRate, number(0.5, 4.0)),
)
SCHEDULES = st.one_of(BASES, st.builds(lambda base, factor: base.shift(factor), BASES, number(0.2, 5.0)))
TIMES = torch.tensor([0.0, 1e-6, 1e-3, 0.05, 0.3, 0.5, 0.77, 0.95, 0.999, 1 - 1e-6, 1.0], dtype=torch.float64)


@calm
@given(SCHEDULES)
def test_schedules_fall_and_invert(schedule):
    lam = schedule.lam(TIMES)
    inside = torch.isfinite(lam)
    assert inside[1:-1].all() and (lam[inside].diff() < 0).all() and not lam.isnan().any()
    # The level is what counts: it comes back to rounding wherever a time can tell two levels apart.
    again = schedule.lam(schedule.time(lam[inside]))
    assert ((again - lam[inside]).abs() <= 1e-7 * (1 + lam[inside].abs())).all()
    assert (schedule.time(lam) - TIMES).abs().max() < 1e-8


@calm
@given(SCHEDULES)
def test_scales_are_finite_and_ordered(schedule):
    alpha, sigma = schedule(TIMES)
    assert torch.isfinite(alpha).all() and torch.isfinite(sigma).all()
    assert (alpha >= 0).all() and (sigma >= 0).all() and (alpha + sigma > 0).all()
    inner = slice(1, -1)
    assert ((sigma / alpha)[inner].diff() > 0).all()


GRIDS = st.one_of(
    st.builds(lambda rho, end: Karras(1e-3, 50.0, end, rho), number(1.0, 9.0), st.sampled_from(["zero", "min"])),
    st.builds(lambda end: Exponential(1e-3, 50.0, end), st.sampled_from(["zero", "min"])),
    st.builds(lambda rho, end: Polyexponential(1e-3, 50.0, end, rho), number(0.5, 3), st.sampled_from(["zero", "min"])),
    st.builds(Linear, number(0.0, 0.5)),
    st.just(Trailing()),
    st.builds(Leading, st.just(1000), st.integers(0, 5)),
    st.builds(Beta, number(0.3, 3.0), number(0.3, 3.0)),
)


@calm
@given(GRIDS, SCHEDULES, st.integers(1, 60))
def test_grids_fall_from_the_top(build, schedule, steps):
    low, high = (float(torch.exp(-schedule.lam(t))) for t in (0.0, 1.0))
    spaced = hasattr(build, "sigma_min")
    if spaced and not max(1e-3, low) < min(50.0, high):
        return
    grid = build(schedule, steps)
    alpha, sigma, lam = grid.table(schedule)
    assert grid.t.shape == (steps + 1,) and grid.steps == steps
    assert (np.diff(grid.t) <= 0).all() and (lam[1:] >= lam[:-1] - 1e-9).all()
    assert np.isfinite(alpha).all() and np.isfinite(sigma).all()
    assert (lam[-1] == math.inf) == (sigma[-1] == 0) and (sigma[-1] == 0 or not grid.clean)
    if spaced:
        assert (
            math.exp(-lam[0]) == np.float64(min(50.0, high)).item()
            or abs(math.exp(-lam[0]) / min(50.0, high) - 1) < 1e-6
        )


@calm
@given(st.lists(st.lists(number(0.0, 1.0), min_size=4, max_size=4), min_size=2, max_size=6))
def test_tables_of_tokens(rows):
    t = np.sort(np.array(rows), axis=0)[::-1].copy()
    alpha, sigma, _ = Grid(t).table(RectifiedFlow())
    assert np.isfinite(alpha).all() and np.isfinite(sigma).all() and (np.diff(sigma, axis=0) <= 1e-12).all()
    resting = t[0] == t[-1]
    assert (sigma[0, resting] == sigma[-1, resting]).all()
    assert (sigma[-1, (t[-1] == 0) & ~resting] == 0).all()
