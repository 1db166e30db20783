"""What is known of a sample beforehand, and samples between two ends."""

from __future__ import annotations

import math

import pytest
import torch
from suffuse.codec import Identity, opened
from suffuse.edit import Edit, Path
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian
from suffuse.schedule import EDM

SEEDS = torch.arange(4000)


def between(weight: float, far: torch.Tensor) -> torch.Tensor:
    like = torch.empty(len(SEEDS), 3)
    path = Path({}, far, torch.full((len(SEEDS),), weight))
    found = path.start(Gaussian(EDM()), like, KeyedNoise(SEEDS), 1.0)
    assert isinstance(found, torch.Tensor)
    return found / 80.0


def test_noise_between_two_seeds_is_white() -> None:
    near, far = between(0.0, SEEDS + 10_000), between(1.0, SEEDS + 10_000)
    assert torch.allclose(far, KeyedNoise(SEEDS + 10_000).normal(torch.empty(4000, 3), 0, 0), atol=1e-5)
    for weight in (0.25, 0.5):
        x = between(weight, SEEDS + 10_000)
        assert abs(float(x.mean())) < 0.03 and abs(float(x.std()) - 1) < 0.03
        # On the circle through both: its correlation with each end is the cosine and the sine.
        assert float((x * near).mean()) == pytest.approx(math.cos(weight * math.pi / 2), abs=0.04)
        assert float((x * far).mean()) == pytest.approx(math.sin(weight * math.pi / 2), abs=0.04)


def test_one_seed_is_its_own_noise() -> None:
    path = Path({}, SEEDS[:5], torch.linspace(0, 1, 5))
    assert path.start(Gaussian(EDM()), torch.empty(5, 3), KeyedNoise(SEEDS[:5]), 1.0) is None


def test_conditions_between_two_ends() -> None:
    a = {"vector": torch.zeros(3, 2), "tokens": torch.zeros(3, 2, 2), "mask": torch.tensor([[True, False]] * 3)}
    b = {"vector": torch.ones(3, 2), "tokens": torch.ones(3, 2, 2), "mask": torch.tensor([[False, True]] * 3)}
    mixed = Path({}, SEEDS[:3], torch.tensor([0.0, 0.25, 1.0])).blend(a, b)
    assert mixed["vector"][:, 0].tolist() == [0, 0.25, 1] and mixed["tokens"][1].unique().tolist() == [0.25]
    assert bool(mixed["mask"].all())


@pytest.mark.parametrize(("strength", "first"), [(1.0, 0), (0.5, 10), (0.05, 19), (0.001, 19), (0.8, 4)])
def test_strength_is_a_share_of_the_steps(strength: float, first: int) -> None:
    assert Edit(torch.zeros(1), strength=strength).first(20) == first


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5])
def test_a_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ConfigError, match=r"strength=.* must be above 0"):
        Edit(torch.zeros(1), strength=strength)


def test_nothing_to_edit() -> None:
    with pytest.raises(ConfigError, match="needs mask="):
        Edit(torch.zeros(1))
    with pytest.raises(ConfigError, match="Identity, does not read files"):
        opened(Identity(), "a.png", None)
