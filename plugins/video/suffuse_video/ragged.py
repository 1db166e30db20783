"""Ragged: clips of lengths of their own in one batch.

``{"x": (B, 3, T, H, W), "mask": (B, T)}``, one item without the B: what follows the end of a clip is zero, and false in
the mask. Their states have three fields, of which ``x`` is diffused:

    x (B, C, T', H', W')   mask (B, T'), which frames of the state there are   length (B,), how many frames of the clip.

Each clip is encoded and decoded as if it were alone. Where all have one length, batches and states are one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from suffuse.noise import KeyedNoise
from torch import Tensor

__all__ = ["Spans", "alone", "drawn", "each", "item", "together"]

STREAM = 2**20
"""Noise stream of what is drawn here: lengths."""


def item(x: Tensor, frames: int) -> dict[str, Tensor]:
    """Return a clip (3, T, H, W) of which the first `frames` frames exist, and its mask."""
    mask = torch.arange(x.shape[1]) < frames
    return {"x": x * mask[:, None, None], "mask": mask}


def alone(x: Any) -> Tensor:
    """Return one clip (3, T, H, W) at its own length."""
    if not isinstance(x, Mapping):
        return x  # type: ignore[no-any-return]
    clip: Tensor = x["x"][:, : int(x["mask"].bool().sum())]
    return clip


def each(xs: Any) -> list[Tensor]:
    """Return the clips of a batch, each (3, T, H, W) at its own length."""
    if not isinstance(xs, Mapping):
        return list(xs)
    return [x[:, :n] for x, n in zip(xs["x"], xs["mask"].bool().sum(1).tolist(), strict=True)]


def together(xs: Any, frames: int) -> Tensor:
    """Return the clips of a batch (B, 3, frames, H, W): where lengths differ cut, or with the last frame held."""
    if not isinstance(xs, Mapping):
        return xs  # type: ignore[no-any-return]
    return torch.stack([_held(x[:, :frames], frames) for x in each(xs)])


def drawn(seeds: Tensor, asked: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Return frames per seed: those that are asked for in turns, else some of the data's lengths by chance."""
    if asked:
        return torch.tensor(list(asked))[seeds.cpu() % len(asked)]
    u = KeyedNoise(seeds.cpu()).uniform(torch.empty(len(seeds), 1), 0, STREAM)[:, 0]
    return torch.tensor(list(lengths))[(u * len(lengths)).long()]


class Spans:
    """Encodes and decodes clips of lengths of their own by a codec of clips of one length.

    Arguments:
        encode: Maps clips (B, 3, t, H, W) of one length to states (B, C, t', H', W').
        decode: The way back.
        span: Maps a number of frames to (t, t') of the least clip that is encoded and has so many; the last frame is
            held behind.
    """

    def __init__(
        self, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor],
        span: Callable[[int], tuple[int, int]],
    ) -> None:  # fmt: skip
        self._encode, self._decode, self.span = encode, decode, span

    def encode(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of a batch."""
        lengths, clips = x["mask"].bool().sum(1), x["x"]
        state: Tensor | None = None
        counts = torch.tensor([self.span(n)[1] for n in lengths.tolist()], device=clips.device)
        width = max(self.span(clips.shape[2])[1], int(counts.max()))
        for rows, n in _groups(lengths):
            part = self._encode(_held(clips[rows, :, :n], self.span(n)[0]))
            if state is None:
                state = part.new_zeros(len(clips), part.shape[1], width, *part.shape[3:])
            state[rows, :, : part.shape[2]] = part
        assert state is not None  # a batch has rows
        return {"x": state, "mask": torch.arange(width, device=clips.device) < counts[:, None], "length": lengths}

    def decode(self, state: Mapping[str, Tensor], frames: int) -> dict[str, Tensor]:
        """Return the batch of a state, at least `frames` frames wide."""
        x, lengths = state["x"], state["length"]
        frames = max(frames, int(lengths.max()))
        mask = torch.arange(frames, device=x.device) < lengths[:, None]
        found: Tensor | None = None
        for rows, n in _groups(lengths):
            part = self._decode(x[rows, :, : self.span(n)[1]])
            if found is None:
                found = part.new_zeros(len(x), part.shape[1], frames, *part.shape[3:])
            found[rows, :, :n] = part[:, :, :n]
        assert found is not None
        return {"x": found, "mask": mask}

    def empty(
        self, lengths: Tensor, frames: int, shape: Sequence[int], device: torch.device | str
    ) -> dict[str, Tensor]:
        """Return an empty state of clips of these lengths.

        Arguments:
            lengths: Frames of each.
            frames: How long the longest of training is: the state is as wide as some times that.
            shape: Shape (C, T', H', W') of a state.
            device: Where it is wanted.
        """
        counts = torch.tensor([self.span(n)[1] for n in lengths.tolist()])
        one = self.span(frames)[1]
        width = -(-int(counts.max()) // one) * one
        x = torch.empty(len(lengths), shape[0], width, *shape[2:])
        state = {"x": x, "mask": torch.arange(width) < counts[:, None], "length": lengths}
        return {name: leaf.to(device) for name, leaf in state.items()}


def _held(x: Tensor, frames: int) -> Tensor:
    """Return clips (..., T, H, W) with the last frame held until there are `frames`."""
    more = frames - x.shape[-3]
    if more <= 0:
        return x
    return torch.cat([x, x[..., -1:, :, :].expand(*x.shape[:-3], more, *x.shape[-2:])], -3)


def _groups(lengths: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield the rows of equal lengths, and the length."""
    counts = lengths.tolist()
    for count in sorted(set(counts)):
        yield torch.tensor([i for i, c in enumerate(counts) if c == count], device=lengths.device), int(count)
