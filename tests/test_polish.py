"""Polished: the mean over noises, its law on a Gaussian, what it costs, and what it leaves alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from suffuse.denoiser import Exact
from suffuse.errors import ConfigError
from suffuse.grid import Exponential, Grid, Karras, Trailing
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian as Process
from suffuse.sampler import Multistep, Polished, Restart, invert, sample
from suffuse.sampler.engine import FURTHER
from suffuse.schedule import EDM, RectifiedFlow, VPLinear
from suffuse.state import Dense
from suffuse.targets import Gaussian, GaussianMixture

f64 = torch.float64
ROWS = 24


def mixture():
    means = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=f64)
    return GaussianMixture(means, torch.full((6,), 0.05, dtype=f64), torch.full((6,), 1 / 6, dtype=f64))


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), RectifiedFlow()], ids=str)
def test_polishing_is_the_mean_over_noises(schedule):
    """Each level takes the mean of the predictions from the clean state and the noises of its own leg."""
    process, target = Process(schedule), mixture()
    denoiser, noise = Exact(process, target.posterior_mean), KeyedNoise(torch.arange(ROWS))
    grid, like = Exponential(sigma_min=0.05, sigma_max=50.0)(schedule, 8), torch.empty(ROWS, 2, dtype=f64)
    plain = sample(denoiser, process, Multistep(8), grid, noise, like)
    found = sample(denoiser, process, Polished(8, levels=(1.5, 0.4), draws=3), grid, noise, like)
    x = plain / float(schedule(float(grid.t[-1])).alpha)
    for leg, level in enumerate((1.5, 0.4), start=8):
        t = float(schedule.time(torch.tensor(-math.log(level), dtype=f64)))
        alpha, sigma = map(float, schedule(t))
        draws = [process.draw(like, noise, leg + 1 + k * FURTHER, 0) for k in range(3)]
        x = torch.stack([denoiser(alpha * x + sigma * eps, t).x0 for eps in draws]).mean(0)
    assert (found / float(schedule(float(grid.t[-1])).alpha) - x).abs().max() < 1e-9
    assert (found - plain).abs().max() > 1e-2


def test_what_polishing_leaves_of_a_gaussian():
    v, s, draws, rows = 0.5, 0.8, 4, 40_000
    process = Process(EDM())
    target = Gaussian(torch.tensor([0.7], dtype=f64), torch.tensor([v], dtype=f64))
    grid, like = Karras()(EDM(), 40), torch.empty(rows, 1, dtype=f64)
    sampler = Polished(40, levels=(s,), draws=draws)
    found = sample(Exact(process, target.posterior_mean), process, sampler, grid, KeyedNoise(torch.arange(rows)), like)
    c = v / (v + s**2)
    assert float(found.mean()) == pytest.approx(0.7, abs=0.01)
    assert float(found.var()) == pytest.approx(v * c**2 + c**2 * s**2 / draws, rel=0.03)


def test_polishing_costs_and_when_it_is_left_out():
    process, whole = Process(EDM()), Karras()(EDM(), 6)
    sampler = Polished(6, levels=(2.0, 0.5), draws=3)
    assert sampler.plan(whole, process).evaluations == 6 + 2 * 3
    low = Exponential(sigma_min=0.02, sigma_max=1.0)(EDM(), 6)  # a way that begins below the first level
    assert sampler.plan(low, process).evaluations == 6 + 3
    unclean = Exponential(sigma_min=0.02, sigma_max=80.0, end="min")(EDM(), 6)
    assert sampler.plan(unclean, process) == Multistep(6).plan(unclean, process)


def test_polishing_keeps_given_tokens():
    """Tokens that rest are as they were, and what is polished is what one time for all would give."""
    process = Process(RectifiedFlow(), Dense((1,)))
    denoiser = Exact(process, lambda x, alpha, sigma: alpha * x / (alpha**2 + sigma**2))
    grid = Trailing()(RectifiedFlow(), 6)
    x = torch.randn(3, 4, 2, dtype=f64, generator=torch.Generator().manual_seed(1))
    table = np.repeat(grid.t[:, None], x.shape[1], 1)
    table[:, 1] = 3e-7
    noise, sampler = KeyedNoise(torch.arange(3)), Polished(6, levels=(2.0, 0.5), draws=3)
    found = sample(denoiser, process, sampler, Grid(table, grid.clean), noise, x, x=x)
    one = sample(denoiser, process, sampler, grid, noise, x, x=x)
    assert torch.equal(found[:, 1], x[:, 1]) and (found - one)[:, [0, 2, 3]].abs().max() < 1e-9


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"levels": (0.0,)}, "sampler.levels"), ({"levels": (math.nan,)}, "sampler.levels"), ({"draws": 0}, "draws=0")],
)
def test_bad_arguments_are_one_line(arguments, text):
    with pytest.raises(ConfigError, match=text) as caught:
        Polished(**arguments)
    assert "\n" not in str(caught.value)


def test_polishing_cannot_be_inverted():
    process, x = Process(EDM()), torch.zeros(1, 2, dtype=f64)
    for sampler in (Polished(), Restart(low=0.1, high=1.0)):
        with pytest.raises(ConfigError, match="no way back"):
            invert(Exact(process, mixture().posterior_mean), process, sampler, Karras()(EDM(), 9), x)
