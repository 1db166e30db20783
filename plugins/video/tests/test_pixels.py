"""The pixel codec: exact both ways, other lengths, and which frames a mask means."""

from __future__ import annotations

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse_video.codec import Pixels
from suffuse_video.codec.pixels import kept

ABOUT = {"frames": 8, "height": 6, "width": 4, "fps": 4.0, "clock": "start"}


def test_round_trip():
    x = torch.rand(2, 3, 8, 6, 4)
    codec = Pixels(ABOUT)
    state = codec.encode(x)
    assert state.min() >= -1 and state.max() <= 1 and (codec.decode(state) - x).abs().max() < codec.tolerance
    assert codec.decode(torch.full((1, 3, 1, 1, 1), 3.0)).max() == 1
    with pytest.raises(TypeError, match="one tensor"):
        codec.decode({"x": x})


def test_lengths():
    seeds = torch.arange(3)
    assert Pixels(ABOUT).like(seeds, {}, "cpu").shape == (3, 3, 8, 6, 4)
    assert Pixels(ABOUT, frames=20).like(seeds, {}, "cpu").shape == (3, 3, 20, 6, 4)
    assert Pixels(ABOUT).implied == {"start": 0.0} and Pixels({"frames": 8}).implied == {}
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match=f"frames={bad}"):
            Pixels(ABOUT, frames=bad)


@pytest.mark.parametrize(
    ("mask", "anew"),
    [
        ("1-", range(1, 8)), ("-3", range(4)), ("2-4", range(2, 5)), ("3", [3]), ("0,2,4-5", [0, 2, 4, 5]),
        ("0.5s-1s", [2, 3]), ("1s-", range(4, 8)), ("-0.25s", [0]), ("1-0.9s", [1, 2, 3]), (" 6 - 7 ", [6, 7]),
    ],
)  # fmt: skip
def test_masks(mask, anew):
    found = kept(mask, 8, 4.0)
    assert found.shape == (1, 8, 1, 1)
    assert [t for t in range(8) if not found[0, t]] == list(anew)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("", "names no frames"), ("a", "names no frames"), ("1.5-2", "names no frames"), ("5-2", "ends before"),
        ("8-", "starts behind the clip"), ("0-", "everything"), ("0-7", "everything"), ("-", "names no frames"),
        ("1 2", "names no frames"),
    ],
)  # fmt: skip
def test_bad_masks(mask, said):
    with pytest.raises(ConfigError, match=said):
        kept(mask, 8, 4.0)
