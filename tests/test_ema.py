"""EMA: closed forms of the averages, the power profile's width, and bit-exact swaps."""

from __future__ import annotations

import math

import pytest
import torch
from suffuse.ema import EMA, ConstantDecay, PowerDecay
from suffuse.errors import ConfigError
from torch import nn


def run(decay, count):
    """Return the average after parameters 1, 2, … `count`, starting from 0."""
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    ema = EMA([parameter], decay)
    for k in range(1, count + 1):
        with torch.no_grad():
            parameter.fill_(k)
        ema.update()
    with ema.swap():
        return parameter[0].item()


def test_constant_decay_is_the_geometric_sum():
    beta, n = 0.9, 50
    wanted = sum((1 - beta) * beta ** (n - k) * k for k in range(1, n + 1))
    assert run(ConstantDecay(beta, warmup=False), n) == pytest.approx(wanted, rel=1e-12)


def test_warmup_grows_to_the_decay():
    decay = ConstantDecay(0.999)
    assert decay(1) == 2 / 11 and decay(90) == 91 / 100 and decay(10**6) == 0.999


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_power_decay_weights_by_a_power_and_has_its_width(std):
    """Update k of n counts as (k/n)^gamma; the window's standard deviation is `std` of the run."""
    decay, n = PowerDecay(std), 4000
    gamma = decay.gamma
    assert math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) == pytest.approx(std, rel=1e-9)
    beta = [decay(k) for k in range(1, n + 1)]
    weight, kept = [], 1.0
    for k in range(n, 0, -1):
        weight.append((1 - beta[k - 1]) * kept)
        kept *= beta[k - 1]
    weight = torch.tensor(weight[::-1], dtype=torch.float64)
    time = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert weight.sum().item() == pytest.approx(1, abs=1e-9)
    mean = (weight * time).sum()
    assert ((weight * (time - mean) ** 2).sum().sqrt()).item() == pytest.approx(std, rel=2e-3)
    power = time**gamma
    assert (weight / (power / power.sum()) - 1)[n // 2 :].abs().max() < 0.02


def test_power_decay_forgets_the_start():
    assert PowerDecay(0.1)(1) == 0.0


def test_swap_is_bit_exact_and_survives_errors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    ema = EMA(model.parameters(), ConstantDecay(0.9, warmup=False))
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update()
    raw = [p.detach().clone() for p in model.parameters()]
    kept = [average.clone() for average in ema.state_dict()["averages"]]
    with pytest.raises(ZeroDivisionError), ema.swap():
        assert all(torch.equal(p, m) for p, m in zip(model.parameters(), kept, strict=True))
        assert not any(torch.equal(p, r) for p, r in zip(model.parameters(), raw, strict=True))
        _ = 1 / 0
    assert all(torch.equal(p, r) for p, r in zip(model.parameters(), raw, strict=True))
    assert all(torch.equal(a, m) for a, m in zip(ema.state_dict()["averages"], kept, strict=True))


def test_a_restored_average_continues_bit_for_bit(tmp_path):
    def steps(ema, parameter, start, stop):
        for k in range(start, stop):
            with torch.no_grad():
                parameter.copy_(torch.randn(4, generator=torch.Generator().manual_seed(k)))
            ema.update()

    one, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    whole, first = EMA([one], PowerDecay(0.1)), EMA([other], PowerDecay(0.1))
    steps(whole, one, 0, 9)
    steps(first, other, 0, 4)
    torch.save(first.state_dict(), tmp_path / "ema.pt")
    second = EMA([other], PowerDecay(0.1))
    second.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    steps(second, other, 4, 9)
    assert torch.equal(second.state_dict()["averages"][0], whole.state_dict()["averages"][0])


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: ConstantDecay(1.0), "decay=1.0"),
        (lambda: PowerDecay(0.0), "std=0.0"),
        (lambda: PowerDecay(0.4), "std=0.4"),
    ],
)
def test_bad_arguments_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)
