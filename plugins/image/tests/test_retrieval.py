"""Retrieval: a matcher trained on pairs finds the caption of a picture, and does not when captions are swapped."""

from __future__ import annotations

import pytest
import torch
from suffuse.errors import DataError
from suffuse_image.data import Digits, ShapesText
from suffuse_image.retrieval import Matcher, Retrieval, rank


def test_a_rank_is_one_more_than_what_fits_better() -> None:
    class Fixed(Matcher):
        def __init__(self) -> None:
            super().__init__(1, (8, 8), 8)

        def pictures(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(4)[(x[:, 0, 0, 0] // 60).long()]

        def captions(self, texts: list[str]) -> torch.Tensor:
            table = {"a": [9, 0, 0, 0], "b": [8, 5, 0, 0], "c": [7, 4, 1, 0], "d": [6, 3, 0, 1]}
            return torch.tensor([table[text] for text in texts]).float()

    x = torch.arange(4).view(4, 1, 1, 1).expand(4, 1, 8, 8) * 60 / 255.0
    # Picture 0 fits a, b, c, d in this order; picture 1 b, c, d, a.
    assert rank(Fixed(), x[[0, 0, 1, 1]], ["a", "d", "a", "b"], 1) == 0.5
    assert rank(Fixed(), x[[0, 0, 1, 1]], ["a", "d", "a", "b"], 2) == 0.5  # of a, b and d alone
    assert rank(Fixed(), x[[0, 0, 1, 1]], ["a", "b", "d", "b"], 2) == 1.0
    assert rank(Fixed(), x[[0, 0, 1, 1]], ["a", "d", "a", "b"], 3) == 1.0


def test_captions_find_their_pictures() -> None:
    data = ShapesText(count=300, size=24, shares={"several": 1})
    data.setup()
    items = data.sample(40, held_out=True)
    xs = torch.stack([item["x"] for item in items])
    cond = {"text": torch.stack([item["cond"]["text"] for item in items])}
    metric = Retrieval(steps=60, train_steps=2)
    found = metric(xs, cond, data)
    assert found["top5"] > 0.5 and found["top5"] >= found["top1"] and found["top5"] > found["top5_swapped"] + 0.2
    assert found["captions"] > 20 and {"top1_real", "top5_real", "frechet"} <= set(found)
    assert metric(xs, cond, data) == found


def test_without_captions_it_says_so() -> None:
    data = Digits()
    data.setup()
    with pytest.raises(DataError, match="needs captions"):
        Retrieval()(torch.rand(2, 1, 8, 8), {}, data)
