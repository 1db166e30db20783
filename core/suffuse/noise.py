"""Noise: random numbers that depend on a sample's seed alone.

Row i of a draw is a pure function of (seed_i, step, stream): not of the batch it is in, the rank that draws it, or what
was drawn before. The generator is counter based, Philox4x32-10 of "Parallel Random Numbers: As Easy as 1, 2, 3", Salmon
et al. 2011: key = the 64-bit seed, counter = (block, step, stream, 0). It is written in integer tensor operations, so
it runs on any device, inside a compiled graph, and gives the same bits everywhere.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["KeyedNoise", "mix", "philox", "seeds"]

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def mix(*values: int) -> int:
    """Return a 62-bit hash of integers (splitmix64 finaliser), to derive unrelated seeds from one."""
    state = 0
    for value in values:
        state = (state ^ value) + 0x9E3779B97F4A7C15 & 2**64 - 1
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 2**64 - 1
        state ^= state >> 31
    return state >> 2


def seeds(base: int, index: Tensor) -> Tensor:
    """Return base + index, int64: sample number i of a run with the seed S has the seed S + i."""
    return index.long() + base


def _round_keys(seeds: Tensor) -> Tensor:
    """Return the keys of all rounds, shape (rounds, 2, B, 1), for seeds of shape (B,)."""
    device = seeds.device
    key = torch.stack([seeds & _MASK, seeds >> 32 & _MASK])
    steps = torch.arange(_ROUNDS, device=device)[:, None] * torch.tensor(_WEYL, device=device)
    return (key[None] + steps[:, :, None] & _MASK)[..., None]


def _host_keys(seeds: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return what `_round_keys` returns, for the host's own arithmetic."""
    whole = seeds.astype(np.uint64)
    key = np.stack([whole & _HOST_MASK, whole >> _SHIFT])
    found: NDArray[np.uint64] = (key[None] + _HOST_STEPS & _HOST_MASK)[..., None]
    return found


def _tables(seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and factors where the seeds are."""
    return _round_keys(seeds), _factors(seeds.device)


def _factors(device: torch.device) -> Tensor:
    return torch.tensor(_MULTIPLIERS, device=device)[:, None, None]


def philox(counter: Tensor, keys: Tensor, factors: Tensor | None = None) -> Tensor:
    """Return four random 32-bit words per counter.

    Arguments:
        counter: Shape (4, B, N), int64 holding 32-bit words.
        keys: Round keys, shape (rounds, 2, B, 1).
        factors: The two multipliers on the device, shape (2, 1, 1), where they are at hand.

    Returns:
        Shape (4, B, N), int64 in [0, 2^32).
    """
    # The two multiplications of a round are one: even words times two constants. Products wrap modulo 2^64, so their
    # low word is right as it is and their high word after masking the sign's copies away.
    factors = _factors(counter.device) if factors is None else factors
    even, odd = counter[0::2], counter[1::2]
    for key in keys.unbind(0):
        product = (even * factors).flip(0)
        even = (product >> 32).bitwise_and_(_MASK).bitwise_xor_(odd).bitwise_xor_(key)
        odd = product.bitwise_and_(_MASK)
    return torch.stack([even, odd], 1).flatten(0, 1)


def _philox_on_host(counter: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what `philox` returns; its integers are the same, and a small draw takes half the time."""
    even, odd = counter[0::2], counter[1::2]
    for key in keys:
        product = (even * _HOST_FACTORS)[::-1]
        even = (product >> _SHIFT) ^ odd ^ key
        odd = product & _HOST_MASK
    return np.stack([even, odd], 1).reshape(4, *counter.shape[1:])


_HOST_FACTORS = np.array(_MULTIPLIERS, dtype=np.uint64)[:, None, None]
_HOST_MASK, _SHIFT = np.uint64(_MASK), np.uint64(32)
_HOST_STEPS = (np.arange(_ROUNDS, dtype=np.uint64)[:, None] * np.array(_WEYL, dtype=np.uint64))[:, :, None]

SMALL = 2**15
"""Words up to which the host's own arithmetic is faster than a tensor operation per round."""


class KeyedNoise:
    """A stream of random numbers per sample.

    Arguments:
        seeds: Shape (B,), int64; one seed per row.
    """

    def __init__(self, seeds: Tensor) -> None:
        self.seeds = seeds.long()
        self._host_keys = _host_keys(self.seeds.numpy()) if self.seeds.device.type == "cpu" else None
        # Copied to a device here, once: a copy inside a draw would make the host wait for it.
        self._tables = None if self._host_keys is not None else _tables(self.seeds)

    def words(self, count: int, step: int, stream: int) -> Tensor:
        """Return `count` random 32-bit words per row, shape (B, count), int64."""
        rows, blocks = len(self.seeds), -(-count // 4)
        if self._host_keys is not None and rows * count <= SMALL and not torch.compiler.is_compiling():
            own = np.empty((4, rows, blocks), dtype=np.uint64)
            own[0] = np.arange(blocks, dtype=np.uint64)
            own[1], own[2], own[3] = step & _MASK, stream & _MASK, step >> 32 & _MASK
            found = _philox_on_host(own, self._host_keys).astype(np.int64)
            return torch.from_numpy(found).transpose(0, 1).flatten(1)[:, :count]
        counter = torch.empty(4, rows, blocks, dtype=torch.int64, device=self.seeds.device)
        counter[0] = torch.arange(blocks, device=self.seeds.device)
        counter[1], counter[2], counter[3] = step & _MASK, stream & _MASK, step >> 32 & _MASK
        return philox(counter, *(self._tables or _tables(self.seeds))).transpose(0, 1).flatten(1)[:, :count]

    def uniform(self, like: Tensor, step: int, stream: int = 0) -> Tensor:
        """Return uniform numbers in the open interval (0, 1), of the shape, dtype and device of `like`.

        Arguments:
            like: Shape (B, ...).
            step: Which draw of this sample.
            stream: Which of several draws of one step.
        """
        count = like[0].numel() if like.ndim > 1 else 1
        words = self.words(count, step, stream)
        if like.dtype == torch.float64:
            return ((words.double() + 0.5) * 2.0**-32).reshape(like.shape)
        # 23 bits, so that neither end is reached by rounding.
        inside = ((words >> 9).float() + 0.5) * 2.0**-23
        # Half precisions would round the largest of them up to 1.
        return inside.clamp(max=1 - torch.finfo(like.dtype).eps / 2).reshape(like.shape).to(like.dtype)

    def normal(self, like: Tensor, step: int, stream: int = 0) -> Tensor:
        """Return standard normal numbers (Box and Muller), of the shape, dtype and device of `like`.

        Arguments:
            like: Shape (B, ...).
            step: Which draw of this sample.
            stream: Which of several draws of one step.
        """
        count = like[0].numel() if like.ndim > 1 else 1
        half = -(-count // 2)
        # A row is padded to whole vectors: a kernel's scalar remainder may round differently from its vector body.
        padded = -(-half // 16) * 16
        words = self.words(2 * padded, step, stream)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        radius = ((words[:, :padded].to(dtype) + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
        angle = words[:, padded:].to(dtype).mul_(2 * math.pi * 2.0**-32)
        pair = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
        return pair[:, :count].reshape(like.shape).to(like.dtype)
