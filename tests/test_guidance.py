"""Guidance: its formula, its interval, and that a scale of one is nothing."""

from __future__ import annotations

import math

import pytest
import torch
from suffuse.denoiser import Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse.grid import Karras
from suffuse.guidance import ClassifierFree
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian
from suffuse.sampler import Multistep, sample
from suffuse.schedule import EDM, VE
from suffuse.state import Dense

f64 = torch.float64


class Shifted(Denoiser):
    """x0 = x / 2 + vector, counting its calls."""

    def __init__(self, process=None):
        super().__init__()
        self.process, self.calls = process or Gaussian(EDM()), 0

    def forward(self, x, t, cond=None):
        self.calls += 1
        if isinstance(x, dict):
            return Prediction({name: leaf / 2 + cond["vector"] for name, leaf in x.items()})
        vector = 0 if cond is None else cond["vector"]
        return Prediction(x / 2 + (vector if x.ndim == 2 or cond is None else vector[..., None]))


X = torch.randn(3, 4, dtype=f64, generator=torch.Generator().manual_seed(0))
COND = {"vector": torch.arange(12.0, dtype=f64).reshape(3, 4)}
NULL = {"vector": -torch.ones(3, 4, dtype=f64)}


def test_formula_in_one_call():
    inner = Shifted()
    found = ClassifierFree(inner, 2.5, NULL)(X, 0.5, COND).x0
    assert inner.calls == 1
    assert (found - (X / 2 + NULL["vector"] + 2.5 * (COND["vector"] - NULL["vector"]))).abs().max() < 1e-14
    assert (ClassifierFree(inner, 0.0, NULL)(X, 0.5, COND).x0 - (X / 2 - 1)).abs().max() < 1e-14
    one_row = ClassifierFree(inner, 2.5, {"vector": NULL["vector"][:1]})(X, 0.5, COND).x0
    assert torch.equal(one_row, found)


def test_scale_one_is_none():
    process = Gaussian(EDM())
    grid, noise, like = Karras()(EDM(), 6), KeyedNoise(torch.arange(3)), torch.empty(3, 4, dtype=f64)
    plain = sample(Shifted(), process, Multistep(), grid, noise, like, COND)
    guided = sample(ClassifierFree(Shifted(), 1.0, NULL), process, Multistep(), grid, noise, like, COND)
    assert torch.equal(plain, guided)
    near = sample(ClassifierFree(Shifted(), 1 + 1e-9, NULL), process, Multistep(), grid, noise, like, COND)
    assert 0 < (near - plain).abs().max() < 1e-6


def test_interval_is_in_log_snr():
    times = torch.linspace(0.02, 0.98, 25, dtype=f64)
    for schedule in (EDM(), VE()):
        inner = Shifted(Gaussian(schedule))
        guided = ClassifierFree(inner, 3.0, NULL, (-2.0, 1.5))
        for t in times.tolist():
            acts = -2.0 <= float(schedule.lam(t)) <= 1.5
            wanted = X / 2 + (NULL["vector"] + 3 * (COND["vector"] - NULL["vector"]) if acts else COND["vector"])
            by_float, by_tensor = guided(X, t, COND).x0, guided(X, torch.full((3,), t, dtype=f64), COND).x0
            by_scalar = guided(X, torch.tensor(t, dtype=f64), COND).x0
            for found in (by_float, by_tensor, by_scalar):
                assert (found - wanted).abs().max() < 1e-14


def test_open_sides():
    schedule = EDM()
    low, high = (ClassifierFree(Shifted(), 3.0, NULL, i) for i in ((None, 0.0), (0.0, None)))
    for t in (0.1, 0.9):
        plain, below = X / 2 + COND["vector"], float(schedule.lam(t)) <= 0
        assert (low(X, t, COND).x0 - plain).abs().max().item() > 1 if below else torch.equal(low(X, t, COND).x0, plain)
        assert torch.equal(high(X, t, COND).x0, plain) if below else (high(X, t, COND).x0 - plain).abs().max() > 1


def test_outside_the_interval_the_denoiser_sees_one_batch():
    rows = []

    class Counting(Shifted):
        def forward(self, x, t, cond=None):
            rows.append(len(x))
            return super().forward(x, t, cond)

    guided = ClassifierFree(Counting(), 3.0, NULL, (0.0, 20.0))
    guided(X, 0.99, COND)
    guided(X, 0.01, COND)
    assert rows == [3, 6]


def test_per_token_times_guide_per_token():
    process = Gaussian(EDM(), Dense((2,)))
    guided = ClassifierFree(Shifted(process), 3.0, NULL, (0.0, math.inf))
    x = torch.zeros(3, 4, 2, dtype=f64)
    t = torch.tensor([[0.01, 0.99]], dtype=f64).expand(3, -1)
    found = guided(x, t, COND).x0
    assert (found[..., 0] - (NULL["vector"] + 3 * (COND["vector"] - NULL["vector"]))).abs().max() < 1e-14
    assert (found[..., 1] - COND["vector"]).abs().max() < 1e-14


def test_named_fields_and_no_condition():
    inner = Shifted({"a": Gaussian(EDM()), "b": Gaussian(EDM())})
    found = ClassifierFree(inner, 2.0, NULL)({"a": X, "b": 2 * X}, 0.5, COND).x0
    guided = NULL["vector"] + 2 * (COND["vector"] - NULL["vector"])
    assert (found["b"] - (X + guided)).abs().max() < 1e-13
    assert torch.equal(ClassifierFree(Shifted(), 2.0, NULL)(X, 0.5).x0, X / 2)


@pytest.mark.parametrize(
    ("scale", "interval", "text"), [(-1.0, (None, None), "scale=-1.0"), (2.0, (1.0, 0.0), "interval")]
)
def test_bad_arguments_are_one_line(scale, interval, text):
    with pytest.raises(ConfigError, match=text) as caught:
        ClassifierFree(Shifted(), scale, NULL, interval)
    assert "\n" not in str(caught.value)
