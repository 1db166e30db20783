"""Given tokens and windows: on a process whose conditional law is known, and on the bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from suffuse.denoiser import Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse.grid import Exponential
from suffuse.levels import CLEAN
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian
from suffuse.rollout import APART, Part, Window, begin, further, given_tokens, parts, roll, with_given
from suffuse.sampler import Multistep, sample
from suffuse.schedule import EDM
from suffuse.state import Dense

RHO = 0.9
"""Correlation of neighbours: a stationary chain x_{k+1} = RHO x_k + sqrt(1 - RHO^2) e."""


def covariance(count: int) -> torch.Tensor:
    k = torch.arange(count, dtype=torch.float64)
    return RHO ** (k[:, None] - k).abs()


class Chain(Denoiser):
    """The exact posterior mean of the chain under a noise level per token, shape (B, 1, T)."""

    def __init__(self, process: Gaussian, count: int) -> None:
        super().__init__()
        self.process, self.c = process, covariance(count)

    def forward(self, x, t, cond=None):
        t = torch.as_tensor(t, dtype=torch.float64)
        t = t.expand(x.shape[0], x.shape[-1]) if t.ndim < 2 else t
        alpha, sigma = self.process.schedule(t)
        a, noise = torch.diag_embed(alpha), torch.diag_embed(sigma**2)
        gain = self.c @ a @ torch.linalg.inv(a @ self.c @ a + noise + 1e-12 * torch.eye(len(self.c)))
        return Prediction((gain @ x[:, 0, :, None]).mT)


PROCESS = Gaussian(EDM(), Dense((2,)))
GRID = Exponential(sigma_min=0.002, sigma_max=80.0)(PROCESS.schedule, 40)


def test_given_tokens_stay_and_the_rest_follows_them():
    """The mean of a later token given the first two is what Gaussian conditioning says, and so is its spread."""
    count, rows = 4, 4000
    known = torch.tensor([[[1.5, -0.7, 0.0, 0.0]]], dtype=torch.float64)
    given = np.array([True, True, False, False])
    like, noise = torch.empty(rows, 1, count, dtype=torch.float64), KeyedNoise(torch.arange(rows))
    grid = with_given(GRID, given, PROCESS.schedule)
    x = begin(PROCESS, like, noise, grid, known, given, 2)
    found = sample(Chain(PROCESS, count), PROCESS, Multistep(40, order=2), grid, noise, like, x=x)
    assert torch.equal(found[..., :2], known[..., :2].expand(rows, -1, -1))
    mean, spread = found[:, 0, 2:].mean(0), found[:, 0, 2:].std(0)
    assert mean.tolist() == pytest.approx([-0.7 * RHO, -0.7 * RHO**2], abs=0.03)
    assert spread.tolist() == pytest.approx([(1 - RHO**2) ** 0.5, (1 - RHO**4) ** 0.5], abs=0.03)


def test_between_two_given_ends():
    known = torch.tensor([[[1.0, 0.0, 2.0]]], dtype=torch.float64)
    given = np.array([True, False, True])
    like, noise = torch.empty(2000, 1, 3, dtype=torch.float64), KeyedNoise(torch.arange(2000))
    grid = with_given(GRID, given, PROCESS.schedule)
    x = begin(PROCESS, like, noise, grid, known, given, 2)
    found = sample(Chain(PROCESS, 3), PROCESS, Multistep(40, order=2), grid, noise, like, x=x)
    assert found[:, 0, 1].mean().item() == pytest.approx(3 * RHO / (1 + RHO**2), abs=0.02)


def rolled(length: int, size: int = 4, overlap: int = 2, rows: int = 4000, **more) -> torch.Tensor:
    seeds = torch.arange(rows)

    def draw(part: Part, here: torch.Tensor, known: torch.Tensor, held: np.ndarray) -> torch.Tensor:
        noise, grid, x = KeyedNoise(seeds + part.number * APART), GRID, None
        if held.any():
            grid = with_given(GRID, held, PROCESS.schedule)
            x = begin(PROCESS, here, noise, grid, known, held, 2)
        return sample(Chain(PROCESS, size), PROCESS, Multistep(40, order=2), grid, noise, here, x=x)

    return roll(draw, torch.empty(rows, 1, length, dtype=torch.float64), 2, size, overlap, **more)


def test_a_long_sample_has_the_law_of_the_chain():
    """The chain is Markov, so windows that overlap by one token or more give its exact law."""
    x = rolled(11)[:, 0]
    assert torch.cov(x.T).sub(covariance(11)).abs().max() < 0.09
    assert x.mean(0).abs().max() < 0.06


def test_the_first_window_is_the_short_sample():
    assert torch.equal(rolled(9, rows=5)[..., :4], rolled(4, rows=5))
    assert torch.equal(rolled(3, rows=5), rolled(4, rows=5)[..., :3])  # shorter than a window: the rest is cut


def test_given_tokens_of_a_long_sample():
    known, given = torch.zeros(1, 1, 9, dtype=torch.float64), np.zeros(9, dtype=bool)
    known[..., 0], known[..., 7], given[[0, 7]] = 2.0, -2.0, True
    x = rolled(9, rows=300, known=known, given=given)
    assert (x[..., 0] == 2).all() and (x[..., 7] == -2).all()
    # The last window knows what was drawn before and the token that is given behind.
    wanted = RHO / (1 + RHO**2) * (x[:, 0, 5] - 2)
    assert (x[:, 0, 6] - wanted).mean().abs() < 0.06 and x[:, 0, 1].mean() == pytest.approx(2 * RHO, abs=0.08)


@pytest.mark.parametrize(
    ("length", "size", "overlap", "wanted"),
    [
        (8, 8, 4, [(0, 0, 0)]), (5, 8, 4, [(0, 0, 0)]), (12, 8, 4, [(0, 0, 0), (1, 4, 4)]),
        (13, 8, 4, [(0, 0, 0), (1, 4, 4), (2, 5, 7)]), (10, 4, 1, [(0, 0, 0), (1, 3, 1), (2, 6, 1)]),
    ],
)  # fmt: skip
def test_windows_cover_all(length, size, overlap, wanted):
    found = list(parts(length, size, overlap))
    assert [tuple(part) for part in found] == wanted
    assert found[-1].first + size >= length


def test_window_sizes():
    assert Window().fitted(8, 32) == (8, 5) and Window(0).fitted(8, 32) == (32, 20)
    assert Window(16, 3).fitted(8, 32) == (16, 3)
    for bad in (Window(8, 8), Window(8, 0), Window(1)):
        with pytest.raises(ConfigError, match=r"window.overlap"):
            bad.fitted(8, 32)
    assert [Window().fitted(size, 99) for size in (2, 4, 8, 9)] == [(2, 1), (4, 2), (8, 5), (9, 5)]
    for options in ({"size": -1}, {"overlap": 1.5}, {"size": True}):
        with pytest.raises(ConfigError, match=f"window.{next(iter(options))}="):
            Window(**options)


def test_masks_of_whole_tokens():
    mask = torch.zeros(1, 3, 4, 2, 2, dtype=torch.bool)
    mask[:, :, 1] = True
    assert given_tokens(mask, 2).tolist() == [False, True, False, False]
    mask[0, 0, 2, 0, 0] = True
    assert given_tokens(mask, 2) is None


def test_resting_tokens_have_the_level_of_clean_ones_in_training():
    grid = with_given(GRID, np.array([True, False]), PROCESS.schedule)
    lam = PROCESS.schedule.lam(torch.from_numpy(grid.t[:, 0]))
    assert (lam - CLEAN).abs().max() < 1e-6
    assert np.array_equal(grid.t[:, 1], GRID.t)


def test_the_clock_goes_on():
    raw = {"start": torch.tensor([0.0, 3.0]), "label": torch.tensor([1, 2])}
    moved = further(raw, "start", 4)
    assert moved["start"].tolist() == [4, 7] and moved["label"] is raw["label"] and raw["start"].tolist() == [0, 3]
    assert further(raw, None, 4) is raw and further(raw, "other", 4) is raw and further(raw, "start", 0) is raw
