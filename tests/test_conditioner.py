"""Conditioners: what is asked, dropped, and absent."""

from __future__ import annotations

import math

import pytest
import torch
from suffuse.conditioner import ClassConditioner, NoConditioner, VectorConditioner
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise


@pytest.fixture
def classes() -> ClassConditioner:
    return ClassConditioner(labels=["cat", "dog", "owl"], width=8)


@pytest.fixture
def mixed() -> VectorConditioner:
    return VectorConditioner(labels=["a", "b"], scalars=["gap", "mass"], width=8)


def test_a_row_per_class_and_one_for_none(classes: ClassConditioner) -> None:
    assert classes.embed is not None
    vector = classes({"label": torch.tensor([2, -1, 0])})["vector"]
    assert torch.equal(vector, classes.embed.weight[[2, 3, 0]])
    assert torch.equal(classes.null(2, "cpu")["vector"], classes.embed.weight[[3, 3]])


def test_dropping_equals_asking_for_nothing(classes: ClassConditioner, mixed: VectorConditioner) -> None:
    mask = torch.tensor([True, False, True])
    raw = {"label": torch.tensor([0, 1, 1])}
    assert classes.drop(raw, mask)["label"].tolist() == [-1, 1, -1]
    raw |= {"gap": torch.tensor([1.0, 2.0, 3.0]), "mass": torch.tensor([4.0, 5.0, math.nan])}
    dropped = mixed.drop(raw, mask)
    found, null, kept = mixed(dropped)["vector"], mixed.null(1, "cpu")["vector"], mixed(raw)["vector"]
    torch.testing.assert_close(found[[0, 2]], null.expand(2, 8))
    torch.testing.assert_close(found[1], kept[1])


def test_each_scalar_is_absent_for_itself(mixed: VectorConditioner) -> None:
    with torch.no_grad():
        for parameter in mixed.absent.values():
            parameter.normal_()
    label = torch.tensor([0])

    def at(gap: float, mass: float) -> torch.Tensor:
        return mixed({"label": label, "gap": torch.tensor([gap]), "mass": torch.tensor([mass])})["vector"]

    known, no_gap = at(1.0, 2.0), at(math.nan, 2.0)
    torch.testing.assert_close(no_gap - known, mixed.absent["gap"][None] - mixed.scalar["gap"](torch.tensor([[1.0]])))
    at(math.nan, math.nan).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixed.parameters() if p.grad is not None)


def test_conditions_take_turns(classes: ClassConditioner) -> None:
    assert classes.parse({}, 5)["label"].tolist() == [0, 1, 2, 0, 1]
    assert classes.parse({"label": 1}, 3)["label"].tolist() == [1, 1, 1]
    assert classes.parse({"label": [2, "cat"]}, 3)["label"].tolist() == [2, 0, 2]
    assert classes.parse({"label": -1}, 2)["label"].tolist() == [-1, -1]


def test_a_label_that_is_a_number_is_a_name_first() -> None:
    years = ClassConditioner(labels=["1", "0"])
    assert years.parse({"label": 1}, 1)["label"].tolist() == [0]


def test_scalars_are_parsed_or_absent(mixed: VectorConditioner) -> None:
    raw = mixed.parse({"gap": [1, "2.5"], "label": "b"}, 3)
    assert raw["gap"].tolist() == [1.0, 2.5, 1.0] and raw["mass"].isnan().all() and raw["label"].tolist() == [1, 1, 1]
    assert mixed.captions(raw) == ["b, gap 1", "b, gap 2.5", "b, gap 1"]


def test_unconditional() -> None:
    for conditioner in (NoConditioner(), ClassConditioner(labels=[])):
        assert conditioner.width == 0
        raw = conditioner.parse({}, 4)
        assert conditioner(raw) == {} and conditioner.drop(raw, torch.ones(4, dtype=torch.bool)) == {}
        assert conditioner.captions(raw) == [""] * 4


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"label": "cta"}, r"condition.label=cta: no such label; did you mean 'cat'\?"),
        ({"label": 3}, "condition.label=3: no such label; labels: cat, dog, owl"),
        ({"lable": 0}, r"condition.lable: this model knows no such condition; did you mean 'label'\?"),
        ({"label": []}, "an empty list asks for nothing"),
    ],
)
def test_errors(classes: ClassConditioner, given: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        classes.parse(given, 2)


def test_more_errors(mixed: VectorConditioner) -> None:
    with pytest.raises(ConfigError, match=r"condition.gap=wide is not a number"):
        mixed.parse({"gap": "wide"}, 1)
    with pytest.raises(ConfigError, match="this model is unconditional"):
        NoConditioner().parse({"label": 1}, 1)
    with pytest.raises(ConfigError, match=r"conditioner.dropout=1 must be in \[0, 1\)"):
        ClassConditioner(labels=["a"], dropout=1)


def test_scalars_can_be_dropped_for_themselves() -> None:
    """Each is absent in its own share of the rows, and all of them together in another."""
    conditioner = VectorConditioner(scalars=["a", "b"], dropout=0.1, each=0.2)
    masks = conditioner.dropped(KeyedNoise(torch.arange(20_000)), 0, torch.empty(20_000))
    a, b = masks["a"], masks["b"]
    assert (a & b).double().mean() == pytest.approx(0.1 + 0.9 * 0.04, abs=0.01)
    assert a.double().mean() == pytest.approx(0.1 + 0.9 * 0.2, abs=0.01)
    raw = conditioner.drop({"a": torch.ones(20_000), "b": torch.ones(20_000)}, masks)
    assert torch.equal(raw["a"].isnan(), a) and torch.equal(raw["b"].isnan(), b)


def test_scalars_are_seen_standardised() -> None:
    """With the moments of the data, a value of any unit embeds as its standard score does without."""
    torch.manual_seed(0)
    plain, scaled = (
        VectorConditioner(scalars=["a"], moments=moments) for moments in ({"a": (0.0, 1.0)}, {"a": (100.0, 20.0)})
    )
    scaled.load_state_dict(plain.state_dict())
    one, other = plain({"a": torch.tensor([0.5])}), scaled({"a": torch.tensor([110.0])})
    assert torch.allclose(one["vector"], other["vector"], atol=1e-6)
