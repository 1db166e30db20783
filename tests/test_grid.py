"""Grids: their nodes in closed form, their ends, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from suffuse.errors import ConfigError
from suffuse.grid import Exponential, Grid, Karras, Linear, Trailing
from suffuse.schedule import EDM, VE, RectifiedFlow, Shifted, VPCosine, VPLinear

SCHEDULES = [VPLinear(), VPCosine(), VPCosine(0.008), VE(), EDM(), RectifiedFlow(), Shifted(RectifiedFlow(), 3.0)]
BUILDERS = [Karras(), Karras(end="min"), Exponential(), Exponential(end="min"), Linear(), Trailing()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("builder", BUILDERS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_steps_are_intervals_and_lam_rises(schedule, builder, steps):
    grid = builder(schedule, steps)
    alpha, sigma, lam = grid.table(schedule)
    assert grid.steps == steps and grid.t.shape == (steps + 1,) and grid.t.dtype == np.float64
    assert (np.diff(lam) > 0).all() and np.isfinite(alpha).all() and np.isfinite(sigma).all()
    assert (sigma[-1] == 0 and lam[-1] == math.inf) == grid.clean
    if grid.clean:
        assert alpha[-1] == pytest.approx(float(schedule(0.0).alpha), rel=1e-12)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), EDM(), RectifiedFlow()], ids=str)
def test_levels_are_the_closed_forms(schedule):
    n = 7
    _, _, lam = Karras(end="min")(schedule, n).table(schedule)
    i = np.arange(n + 1) / n
    low, high = 0.002, min(80.0, math.exp(-float(schedule.lam(1.0)))) if schedule != VPCosine() else 80.0
    low = max(low, math.exp(-float(schedule.lam(0.0))))
    wanted = (high ** (1 / 7) + i * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    assert np.exp(-lam) == pytest.approx(wanted, rel=1e-9)
    _, _, lam = Exponential(end="min")(schedule, n).table(schedule)
    assert np.diff(lam) == pytest.approx(math.log(high / low) / n, rel=1e-9)


def test_karras_on_edm_is_the_schedule_itself():
    assert Karras(end="min")(EDM(), 10).t == pytest.approx(np.linspace(1, 0, 11), abs=1e-12)
    sigma = Karras()(EDM(), 3).table(EDM())[1]
    assert sigma == pytest.approx([80.0, 2.5152189, 0.002, 0.0], rel=1e-6)


def test_zero_end_adds_the_clean_node():
    zero, least = Exponential()(VE(), 5), Exponential(end="min")(VE(), 4)
    assert zero.t[:-1] == pytest.approx(least.t) and zero.clean and not least.clean


def test_linear_and_trailing():
    assert Linear(0.1)(EDM(), 4).t == pytest.approx([1.0, 0.7, 0.4, 0.1, 0.0])
    assert Trailing()(EDM(), 4).t == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_clean_in_a_table_is_for_tokens_that_arrive():
    t = np.array([[0.0, 0.5, 1.0, 1.0], [0.0, 0.5, 0.6, 0.8], [0.0, 0.5, 0.0, 0.3]])
    sigma = Grid(t).table(EDM())[1]
    assert sigma[-1] == pytest.approx([0.002, float(EDM()(0.5).sigma), 0.0, float(EDM()(0.3).sigma)])
    assert sigma[0, 0] == sigma[-1, 0]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Grid(np.array([1.0])), "two nodes"), (lambda: Grid(np.array([0.0, 1.0])), "increase"),
        (lambda: Karras(sigma_min=2.0, sigma_max=1.0), "sigma_min"), (lambda: Karras(end="no"), "grid.end=no"),
        (lambda: Linear(1.0), "t_min=1.0"), (lambda: Karras(sigma_min=1e-4, sigma_max=1e-3)(EDM(), 4), "outside"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
