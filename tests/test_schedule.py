"""Schedules: closed forms in high precision, inverses, derivatives and ends."""

from __future__ import annotations

import math

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.schedule import EDM, VE, RectifiedFlow, Shifted, VPCosine, VPLinear

ALL = [
    VPLinear(), VPLinear(0.1, 0.1), VPCosine(), VPCosine(0.008), VE(), EDM(), RectifiedFlow(),
    Shifted(RectifiedFlow(), 3.0), Shifted(VPCosine(), 0.5), Shifted(EDM(), 2.0), Shifted(VPLinear(), 2.0),
]  # fmt: skip
VP = [VPLinear(), VPCosine(), VPCosine(0.008), Shifted(VPLinear(), 2.0), Shifted(VPCosine(), 0.5)]
T = torch.linspace(0, 1, 201, dtype=torch.float64)
INNER = T[1:-1]


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_time_inverts_lam(schedule):
    assert (schedule.time(schedule.lam(INNER)) - INNER).abs().max() < 1e-12
    lam = torch.linspace(float(schedule.lam(0.999)), float(schedule.lam(0.001)), 101, dtype=torch.float64)
    assert (schedule.lam(schedule.time(lam)) - lam).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_lam_falls_and_is_the_log_ratio(schedule):
    lam = schedule.lam(INNER)
    alpha, sigma = schedule(INNER)
    assert (lam.diff() < 0).all()
    assert (torch.exp(-lam) * alpha / sigma - 1).abs().max() < 1e-12


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_rates_are_the_derivatives(schedule):
    h = 1e-6
    after, before, rates = schedule(INNER + h), schedule(INNER - h), schedule.rates(INNER)
    for up, down, rate in zip(after, before, rates, strict=True):
        assert ((up - down) / (2 * h) - rate).abs().max() < 1e-5 * (1 + rate.abs().max())


@pytest.mark.parametrize("schedule", VP, ids=str)
def test_variance_is_preserved(schedule):
    alpha, sigma = schedule(T)
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-14


def test_ends_without_noise_or_signal_round_trip():
    for schedule in (VPCosine(), VPCosine(0.008), RectifiedFlow(), Shifted(RectifiedFlow(), 3.0)):
        assert float(schedule.lam(0.0)) == math.inf and float(schedule.lam(1.0)) == -math.inf
        assert float(schedule.time(math.inf)) == pytest.approx(0, abs=1e-15)
        assert float(schedule.time(-math.inf)) == pytest.approx(1, abs=1e-15)
    assert float(VPCosine(0.008)(1.0).alpha) == 0.0
    assert float(VPLinear().lam(0.0)) == math.inf and float(VPLinear().time(math.inf)) == 0.0


def test_small_times_keep_their_digits():
    # sigma ~ pi t / 2 for the cosine; sigma^2 ~ beta_min t for the linear rate.
    assert float(VPCosine()(1e-12).sigma) == pytest.approx(math.pi / 2 * 1e-12, rel=1e-12)
    assert float(VPLinear()(1e-12).sigma) == pytest.approx(math.sqrt(0.1e-12), rel=1e-9)
    for schedule in (VPLinear(), VPCosine(), VPCosine(0.008), RectifiedFlow()):
        assert float(schedule.time(schedule.lam(1e-9))) == pytest.approx(1e-9, rel=1e-6)


def test_known_values():
    assert float(VPLinear()(1.0).alpha) == pytest.approx(math.exp(-5.025), rel=1e-14)
    assert float(VE()(0.5).sigma) == pytest.approx(math.sqrt(0.01 * 50), rel=1e-14)
    assert float(EDM()(1.0).sigma) == pytest.approx(80, rel=1e-13)
    assert float(EDM()(0.0).sigma) == pytest.approx(0.002, rel=1e-13)
    assert [float(v) for v in RectifiedFlow()(0.25)] == [0.75, 0.25]


def test_shift_is_the_time_shift_of_sd3():
    t = INNER
    shifted = RectifiedFlow().shift(3.0)
    assert (shifted(t).sigma - 3 * t / (1 + 2 * t)).abs().max() < 1e-14
    assert (shifted.lam(t) - RectifiedFlow().lam(t) + math.log(3)).abs().max() < 1e-12


def test_any_shape_is_float64():
    for schedule in ALL:
        for t in (0.3, torch.tensor(0.3), torch.full((2, 3), 0.3)):
            alpha, sigma = schedule(t)
            assert alpha.dtype == sigma.dtype == torch.float64
            assert alpha.shape == sigma.shape == torch.as_tensor(t).shape


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: VPLinear(0.0, 1.0), "beta_min"), (lambda: VPLinear(2.0, 1.0), "beta_max"),
        (lambda: VPCosine(1.0), "offset=1.0"), (lambda: VE(2.0, 1.0), "sigma_min"), (lambda: EDM(rho=0.5), "rho=0.5"),
        (lambda: RectifiedFlow().shift(0.0), "factor=0.0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
