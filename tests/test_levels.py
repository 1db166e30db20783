"""Noise levels per token: their law, their loss, and what a clean token is."""

from __future__ import annotations

import pytest
import torch
from suffuse.denoiser import X0, Preconditioned
from suffuse.errors import ConfigError
from suffuse.levels import CLEAN, TokenLevels
from suffuse.noise import KeyedNoise
from suffuse.objective import FlowWeight, LogitNormal, Objective, UniformWeight, field_error
from suffuse.process import Gaussian
from suffuse.schedule import RectifiedFlow
from suffuse.state import Dense
from suffuse.uncertainty import Uncertainty
from torch import Tensor, nn

TOKENS = 6


class Answer(nn.Module):
    """A network that predicts x0 = 0, and remembers what noise it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.told = nn.Parameter(torch.zeros(())), torch.empty(0)

    def forward(self, x: Tensor, noise: Tensor, cond: object = None) -> Tensor:
        self.told = noise
        return self.weight * x


def drawn(rows: int = 4000, **shares: float) -> tuple[Tensor, Tensor]:
    u = torch.linspace(0.01, 0.99, rows, dtype=torch.float64)
    return TokenLevels(**shares).quantiles(KeyedNoise(torch.arange(rows)), 3, u, TOKENS)


def test_shares():
    u, clean = drawn(independent=0.3, given=0.4)
    own = (u != u[:, :1]).any(1)
    assert own.double().mean() == pytest.approx(0.3, abs=0.03)
    assert clean.any(1).double().mean() == pytest.approx(0.4, abs=0.03)
    assert not (own & clean.any(1)).any()
    rows = torch.linspace(0.01, 0.99, 4000, dtype=torch.float64)
    assert torch.equal(u[~own], rows[~own, None].expand(-1, TOKENS))  # one level for all, the row's own


def test_something_is_always_left_to_learn():
    _, clean = drawn(independent=0.0, given=1.0)
    counts = clean.sum(1)
    assert counts.min() == 1 and counts.max() == TOKENS - 1
    assert all((counts == n).double().mean() == pytest.approx(0.2, abs=0.03) for n in range(1, TOKENS))


def test_which_tokens_are_given():
    """Half begin, a quarter are ends, a quarter any: two given tokens of six are the first two, one at each end, or any
    of the fifteen pairs."""
    _, clean = drawn(rows=20_000, independent=0.0, given=1.0)
    two = clean[clean.sum(1) == 2]
    first = (two[:, :2].all(1)).double().mean()
    ends = (two[:, 0] & two[:, -1]).double().mean()
    assert first == pytest.approx(0.5 + 0.25 / 15, abs=0.03)
    assert ends == pytest.approx(0.25 + 0.25 / 15, abs=0.03)
    assert len({tuple(row) for row in two.tolist()}) == 15


def test_independent_levels_are_uniform_quantiles():
    u, clean = drawn(independent=1.0, given=0.0)
    assert not clean.any()
    assert u.mean() == pytest.approx(0.5, abs=0.01) and u.var() == pytest.approx(1 / 12, abs=0.004)
    corr = torch.corrcoef(u.T)
    assert (corr - torch.eye(TOKENS)).abs().max() < 0.06


def test_a_row_depends_on_its_own_stream():
    levels, u = TokenLevels(0.5, 0.5), torch.full((3,), 0.4, dtype=torch.float64)
    whole = levels.quantiles(KeyedNoise(torch.tensor([5, 6, 7])), 1, u, TOKENS)
    alone = levels.quantiles(KeyedNoise(torch.tensor([6])), 1, u[:1], TOKENS)
    assert all(torch.equal(a[1:2], b) for a, b in zip(whole, alone, strict=True))


def test_one_token_is_never_given():
    _, clean = TokenLevels(0.0, 1.0).quantiles(KeyedNoise(torch.arange(5)), 0, torch.rand(5, dtype=torch.float64), 1)
    assert not clean.any()


def test_a_clean_token_costs_nothing_and_the_rest_counts_as_always():
    process, weight = Gaussian(RectifiedFlow(), Dense((2,))), UniformWeight()
    away = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    t = torch.full((2, 4), 0.6, dtype=torch.float64)
    t[0, :3] = process.schedule.time(torch.tensor(CLEAN, dtype=torch.float64))
    error = field_error(away, torch.ones(2, 4, dtype=torch.float64), process, weight, t)
    assert error[0].item() == pytest.approx(away[0, :, 3].square().mean().item(), rel=1e-5)
    assert error[1].item() == pytest.approx(away[1].square().mean().item(), rel=1e-5)
    one = field_error(away, torch.ones(2, dtype=torch.float64), process, weight, t[1:, 0].expand(2))
    assert error[1].item() == pytest.approx(one[1].item(), rel=1e-5)  # equal levels are one level


def objective(**more: object) -> Objective:
    return Objective(FlowWeight(), LogitNormal(0.0, 1.0), X0(), **more)


def test_the_network_is_told_every_level():
    network = Answer()
    denoiser = Preconditioned(network, Gaussian(RectifiedFlow(), Dense((2,))), X0(sigma_data=1.0))
    x0 = torch.randn(8, 3, TOKENS, 2, generator=torch.Generator().manual_seed(0))
    loss = objective(tokens=TokenLevels(0.5, 0.5))(denoiser, x0, None, KeyedNoise(torch.arange(8)))
    assert network.told.shape == (8, TOKENS) and torch.isfinite(loss.per_sample).all() and loss.lam.shape == (8,)
    assert (network.told == CLEAN / 4).any()
    loss.total.backward()
    assert torch.isfinite(network.weight.grad)


def test_without_tokens_nothing_changes():
    network = Answer()
    x0 = torch.randn(8, 3, TOKENS, 2, generator=torch.Generator().manual_seed(0))
    values = []
    for tokens, axes in ((None, ()), (None, (2,)), (TokenLevels(0.0, 0.0), (2,))):
        denoiser = Preconditioned(network, Gaussian(RectifiedFlow(), Dense(axes)), X0(sigma_data=1.0))
        values.append(objective(tokens=tokens)(denoiser, x0, None, KeyedNoise(torch.arange(8))).per_sample)
    assert torch.equal(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TokenLevels(independent=-0.1), "tokens.independent=-0.1"),
        (lambda: TokenLevels(independent=0.6, given=0.5), "tokens.independent=0.6"),
        (lambda: TokenLevels(given=1.5), "tokens.independent|tokens.given=1.5"),
        (lambda: objective(tokens=TokenLevels(), importance=True), "objective.tokens"),
        (lambda: objective(tokens=TokenLevels(), uncertainty=Uncertainty()), "objective.tokens"),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_space_without_tokens_is_one_line():
    denoiser = Preconditioned(Answer(), Gaussian(RectifiedFlow()), X0(sigma_data=1.0))
    with pytest.raises(ConfigError, match=r"process.space.tokens=\[2\]"):
        objective(tokens=TokenLevels())(denoiser, torch.randn(2, 3, 4), None, KeyedNoise(torch.arange(2)))
