"""Keyed noise: known answers, independence of the batch, and the law of the draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from suffuse.noise import KeyedNoise, _host_keys, _philox_on_host, _round_keys, mix, philox, seeds

WORDS = {
    # Random123's known answers for philox4x32-10: counter, key, result.
    "zeros": ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    "ones": ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    "pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_known_answers(name):
    counter, key, wanted = WORDS[name]
    seed = (key[1] << 32 | key[0]) - (1 << 64 if key[1] >> 31 else 0)
    key = torch.tensor([seed])
    assert philox(torch.tensor(counter)[:, None, None], _round_keys(key)).flatten().tolist() == wanted
    on_host = _philox_on_host(np.array(counter, dtype=np.uint64)[:, None, None], _host_keys(key.numpy()))
    assert on_host.flatten().tolist() == wanted


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (64,), (8, 8), (3, 17, 5), (4099,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_depends_on_its_seed_alone(shape, dtype):
    every = torch.arange(64) * 1_000_003 - 17
    for draw in ("normal", "uniform"):
        whole = getattr(KeyedNoise(every), draw)(torch.empty(64, *shape, dtype=dtype), 5, 2)
        for size in (1, 2, 3, 7):
            for start in (0, 13, 64 - size):
                part = getattr(KeyedNoise(every[start : start + size]), draw)(
                    torch.empty(size, *shape, dtype=dtype), 5, 2
                )
                assert torch.equal(part, whole[start : start + size])
        backwards = getattr(KeyedNoise(every.flip(0)), draw)(torch.empty(64, *shape, dtype=dtype), 5, 2)
        assert torch.equal(backwards.flip(0), whole)


def test_threads_change_nothing():
    like, threads = torch.empty(64, 3001), torch.get_num_threads()
    drawn = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            drawn.append(KeyedNoise(torch.arange(64)).normal(like, 0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_step_stream_and_seed_give_other_numbers():
    like = torch.empty(2, 4096)
    base = KeyedNoise(torch.tensor([1, 2])).normal(like, 3, 4)
    others = [
        KeyedNoise(torch.tensor([1, 2])).normal(like, 4, 4), KeyedNoise(torch.tensor([1, 2])).normal(like, 3, 5),
        KeyedNoise(torch.tensor([1 + 2**32, 2 + 2**40])).normal(like, 3, 4), base.flip(0),
        KeyedNoise(torch.tensor([1, 2])).normal(like, 3 + 2**32, 4),
    ]  # fmt: skip
    for other in others:
        correlation = (base * other).mean().item()
        assert abs(correlation) < 5 / math.sqrt(8192)


def test_normals_have_the_moments_of_a_normal():
    z = KeyedNoise(torch.arange(64)).normal(torch.empty(64, 16384), 0).double().flatten()
    n = z.numel()
    moments = [(z**k).mean().item() for k in (1, 2, 3, 4)]
    for moment, wanted, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - wanted) < 4.5 * math.sqrt(variance / n)
    quantiles = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    for q in quantiles:
        share = torch.special.ndtr(q).item()
        assert abs((z < q).double().mean().item() - share) < 4.5 * math.sqrt(share * (1 - share) / n)


def test_float64_normals_refine_the_float32_ones():
    noise = KeyedNoise(torch.arange(4))
    fine, coarse = noise.normal(torch.empty(4, 999, dtype=torch.float64), 1), noise.normal(torch.empty(4, 999), 1)
    assert (fine - coarse.double()).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_uniforms_are_inside_and_even(dtype):
    u = KeyedNoise(torch.arange(16)).uniform(torch.empty(16, 65536, dtype=dtype), 0)
    assert u.dtype == dtype and (u > 0).all() and (u < 1).all()
    u = u.double().flatten()
    assert abs(u.mean().item() - 0.5) < 4.5 / math.sqrt(12 * u.numel()) + torch.finfo(dtype).eps / 8
    assert abs(u.var().item() - 1 / 12) < 1e-3


def test_seeds_and_mix():
    assert seeds(5, torch.arange(3)).tolist() == [5, 6, 7]
    hashed = {mix(a, b) for a in range(40) for b in range(40)}
    assert len(hashed) == 1600 and all(0 <= value < 2**62 for value in hashed)
    assert mix(1, 2) != mix(2, 1) and mix(-1) != mix(1)
