"""Captions: which of several a step sees is a function of seed, epoch and item, in the shares that were asked for."""

from __future__ import annotations

import pytest
from suffuse.captions import Captions
from suffuse.errors import ConfigError
from suffuse.text import captions_of


def shares(captions: Captions, item: int, epochs: int = 4000) -> dict[str, float]:
    drawn = [captions.chosen(item, epoch) for epoch in range(epochs)]
    return {text: drawn.count(text) / epochs for text in set(drawn)}


def test_one_of_several_in_every_epoch() -> None:
    captions = Captions([["a", "b", "c"], ["d"], []])
    found = shares(captions, 0)
    assert set(found) == {"a", "b", "c"} and max(abs(share - 1 / 3) for share in found.values()) < 0.03
    assert shares(captions, 1) == {"d": 1.0} and shares(captions, 2) == {"": 1.0}
    assert [captions.chosen(0, e) for e in range(9)] == [Captions([["a", "b", "c"]]).chosen(0, e) for e in range(9)]
    other = Captions([["a", "b", "c"]], seed=1)
    assert [captions.chosen(0, e) for e in range(20)] != [other.chosen(0, e) for e in range(20)]
    # Outside of training, and without a choice, it is the first.
    assert captions.chosen(0) == "a" and captions.chosen(2) == ""
    assert shares(Captions([["a", "b"]], choice="first"), 0) == {"a": 1.0}


def test_rewritten_captions_are_mixed_in() -> None:
    captions = Captions([["a"], ["b"], []], [["A1", "A2"], [], ["C"]], share=0.8, dropout=0.1)
    found = shares(captions, 0)
    assert abs(found[""] - 0.1) < 0.02 and abs(found["a"] - 0.9 * 0.2) < 0.02
    assert abs(found["A1"] - 0.36) < 0.03 and abs(found["A2"] - 0.36) < 0.03
    # Where there is but one kind it is the one.
    assert set(shares(captions, 1)) == {"b", ""} and set(shares(captions, 2)) == {"C", ""}
    assert captions.chosen(0) == "a" and captions.chosen(2) == "C"


def test_what_varies() -> None:
    assert not Captions([["a"], ["b"]]).varied and Captions([["a"], ["b"]], dropout=0.1).varied
    assert Captions([["a", "b"]]).varied and not Captions([["a", "b"]], choice="first").varied
    assert Captions([["a"]], [["A"]]).varied


def test_bytes_and_parts() -> None:
    captions = Captions([["a"], ["b", "c"], ["d"]], [["A"], [], []], share=0.5, seed=3)
    keys = [(2, 1), (0, 0), (1, 2)]
    assert captions_of(captions.batch(keys)) == [captions.chosen(i, e) for e, i in keys]
    assert captions_of(captions.batch([2, 0])) == ["d", "a"]
    part = captions.part([1, 0])
    assert len(part) == 2 and part.texts == [("b", "c"), ("a",)] and part.rewritten == [(), ("A",)]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"choice": "last"}, "choice=last"), ({"share": 2}, "share=2"), ({"dropout": True}, "dropout=True")],
)
def test_bad_arguments(options, said) -> None:
    with pytest.raises(ConfigError, match=said):
        Captions([["a"]], **options)
    with pytest.raises(ConfigError, match=r"1 items have rewritten"):
        Captions([["a"], ["b"]], [["A"]])
