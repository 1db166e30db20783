"""Sizes: which clips an autoencoder gives back in their size, and what latents they have.

Families differ: T = 1 + k f frames, k f, or both; some drop what does not fit without a word. So nothing is assumed of
a class: shapes are pushed through a copy of it that has no numbers (torch's meta device), there and back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from suffuse.autoencoder import Coder
from suffuse.errors import ConfigError
from torch import nn

__all__ = ["Reduction", "Sizes"]

_FAR = 64
"""How far from the wanted size others are looked for; no known autoencoder has a greater factor."""
_AXES = ("frames", "height", "width")


class Sizes:
    """Sizes (T, H, W) and the latents of such clips.

    Arguments:
        coder: The autoencoder.
        named: How errors name it.
    """

    def __init__(self, coder: Coder, named: str) -> None:
        self.codec, self.named = coder.codec, named
        self._shapes = _Shapes.of(coder.model, getattr(coder, "kind", None))

    def latent(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the shape (D, T', H', W') of the latent of a clip.

        Raises:
            ConfigError: When it does not come back in its size.
        """
        found = self.find(*sizes)
        if found is None:
            t, h, w = sizes
            raise ConfigError(
                f"{self.named}: clips of {t} frames and {h} x {w} pixels (height x width) do not come back whole; "
                f"{self._better(sizes)}"
            )
        return found

    def find(self, t: int, h: int, w: int) -> tuple[int, ...] | None:
        """Return the shape of a latent, or None for a clip that does not come back in its size."""
        return self._shapes.through(self.codec.encode(torch.empty(1, 3, t, h, w, device="meta")).shape[1:])

    def _better(self, sizes: Sequence[int]) -> str:
        """Return the nearest sizes that would do."""
        # Each axis is looked at with others that are sure to fit.
        large = [-(-size // _FAR) * _FAR for size in sizes[1:]]
        times = nearest(lambda t: self.find(t, *large) is not None, sizes[0])
        if not times:
            return "no clip of a size near that would"
        sides = [
            nearest(lambda n: self.find(times[0], n, large[1]) is not None, sizes[1]),
            nearest(lambda n: self.find(times[0], large[0], n) is not None, sizes[2]),
        ]
        found = zip(_AXES, sizes, (times, *sides), strict=True)
        return " and ".join(
            f"{name}={' or '.join(map(str, near))}" for name, size, near in found if near != [size]
        ) + " would"  # fmt: skip


def nearest(fits: Callable[[int], bool], size: int) -> list[int]:
    """Return `size` when it fits, else the nearest below and above that do."""
    if fits(size):
        return [size]
    down = next((n for n in range(size - 1, max(size - _FAR, 0), -1) if fits(n)), None)
    up = next((n for n in range(size + 1, size + _FAR + 1) if fits(n)), None)
    return [n for n in (down, up) if n is not None]


@dataclass(frozen=True)
class Reduction:
    """How latents are smaller than states.

    Arguments:
        latent: Channels of a latent.
        factor: Entries of a state to one of a latent, per axis.
    """

    latent: int
    factor: tuple[int, int, int]

    @classmethod
    def of(cls, model: nn.Module, kind: str) -> Reduction | None:
        """Return that of a model of states (B, 3, T, H, W); None when nothing comes back from it.

        Arguments:
            model: Encodes and decodes states.
            kind: Names what decides its shapes.
        """
        shapes, side = _Shapes.of(model, kind), _FAR

        def there(t: int) -> tuple[int, ...] | None:
            return shapes.through((3, t, side, side))

        # Eight frames more, of what is a whole number of groups, are 8 / f latents more.
        for t in range(1, 9):
            if (short := there(t)) and (long := there(t + 8)) and long[1] > short[1]:
                return cls(short[0], (8 // (long[1] - short[1]), side // short[2], side // short[3]))
        return None


class _Shapes:
    """A copy of a model that has shapes but no numbers, and what it did to those it was shown."""

    _all: ClassVar[dict[str, _Shapes]] = {}

    def __init__(self, model: nn.Module) -> None:
        kept: dict[int, object] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
        kept |= {id(b): b.to("meta") for b in model.buffers()}
        self._model: Any = copy.deepcopy(model, kept)
        self._known: dict[tuple[int, ...], tuple[int, ...] | None] = {}

    @classmethod
    def of(cls, model: nn.Module, kind: str | None) -> _Shapes:
        """Return that of a model; the same one for all of a kind."""
        if kind is None:
            return cls(model)
        if kind not in cls._all:
            cls._all[kind] = cls(model)
        return cls._all[kind]

    def through(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """Return the shape of one row's latent, or None when a state does not come back in its shape."""
        key = tuple(shape)
        if key not in self._known:
            self._known[key] = self._tried(key)
        return self._known[key]

    def _tried(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        try:
            with torch.no_grad():
                z = self._model.encode(torch.empty(1, *shape, device="meta"))
                back = self._model.decode(z)
        except Exception:  # a size that does not fit is met by every class in its own way
            return None
        return tuple(z.shape[1:]) if back.shape[1:] == shape else None
