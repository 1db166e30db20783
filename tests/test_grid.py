"""Grids: their nodes in closed form, their ends, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from suffuse.errors import ConfigError
from suffuse.grid import (
    TABLES,
    AlignYourSteps,
    Beta,
    Explicit,
    Exponential,
    Grid,
    Karras,
    Leading,
    Linear,
    Polyexponential,
    Trailing,
)
from suffuse.schedule import EDM, VE, RectifiedFlow, Shifted, VPCosine, VPLinear

SCHEDULES = [VPLinear(), VPCosine(), VPCosine(0.008), VE(), EDM(), RectifiedFlow(), Shifted(RectifiedFlow(), 3.0)]
BUILDERS = [
    Karras(), Karras(end="min"), Exponential(), Exponential(end="min"), Linear(), Trailing(), Leading(), Beta(),
    Polyexponential(rho=2.0), Explicit((50.0, 4.0, 0.5, 0.1, 0.0), True), Explicit((20.0, 0.3), True),
]  # fmt: skip


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


def test_beta_quantiles_are_scipys():
    from scipy.stats import beta

    for a, b in ((0.6, 0.6), (2.0, 5.0), (1.0, 1.0), (0.3, 3.0)):
        t = Beta(a, b)(EDM(), 11).t
        assert t == pytest.approx(beta.ppf(1 - np.arange(12) / 11, a, b), abs=1e-10)


def test_leading_is_ddims():
    diffusers = pytest.importorskip("diffusers")
    made = diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    for n in (7, 20):
        made.set_timesteps(n)
        assert Leading()(EDM(), n).t[:-1] * 1000 - 1 == pytest.approx(made.timesteps.numpy(), abs=1e-9)


def test_polyexponential_is_k_diffusions():
    sigma = np.exp(-Polyexponential(rho=3.0, end="min")(EDM(), 5).table(EDM())[2])
    ramp = np.linspace(1, 0, 6) ** 3
    assert sigma == pytest.approx(np.exp(ramp * (math.log(80) - math.log(0.002)) + math.log(0.002)), rel=1e-9)
    assert Polyexponential()(EDM(), 6).t == pytest.approx(Exponential()(EDM(), 6).t, abs=1e-12)


def test_explicit_levels_are_kept():
    levels = (14.0, 3.0, 0.7, 0.1, 0.0)
    grid = Explicit(levels)(EDM(), 4)
    assert grid.clean and np.exp(-grid.table(EDM())[2]) == pytest.approx(levels, rel=1e-9)
    doubled = np.exp(-Explicit((16.0, 4.0, 1.0), True)(EDM(), 4).table(EDM())[2])
    assert doubled == pytest.approx([16, 8, 4, 2, 1], rel=1e-9)
    with pytest.raises(ConfigError, match=r"4 intervals, not sampler\.steps=5"):
        Explicit(levels)(EDM(), 5)


def test_align_your_steps():
    wide = EDM(0.001, 1000.0)
    for name, table in TABLES.items():
        grid = AlignYourSteps(name)(wide, 10)
        assert np.exp(-grid.table(wide)[2]) == pytest.approx([*table[:-1], 0.0], rel=1e-9)
    twenty = np.exp(-AlignYourSteps()(wide, 20).table(wide)[2])
    assert twenty[:20:2] == pytest.approx(TABLES["sd15"][:-1], rel=1e-9)
    assert twenty[1] == pytest.approx(math.sqrt(14.615 * 6.475))


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
        (lambda: Grid(np.array([1.0, math.nan])), "NaN"), (lambda: Karras()(EDM(), 0), "steps=0"),
        (lambda: Beta(0.0), "alpha > 0"), (lambda: Beta()(EDM(), 0), "steps=0"),
        (lambda: Trailing()(EDM(), 0), "steps=0"),
        (lambda: Linear()(EDM(), 0), "steps=0"), (lambda: Leading(offset=-1), "offset"),
        (lambda: Leading(count=10)(EDM(), 11), "more than the 10 steps"), (lambda: Polyexponential(rho=0.0), "rho=0.0"),
        (lambda: Explicit(()), "at least two"), (lambda: Explicit((1.0, 2.0)), r"sigmas\[1\]=2.0"),
        (lambda: Explicit((1.0, math.nan)), r"sigmas\[1\]=nan"),
        (lambda: Explicit((1.0, 0.0, 0.0)), r"sigmas\[1\]=0.0"),
        (lambda: Explicit((2.0, 1.0))(EDM(), 0), "steps=0"), (lambda: AlignYourSteps("sd9"), "model=sd9"),
        (lambda: Linear(1.0), "t_min=1.0"), (lambda: Karras(sigma_min=1e-4, sigma_max=1e-3)(EDM(), 4), "outside"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
