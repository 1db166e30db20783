r"""Rollout: samples of which some tokens are given, and samples longer than those of training.

A model that was trained with noise levels per token (`suffuse.levels`) is asked with the given tokens clean and the
rest on the sampler's grid: a given token has t = 0 throughout, so it never changes, and the others see it as it is. A
longer sample is drawn window by window, each beginning with the last tokens of the one before ("Diffusion Forcing:
Next-token Prediction Meets Full-Sequence Diffusion", Chen et al. 2024, section 3.2, with all new tokens of a window at
one level). Whether a token is a frame, a second of sound or a residue is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suffuse.edit import Edit, Path
from suffuse.errors import ConfigError, check_whole
from suffuse.grid import Grid
from suffuse.levels import CLEAN
from suffuse.noise import KeyedNoise
from suffuse.process import Process, bound
from suffuse.sampler import sample
from suffuse.schedule import Schedule
from suffuse.state import State

if TYPE_CHECKING:
    from suffuse.model import Model, Recipe

__all__ = ["APART", "Part", "Window", "begin", "further", "given_tokens", "parts", "roll", "rolled", "with_given"]

Mask = NDArray[np.bool_]

APART = 2**44
"""Between the seeds of a sample's windows; the first window has the sample's own."""


@dataclass(frozen=True)
class Window:
    """How a long sample is drawn.

    Arguments:
        size: Tokens that are drawn at a time; None for as many as the training data has, 0 for all at once.
        overlap: Tokens of a window that the next one begins with; None for five eighths of them: fewer, and what moves
            leaves its path from window to window.

    Raises:
        ConfigError: Unless 0 < overlap < size.
    """

    size: int | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        for name in ("size", "overlap"):
            value = getattr(self, name)
            if value is not None:
                check_whole(f"window.{name}", value, 0)

    def fitted(self, trained: int, length: int) -> tuple[int, int]:
        """Return size and overlap for a sample of `length` tokens of a model that was trained on `trained`."""
        size = trained if self.size is None else self.size or length
        overlap = size * 5 // 8 if self.overlap is None else self.overlap
        if length > size and not 0 < overlap < size:
            raise ConfigError(f"window.overlap={overlap} must be above 0 and below window.size={size}")
        return size, overlap


class Part(NamedTuple):
    """One window: its number, its first token, and how many tokens at its beginning are known from the one before."""

    number: int
    first: int
    known: int


def parts(length: int, size: int, overlap: int) -> Iterator[Part]:
    """Yield the windows that cover `length` tokens; the last one may know more of the one before."""
    yield Part(0, 0, 0)
    number, end = 0, size
    while end < length:
        number, first = number + 1, min(end - overlap, length - size)
        yield Part(number, first, end - first)
        end = first + size


def given_tokens(mask: Tensor, axis: int) -> Mask | None:
    """Return which tokens a mask keeps wholly, boolean (T,), or None when it keeps parts of tokens.

    Arguments:
        mask: Boolean, shaped like a state of one row, true where it is kept.
        axis: The tokens' axis.
    """
    flat = mask.transpose(0, axis).flatten(1)
    every, some = flat.all(1), flat.any(1)
    return every.cpu().numpy() if bool((every == some).all()) else None


def with_given(grid: Grid, given: Mask, schedule: Schedule) -> Grid:
    """Return the grid with a time per token, at which given ones rest without noise."""
    rest = float(schedule.time(torch.tensor(CLEAN, dtype=torch.float64)))
    return Grid(np.where(given[None], rest, grid.t[:, None]), grid.clean)


def begin(
    process: Process, like: Tensor, noise: KeyedNoise, grid: Grid, known: Tensor, given: Mask, axis: int
) -> Tensor:
    """Return where sampling starts: noise, and the known content of the given tokens."""
    x = process.prior(like, process.draw(like, noise, 0, 0), torch.from_numpy(grid.t[0])[None])
    kept = torch.from_numpy(given).to(x.device).view([-1 if i == axis else 1 for i in range(x.ndim)])
    return torch.where(kept, known.to(x), x)


def roll(
    draw: Callable[[Part, Tensor, Tensor, Mask], Tensor], like: Tensor, axis: int, size: int, overlap: int,
    known: Tensor | None = None, given: Mask | None = None,
) -> Tensor:  # fmt: skip
    """Return a sample of the shape of `like`, drawn window by window.

    Arguments:
        draw: Called with the window, an empty state of its size, known content and which of its tokens are given;
            returns the window.
        like: Shape of the whole.
        axis: The tokens' axis.
        size: Tokens of a window.
        overlap: Tokens that a window begins with.
        known: Content of given tokens, of one row or all; None for none.
        given: Which tokens of the whole are given, boolean (T,).
    """
    length = like.shape[axis]
    room = max(length, size)
    shape = [*like.shape[:axis], room, *like.shape[axis + 1 :]]
    whole = torch.zeros(shape, device=like.device, dtype=like.dtype)
    held = np.zeros(room, dtype=bool)
    if known is not None and given is not None:
        whole.narrow(axis, 0, length).copy_(known.to(whole).expand(like.shape))
        held[:length] = given
    for part in parts(length, size, overlap):
        mask = held[part.first : part.first + size].copy()
        mask[: part.known] = True
        here = whole.narrow(axis, part.first, size)
        here.copy_(draw(part, torch.empty_like(here), here.clone(), mask))
    return whole.narrow(axis, 0, length)


def further(raw: dict[str, Any], clock: str | None, tokens: int) -> dict[str, Any]:
    """Return conditions as they are so many tokens later: the one that counts tokens is moved on."""
    if not tokens or clock is None or clock not in raw:
        return raw
    return {**raw, clock: raw[clock] + tokens}


def rolled(
    model: Model, recipe: Recipe, seeds: Tensor, raw: Mapping[str, Tensor], like: State | None, edit: Edit | None,
    path: Path | None, window: Window,
) -> State | None:  # fmt: skip
    """Return samples with given tokens, or of a length of their own; None where neither is asked or possible.

    Of named fields, one that is noised and frozen ones, such as a mask, samples are drawn at once at any length.

    Arguments:
        model: Trained with noise levels per token, or another one, for which this is None.
        recipe, seeds, raw, like, edit, path, window: See `suffuse.model.Model.draw`.

    Raises:
        ConfigError: When the edit or the path needs samples of the training data's length.
    """
    process = model.process
    if model.objective.tokens is None:
        return None
    if isinstance(process, Mapping):
        return _among(model, recipe, seeds, raw, like, edit if path is None else None)
    if len(process.space.tokens) != 1:
        return None
    (axis,) = process.space.tokens
    like = model.facts.like(len(seeds), model.device) if like is None else like
    assert isinstance(like, Tensor)  # one process, one tensor
    trained, length = int(model.facts.shape[axis - 1]), like.shape[axis]
    size, overlap = window.fitted(trained, length)
    given = None
    if edit is not None and edit.strength is None:
        assert isinstance(edit.mask, Tensor) and isinstance(edit.known, Tensor)
        given = given_tokens(edit.mask, axis)
    if given is None and length == size:
        return None
    if path is not None or (edit is not None and given is None):
        what = "interpolate=true" if path is not None else "strength=, or a mask of parts,"
        raise ConfigError(f"{what} needs samples of the training data's length, {trained}; {length} were asked for")
    schedule, grid = process.schedule, recipe.grid(process.schedule, recipe.sampler.steps)
    clock = model.facts.about.get("clock")

    def draw(part: Part, here: Tensor, known: Tensor, held: Any) -> Tensor:
        denoiser, cond = model.guided(recipe, further(dict(raw), clock, part.first), len(seeds))
        noise = KeyedNoise(seeds.to(model.device) + part.number * APART)
        own, x = grid, None
        if held.any():
            own = with_given(grid, held, schedule)
            x = begin(process, here, noise, own, known, held, axis)
        found = sample(denoiser, process, recipe.sampler, own, noise, here, cond, x=x)
        assert isinstance(found, Tensor)
        return found

    return roll(draw, like, axis, size, overlap, edit.known if edit and given is not None else None, given)  # type: ignore[arg-type]


def _among(
    model: Model, recipe: Recipe, seeds: Tensor, raw: Mapping[str, Tensor], like: State | None, edit: Edit | None
) -> State | None:
    """Return samples of named fields with given tokens; None without any, and unless one field alone is noised."""
    assert isinstance(model.process, Mapping)
    noised = [name for name, p in model.process.items() if not isinstance(p, Mapping) and p.noised]
    if edit is None or edit.strength is not None or len(noised) != 1 or not isinstance(like, Mapping):
        return None
    (name,) = noised
    process, field = bound(model.process, like)[name], like[name]
    assert isinstance(edit.known, Mapping) and isinstance(edit.mask, Mapping)  # of the state's fields
    known, mask = edit.known[name], edit.mask[name]
    if len(process.space.tokens) != 1 or not isinstance(mask, Tensor):
        return None
    (axis,) = process.space.tokens
    given = given_tokens(mask, axis)
    if given is None:
        return None
    denoiser, cond = model.guided(recipe, raw, len(seeds))
    noise = KeyedNoise(seeds.to(model.device))
    grid = with_given(recipe.grid(process.schedule, recipe.sampler.steps), given, process.schedule)
    x = begin(process, field, noise, grid, known, given, axis)  # type: ignore[arg-type]
    return sample(denoiser, model.process, recipe.sampler, grid, noise, like, cond, x={**like, name: x})
