r"""Spaces: geometries of a field that has masks, ragged samples, or lives in a subspace.

Noise on a subspace is the projection of white noise, and projection commutes with alpha and sigma, so a Gaussian
process stays in its space when predictions are projected too. Masks and indices differ per batch: a space names the
field of the state that holds them (a `Frozen` one) and `bind` puts the tensor in the name's place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suffuse.errors import ConfigError, suggest
from suffuse.noise import KeyedNoise
from suffuse.state import Dense, Space, State

__all__ = ["Packed", "Padded", "Symmetric", "ZeroCenter", "per_token"]


def _named(what: str | Tensor, state: State, space: str) -> Tensor:
    """Return the tensor that a name stands for."""
    if not isinstance(what, str):
        return what
    if not isinstance(state, Mapping):
        raise ConfigError(f"space: {space} needs the field {what!r}, but the state has no named fields")
    if what not in state:
        raise ConfigError(f"space: {space} names the field {what!r}{suggest(what, state, listing='fields')}")
    found = state[what]
    if not isinstance(found, Tensor):
        raise ConfigError(f"space: the field {what!r} that {space} names holds fields, not a tensor")
    return found


def _held(mask: str | Tensor | None, like: Tensor, space: str, axes: tuple[int, ...] = (1,)) -> Tensor | None:
    """Return a bound boolean mask (B, N, ...) after checking it against the axes of a field that it covers."""
    if mask is None:
        return None
    if isinstance(mask, str):
        raise ConfigError(f"space: {space} is not bound to a batch: the field {mask!r} is missing from the state")
    if mask.dtype != torch.bool:
        raise ConfigError(f"space: the mask of {space} is {str(mask.dtype)[6:]}, not bool (true for what exists)")
    if max(axes) >= like.ndim or mask.shape != (like.shape[0], *(like.shape[axis] for axis in axes)):
        along = "" if axes == (1,) else f" along its axes {list(axes)}"
        raise ConfigError(
            f"space: a mask of shape {tuple(mask.shape)} does not fit a field of shape {tuple(like.shape)}{along}"
        )
    return mask


def _over(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (like.ndim - mask.ndim))


def _key(seeds: Tensor, place: Tensor) -> Tensor:
    """Return a seed for every token of a sample: products of whole numbers wrap, which mixes them."""
    mixed = (seeds * 6364136223846793005 + place + 1) * 1442695040888963407
    return (mixed ^ (mixed >> 29)) & 2**62 - 1


def per_token(noise: KeyedNoise, like: Tensor, axes: tuple[int, ...]) -> tuple[KeyedNoise, tuple[int, ...]]:
    """Return one stream per place along some axes of a field, and the shape they draw, those axes in front.

    Arguments:
        noise: One stream per row.
        like: The field.
        axes: Which of its axes, counted from the batch as 0.
    """
    place = torch.zeros(1, dtype=torch.int64, device=like.device)
    for axis in axes:
        # Places of a pair do not depend on the width of the batch.
        place = (place[:, None] * 2**20 + torch.arange(like.shape[axis], device=like.device)).flatten()
    seeds = _key(noise.seeds[:, None], place[None]).flatten()
    rest = [size for axis, size in enumerate(like.shape) if axis and axis not in axes]
    return KeyedNoise(seeds), (len(seeds), *rest)


@dataclass(frozen=True, eq=False)
class Padded(Dense):
    """Tokens along some axes of a field, of which a mask says which exist: what does not is zero, and counts nowhere.

    The tokens of points (B, N, D) are along axis 1, those of sounds or clips (B, C, T, ...) along axis 2: `axes` says
    it. A token is everything at one place of these axes. What exists is drawn, corrupted, predicted and weighed as if
    the rest were not there, however far the batch is padded.

    Arguments:
        tokens: As for `Dense`; by default the axes of the mask.
        mask: Boolean (B, N), for several axes (B, N, M, ...), or the name of the field that holds it.
        axes: Axes of the field that the mask covers, counted from the batch as 0, rising.

    Raises:
        ConfigError: For a mask that does not fit, a name that is no field, and axes that are none.
    """

    tokens: tuple[int, ...] = ()
    mask: str | Tensor = "mask"
    axes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        axes = tuple(self.axes)
        whole = all(isinstance(axis, int) and not isinstance(axis, bool) and axis > 0 for axis in axes)
        if not axes or not whole or any(a >= b for a, b in itertools.pairwise(axes)):
            raise ConfigError(f"space: axes={list(axes)} must name rising axes after the batch, for example [2]")
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "tokens", tuple(self.tokens) or axes)
        super().__post_init__()

    def bind(self, state: State) -> Space:
        """Return the space with the mask of a batch."""
        return replace(self, mask=_named(self.mask, state, "Padded")) if isinstance(self.mask, str) else self

    def keyed(self, noise: KeyedNoise, like: Tensor) -> tuple[KeyedNoise, tuple[int, ...]]:
        """Return one stream per token."""
        return per_token(noise, like, self.axes)

    def placed(self, z: Tensor, like: Tensor) -> Tensor:
        """Return what the streams of tokens drew, shape (B N, ...), where the tokens are."""
        sizes = [like.shape[0], *(like.shape[axis] for axis in self.axes)]
        return z.reshape(*sizes, *z.shape[1:]).movedim(tuple(range(1, len(sizes))), self.axes)

    def there(self, like: Tensor) -> Tensor:
        """Return which tokens exist along the axes of `tokens`, boolean (B, T): those of which anything does."""
        mask = self._bound(like)
        outside = [1 + i for i, axis in enumerate(self.axes) if axis not in self.tokens]
        found = mask.any(outside) if outside else mask
        # Tokens along an axis that the mask does not cover exist where anything of the sample does.
        for place, axis in enumerate(self.tokens):
            if axis not in self.axes:
                found = found.unsqueeze(1 + place)
        return found.expand(like.shape[0], *(like.shape[axis] for axis in self.tokens))

    def project(self, x: Tensor) -> Tensor:
        """Return `x` with zeros where nothing is."""
        return x * self._over(x).to(x.dtype)

    def mean(self, r: Tensor) -> Tensor:
        """Return the mean over what exists."""
        return (r * self._over(r)).flatten(1).sum(1) / (self._count(r) * self._each(r)).clamp(min=1)

    def dof(self, like: Tensor) -> Tensor:
        """Return the number of entries that exist."""
        return self._count(like).to(torch.get_default_dtype()) * self._each(like)

    def _bound(self, like: Tensor) -> Tensor:
        mask = _held(self.mask, like, "Padded", self.axes)
        assert mask is not None  # Padded always has one
        return mask

    def _over(self, like: Tensor) -> Tensor:
        """Return the mask, shaped so that it broadcasts against a field."""
        mask = self._bound(like)
        shape = [size if axis in (0, *self.axes) else 1 for axis, size in enumerate(like.shape)]
        return mask.reshape(shape)

    def _count(self, like: Tensor) -> Tensor:
        return self._bound(like).flatten(1).sum(1)

    def _each(self, like: Tensor) -> int:
        """Return the number of entries of a token."""
        return math.prod(size for axis, size in enumerate(like.shape) if axis and axis not in self.axes)


@dataclass(frozen=True, eq=False)
class ZeroCenter(Dense):
    """Points (B, N, D) whose mean over N is zero: positions without a place in space.

    "Equivariant Diffusion for Molecule Generation in 3D", Hoogeboom et al. 2022, section 3.1.

    Arguments:
        tokens: As for `Dense`.
        mask: Boolean (B, N), the name of the field that holds it, or None when all points exist.
    """

    tokens: tuple[int, ...] = (1,)
    mask: str | Tensor | None = None

    def bind(self, state: State) -> Space:
        """Return the space with the mask of a batch."""
        return replace(self, mask=_named(self.mask, state, "ZeroCenter")) if isinstance(self.mask, str) else self

    def keyed(self, noise: KeyedNoise, like: Tensor) -> tuple[KeyedNoise, tuple[int, ...]]:
        """Return one stream per token."""
        return per_token(noise, like, (1,))

    def project(self, x: Tensor) -> Tensor:
        """Return `x` minus its mean over the points that exist."""
        mask = _held(self.mask, x, "ZeroCenter")
        if mask is None:
            return x - x.mean(1, keepdim=True)
        over = _over(mask, x).to(x.dtype)
        count = _over(mask.sum(1, keepdim=True).clamp(min=1), x).to(x.dtype)
        return (x - (x * over).sum(1, keepdim=True) / count) * over

    def mean(self, r: Tensor) -> Tensor:
        """Return the mean over the points that exist."""
        mask = _held(self.mask, r, "ZeroCenter")
        return r.flatten(1).mean(1) if mask is None else Padded(self.tokens, mask).mean(r)

    def dof(self, like: Tensor) -> Tensor:
        """Return (n - 1) D."""
        mask = _held(self.mask, like, "ZeroCenter")
        each = like[0, 0].numel()
        if mask is None:
            return torch.full((like.shape[0],), float((like.shape[1] - 1) * each), device=like.device)
        return (mask.sum(1) - 1).clamp(min=0).to(torch.get_default_dtype()) * each


@dataclass(frozen=True, eq=False)
class Symmetric(Dense):
    """Pairs (B, N, N, ...) that do not depend on the order: bonds, distances. The noise of a pair is drawn once.

    Averaging a matrix of independent noise with its transpose would halve the variance off the diagonal, so `white`
    copies the upper triangle instead; `project`, for predictions, averages.

    Arguments:
        mask: Boolean (B, N) of the nodes, the name of the field that holds it, or None.
        diagonal: Pairs of a node with itself count.
    """

    tokens: tuple[int, ...] = ()
    mask: str | Tensor | None = None
    diagonal: bool = False

    def bind(self, state: State) -> Space:
        """Return the space with the mask of a batch."""
        return replace(self, mask=_named(self.mask, state, "Symmetric")) if isinstance(self.mask, str) else self

    def _pairs(self, like: Tensor) -> Tensor:
        """Return which pairs count, boolean (B or 1, N, N)."""
        if like.ndim < 3 or like.shape[1] != like.shape[2]:
            raise ConfigError(f"space: Symmetric needs a field (B, N, N, ...), not {tuple(like.shape)}")
        mask, size = _held(self.mask, like, "Symmetric"), like.shape[1]
        every = torch.ones(1, size, size, dtype=torch.bool, device=like.device)
        pairs = every if mask is None else mask[:, :, None] & mask[:, None, :]
        return pairs if self.diagonal else pairs & ~torch.eye(size, dtype=torch.bool, device=like.device)

    def keyed(self, noise: KeyedNoise, like: Tensor) -> tuple[KeyedNoise, tuple[int, ...]]:
        """Return one stream per pair."""
        return per_token(noise, like, (1, 2))

    def project(self, x: Tensor) -> Tensor:
        """Return the symmetric part; of whole numbers, the upper triangle."""
        self._pairs(x)  # checks the shape
        return self.white(x) if not x.is_floating_point() else self._only((x + x.transpose(1, 2)) / 2)

    def white(self, z: Tensor) -> Tensor:
        """Return `z` with its upper triangle below the diagonal too."""
        upper = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool, device=z.device).triu()
        over = upper.reshape(1, *upper.shape, *[1] * (z.ndim - 3))
        return self._only(torch.where(over, z, z.transpose(1, 2)))

    def _only(self, x: Tensor) -> Tensor:
        return x * _over(self._pairs(x), x).to(x.dtype)

    def mean(self, r: Tensor) -> Tensor:
        """Return the mean over the pairs that count, each once."""
        upper = self._pairs(r).triu()
        each = r[0, 0, 0].numel()
        return (r * _over(upper, r)).flatten(1).sum(1) / (upper.flatten(1).sum(1) * each).clamp(min=1)

    def dof(self, like: Tensor) -> Tensor:
        """Return the number of independent entries."""
        count = self._pairs(like).triu().flatten(1).sum(1).to(torch.get_default_dtype())
        return count.expand(like.shape[0]) * like[0, 0, 0].numel()


@dataclass(frozen=True, eq=False)
class Packed(Dense):
    """Samples of different sizes in one axis: rows (M, ...) of all samples, one after the other.

    Times have one value per sample, (B,), and means one result per sample.

    Arguments:
        tokens: Not used; a time per row is shape (M,).
        index: Whole numbers (M,), the sample of each row, rising; or the name of the field that holds them.
        sizes: Whole numbers (B,), rows of each sample; or the name of the field that holds them.
        center: The mean over a sample's rows is zero.
    """

    tokens: tuple[int, ...] = ()
    index: str | Tensor = "index"
    sizes: str | Tensor = "sizes"
    center: bool = False

    def bind(self, state: State) -> Space:
        """Return the space with the index and the sizes of a batch."""
        if not isinstance(self.index, str) and not isinstance(self.sizes, str):
            return self
        return replace(self, index=_named(self.index, state, "Packed"), sizes=_named(self.sizes, state, "Packed"))

    def rows(self, like: Tensor) -> int:
        """Return the number of samples."""
        return len(self._bound(like)[1])

    def _bound(self, like: Tensor) -> tuple[Tensor, Tensor]:
        index, sizes = self.index, self.sizes
        if isinstance(index, str) or isinstance(sizes, str):
            raise ConfigError("space: Packed is not bound to a batch: index or sizes is missing from the state")
        if index.shape != like.shape[:1]:
            raise ConfigError(f"space: an index of shape {tuple(index.shape)} does not fit rows {tuple(like.shape)}")
        return index, sizes

    def expand(self, v: Tensor, like: Tensor) -> Tensor:
        """Return `v` of shape () or (B,), one value per sample, at every row."""
        if v.ndim == 0:
            return v
        index, _ = self._bound(like)
        return v[index].reshape(-1, *[1] * (like.ndim - 1))

    def project(self, x: Tensor) -> Tensor:
        """Return `x`, with each sample's mean taken away where it is centred."""
        if not self.center:
            return x
        index, sizes = self._bound(x)
        sums = torch.zeros(len(sizes), *x.shape[1:], dtype=x.dtype, device=x.device).index_add(0, index, x)
        return x - (sums / sizes.clamp(min=1).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)))[index]

    def mean(self, r: Tensor) -> Tensor:
        """Return the mean over each sample's rows, shape (B,)."""
        index, sizes = self._bound(r)
        sums = torch.zeros(len(sizes), dtype=r.dtype, device=r.device).index_add(0, index, r.flatten(1).mean(1))
        return sums / sizes.clamp(min=1)

    def dof(self, like: Tensor) -> Tensor:
        """Return the number of entries of each sample, (n - 1) per coordinate where it is centred."""
        _, sizes = self._bound(like)
        rows = (sizes - int(self.center)).clamp(min=0)
        return rows.to(torch.get_default_dtype()) * like[0].numel()

    def keyed(self, noise: KeyedNoise, like: Tensor) -> tuple[KeyedNoise, tuple[int, ...]]:
        """Return one stream per row, of its sample's seed and its place in the sample."""
        index, sizes = self._bound(like)
        first = sizes.cumsum(0) - sizes
        place = torch.arange(like.shape[0], device=like.device) - first[index]
        return KeyedNoise(_key(noise.seeds[index], place)), tuple(like.shape)
