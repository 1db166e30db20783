"""Variations of sounds: each does what it says, and the same one every time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse_audio.data import Folder
from suffuse_audio.data.augment import Augment

RATE = 8000


def clip(f: float = 440.0, n: int = 4096) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * f * torch.arange(n) / RATE)[None]


def peak(x: torch.Tensor) -> float:
    return float(torch.fft.rfft(x[0] * torch.hann_window(x.shape[1])).abs().argmax()) * RATE / x.shape[1]


def test_gain_stays_within_its_decibels_and_uses_them():
    x = clip()
    found = [float(Augment(gain=6)(x, RATE, 0, 0, i).abs().max() / x.abs().max()) for i in range(60)]
    decibels = [20 * math.log10(ratio) for ratio in found]
    assert max(decibels) <= 6 and min(decibels) >= -6 and max(decibels) > 4 and min(decibels) < -4
    assert Augment(gain=40)(x, RATE, 0, 0, 3).abs().max() <= 1


def test_speed_moves_the_pitch_as_far_as_it_says():
    found = [peak(Augment(speed=0.1)(clip(), RATE, 0, 0, i)) / 440 for i in range(40)]
    assert max(found) <= 1.13 and min(found) >= 0.89 and max(found) > 1.05 and min(found) < 0.95
    assert all(Augment(speed=0.1)(clip(), RATE, 0, 0, i).shape == (1, 4096) for i in range(3))


def test_shift_moves_and_fills_with_silence():
    x, seen = clip(), set()
    for i in range(20):
        y = Augment(shift=0.1)(x, RATE, 0, 0, i)
        there = torch.nonzero(y[0])[:, 0]
        first, last = int(there[0]), int(there[-1])
        size = last - first + 1
        inside = x[0].unfold(0, size, 1)
        assert (inside - y[0, first : last + 1]).abs().amax(1).min() < 1e-6 and size >= 4096 - 802
        seen.add(first > 1)
    assert seen == {True, False}


def test_polarity_and_noise():
    x = clip()
    signs = [float((Augment(polarity=True)(x, RATE, 0, 0, i) * x).sum()) > 0 for i in range(40)]
    assert 8 < sum(signs) < 32
    added = Augment(noise=-20)(x, RATE, 0, 0, 1) - x
    assert 20 * math.log10(float(added.std() / x.square().mean().sqrt())) == pytest.approx(-20, abs=0.3)
    assert torch.equal(Augment()(x, RATE, 0, 0, 1), x)


def test_draws_are_a_function_of_seed_epoch_and_item():
    vary, x = Augment(gain=6, speed=0.1, shift=0.05, noise=-30), clip()
    base = vary(x, RATE, 1, 2, 3)
    assert torch.equal(base, vary(x, RATE, 1, 2, 3))
    assert not any(torch.equal(base, vary(x, RATE, *key)) for key in ((0, 2, 3), (1, 3, 3), (1, 2, 4)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gian": 3}, "data.augment.gian: no such variation; did you mean 'gain'"),
        ({"gain": -1}, "data.augment.gain=-1 must be a number from 0 to 40"),
        ({"speed": 0.9}, "data.augment.speed=0.9"),
        ({"noise": "loud"}, "data.augment.noise=loud"),
    ],
)
def test_what_makes_no_sense_is_named(given, said):
    with pytest.raises(ConfigError, match=said):
        Augment.of(given)


def test_a_folder_varies_its_training_sounds_only(tones: Path):
    options = {"path": str(tones), "rate": 8000, "seconds": 0.5, "crop": False}
    plain, varied = Folder(**options), Folder(**options, augment={"gain": 6, "shift": 0.05})
    for data in (plain, varied):
        data.setup()
    assert varied.train.epochs and not plain.train.epochs
    a, b, c = (varied.train[key]["x"] for key in ((0, 1), (1, 1), (0, 1)))
    assert torch.equal(a, c) and not torch.equal(a, b) and not torch.equal(a, plain.train[1]["x"])
    assert torch.equal(varied.val[0]["x"], plain.val[0]["x"])
    assert "00.wav" in plain.fingerprint() and plain.fingerprint() == varied.fingerprint()
