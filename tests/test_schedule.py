"""Schedules: closed forms in high precision, inverses, derivatives and ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from suffuse.betas import VPBetas, VPTable
from suffuse.errors import ConfigError
from suffuse.rates import CosineRate, LogLinear, PolynomialRate
from suffuse.schedule import (
    EDM,
    VE,
    Polynomial,
    RectifiedFlow,
    Shifted,
    VPCosine,
    VPLinear,
    VPSigmoid,
    resolution_shift,
    token_shift,
)

RATES = [LogLinear(), LogLinear(1e-3), CosineRate(), PolynomialRate(1.0), PolynomialRate(3.0)]
VP = [
    VPLinear(), VPCosine(), VPCosine(0.008), Shifted(VPLinear(), 2.0), Shifted(VPCosine(), 0.5), VPSigmoid(),
    VPSigmoid(0.0, 3.0, 0.9), VPBetas(), VPBetas(1e-4, 0.02, scaled=False), VPBetas(zero_terminal_snr=True),
    VPTable((0.1, 0.3, 0.2, 0.5)), VPTable((0.1, 0.3, 0.2, 0.5), True),
]  # fmt: skip
ALL = [
    *VP, VPLinear(0.1, 0.1), VE(), EDM(), RectifiedFlow(), Polynomial(2.0), Polynomial(0.5), Shifted(EDM(), 2.0),
    Shifted(RectifiedFlow(), 3.0), Shifted(VPBetas(), 2.0), *RATES,
]  # fmt: skip
KINKED = (VPBetas, VPTable)
"""Piecewise: their derivative jumps at the steps."""
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
    h, inner = 1e-6, INNER + (0.3e-3 if isinstance(getattr(schedule, "base", schedule), KINKED) else 0)
    after, before, rates = schedule(inner + h), schedule(inner - h), schedule.rates(inner)
    for up, down, rate in zip(after, before, rates, strict=True):
        assert ((up - down) / (2 * h) - rate).abs().max() < 1e-5 * (1 + rate.abs().max())


@pytest.mark.parametrize("schedule", VP, ids=str)
def test_variance_is_preserved(schedule):
    alpha, sigma = schedule(T)
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-14


def test_ends_without_noise_or_signal_round_trip():
    for schedule in (
        VPCosine(), VPCosine(0.008), RectifiedFlow(), Shifted(RectifiedFlow(), 3.0), VPSigmoid(), Polynomial(2.0),
        VPBetas(zero_terminal_snr=True), VPTable((0.1, 0.3), True), LogLinear(), CosineRate(), PolynomialRate(2.0),
    ):  # fmt: skip
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


def test_tables_are_ddpms():
    """alpha at step k is the root of the cumulative product of Ho et al. 2020, before and after zero terminal SNR."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bar = np.cumprod(1 - betas)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert VPBetas()(t).alpha.numpy() == pytest.approx(np.sqrt(bar), rel=1e-12)
    assert VPTable(tuple(betas))(t).sigma.numpy() == pytest.approx(np.sqrt(1 - bar), rel=1e-10)
    root = np.sqrt(bar)
    wanted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    rescaled = VPBetas(zero_terminal_snr=True)
    assert rescaled(t).alpha.numpy() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert float(rescaled(1.0).alpha) == 0.0 and float(rescaled(0.0).alpha) == 1.0


def test_tables_are_diffusers():
    diffusers = pytest.importorskip("diffusers")
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    made = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert (VPBetas()(t).alpha ** 2 - made.alphas_cumprod.double()).abs().max() < 5e-6  # theirs are float32
    made = diffusers.DDIMScheduler(beta_schedule="linear", rescale_betas_zero_snr=True)
    ours = VPBetas(1e-4, 0.02, scaled=False, zero_terminal_snr=True)
    assert (ours(t).alpha ** 2 - made.alphas_cumprod.double()).abs().max() < 5e-6


def test_sigmoid_is_chens():
    """Chen 2023, algorithm 1, in mpmath's precision by plain evaluation in the middle."""
    t = 0.3
    s = lambda v: 1 / (1 + math.exp(-v / 0.9))  # noqa: E731
    wanted = (s(3) - s(3 * t)) / (s(3) - s(0))
    assert float(VPSigmoid(0.0, 3.0, 0.9)(t).alpha) ** 2 == pytest.approx(wanted, rel=1e-12)


def test_rates_are_probabilities():
    for schedule in RATES:
        alpha, sigma = schedule(T)
        assert (alpha + sigma - 1).abs().max() < 1e-15 and (alpha >= 0).all()
        assert float(alpha[0]) == pytest.approx(1, abs=1e-15)
    assert float(CosineRate()(0.25).sigma) == pytest.approx(math.cos(0.75 * math.pi / 2), rel=1e-14)
    assert float(LogLinear(0.1)(1.0).alpha) == pytest.approx(0.1)
    assert float(PolynomialRate(3.0)(0.5).sigma) == pytest.approx(0.125)
    assert float(Polynomial(2.0)(0.5).alpha) == pytest.approx(0.25)


def test_shifts_by_size_and_tokens():
    shifted = resolution_shift(VPCosine(), 128, 64)
    # log-SNR, twice lam, is lower by 2 log 2.
    assert float(2 * (VPCosine().lam(0.4) - shifted.lam(0.4))) == pytest.approx(2 * math.log(2))
    for tokens, mu in ((256, 0.5), (4096, 1.15), (2176, 0.825)):
        assert token_shift(RectifiedFlow(), tokens).factor == pytest.approx(math.exp(mu))


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
        (lambda: RectifiedFlow().shift(0.0), "factor=0.0"), (lambda: VPSigmoid(1.0, 1.0), "start < end"),
        (lambda: VPSigmoid(temperature=0.0), "temperature=0.0"), (lambda: Polynomial(0.0), "power=0.0"),
        (lambda: VPTable(()), "at least two betas"), (lambda: VPTable((0.1, 1.0)), r"values\[1\]=1.0"),
        (lambda: VPTable((0.1, math.nan)), r"values\[1\]=nan"), (lambda: VPBetas(0.1, 0.01), "beta_start < beta_end"),
        (lambda: VPBetas(count=1), "count=1"), (lambda: LogLinear(1.0), "eps=1.0"),
        (lambda: PolynomialRate(-1.0), "power=-1.0"), (lambda: resolution_shift(VPCosine(), 0), "size=0"),
        (lambda: token_shift(RectifiedFlow(), 0), "tokens >= 1"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
