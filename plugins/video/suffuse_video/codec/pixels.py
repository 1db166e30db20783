"""Pixels: clips in [0, 1] to a state in [-1, 1], x0 = 2 x - 1, and back, x = clamp((x0 + 1) / 2, 0, 1).

Asked for ``frames``, samples of another length than those of training are drawn. `open` reads a clip or a picture for
editing; a mask in seconds or frames says which frames are made anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from suffuse.errors import ConfigError, check_whole
from suffuse.state import State
from torch import Tensor

from suffuse_video.ragged import Spans, drawn

__all__ = ["Pixels", "asked", "kept", "read_init", "wanted"]


class Pixels:
    """The state is the clip itself, centred.

    Arguments:
        about: Facts of the data: ``frames``, ``height``, ``width``, ``fps``, and ``clock`` where clips say when they
            start.
        frames: Frames of the samples that are drawn; by default those of the training data. Where clips have lengths of
            their own (``about["lengths"]``), several take turns by seed, and by default the data's do by chance.

    Raises:
        ConfigError: When `frames` is no whole number of at least 1, or several for a model of one length.
    """

    tolerance = 1e-6

    def __init__(self, about: Mapping[str, Any] | None = None, frames: int | Sequence[int] | None = None) -> None:
        self.about = dict(about or {})
        self.asked, self.lengths = asked(frames, self.about), list(self.about.get("lengths") or [])
        self.frames = max(self.asked) if self.asked else None
        self.spans = Spans(self.centred, self.shown, lambda n: (n, n))
        self.implied = {self.about["clock"]: 0.0} if self.about.get("clock") else {}

    def encode(self, x: Any) -> Any:
        """Return ``2 x - 1`` in float32.

        Arguments:
            x: Clips in [0, 1], shape (B, 3, T, H, W), or of lengths of their own, see `suffuse_video.ragged`.
        """
        return self.spans.encode(x) if isinstance(x, Mapping) else self.centred(x)

    def decode(self, state: Any) -> Any:
        """Return ``(x0 + 1) / 2`` clamped to [0, 1], float32.

        Arguments:
            state: States, shape (B, 3, T, H, W), or of three fields.
        """
        if isinstance(state, Mapping) and "length" in state:
            return self.spans.decode(state, state["x"].shape[2])
        if not isinstance(state, Tensor):
            raise TypeError(f"Pixels decodes one tensor, not {type(state).__name__}")
        return self.shown(state)

    @staticmethod
    def centred(x: Tensor) -> Tensor:
        """Return pixels as the state."""
        return 2 * x.float() - 1

    @staticmethod
    def shown(state: Tensor) -> Tensor:
        """Return the state as pixels."""
        return ((state.float() + 1) / 2).clamp(0, 1)

    def like(self, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> State:
        """Return an empty state of the wanted length, one row per seed; of several, their masks and lengths."""
        size, trained = (int(self.about["height"]), int(self.about["width"])), int(self.about["frames"])
        if not self.lengths:
            return torch.empty(len(seeds), 3, self.frames or trained, *size, device=device)
        return self.spans.empty(drawn(seeds, self.asked, self.lengths), trained, (3, trained, *size), device)

    def open(self, init: str, mask: str | None) -> tuple[State, State | None]:
        """Return the state of a file, one row, and where it is kept.

        Arguments:
            init: A clip or a picture; it is brought to the model's size and rate. What it lacks of the length is made
                anew.
            mask: What is made anew: frames (``1-``, ``2-5``, ``0-3,6``) or seconds (``0.5s-``, ``1s-2s``).
        """
        if len(self.asked) > 1:
            raise ConfigError(f"frames={self.asked}: init={init} is one clip; ask for one length")
        frames = self.frames or int(self.about["frames"])
        x = read_init(init, frames, self.about)
        where = None if mask is None else kept(mask, frames, float(self.about["fps"]))
        if not self.lengths:
            state = self.encode(x[None])
            return state, None if where is None else where.expand(state.shape)
        trained = int(self.about["frames"])
        wide = self.spans.empty(torch.tensor([frames]), trained, (3, *x.shape[1:]), "cpu")
        wide["x"] = torch.zeros_like(wide["x"])
        wide["x"][0, :, :frames] = self.centred(x)
        if where is None:
            return wide, None
        stays = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in wide.items()}
        stays["x"][:, :, :frames] = where
        return wide, stays


def asked(frames: Any, about: Mapping[str, Any]) -> list[int]:
    """Return the lengths that are asked for, none for None.

    Raises:
        ConfigError: For what is no whole number of at least 1, and for several where clips have one length.
    """
    several = isinstance(frames, Sequence) and not isinstance(frames, str)
    if several and not about.get("lengths"):
        raise ConfigError(
            f"frames={frames}: this model's samples have one length, give one number; clips of several lengths are "
            "learned with experiment=video/variable"
        )
    found = [wanted(value) for value in (frames if several else [frames])]
    return [value for value in found if value is not None]


def wanted(frames: int | None) -> int | None:
    """Return `frames`, or raise `ConfigError` when it is no whole number of at least 1."""
    if frames is not None:
        check_whole("frames", frames)
    return frames


def read_init(init: str, frames: int, about: Mapping[str, Any]) -> Tensor:
    """Return a clip (3, frames, H, W) of a file; behind its end the last frame is held."""
    from suffuse_video.files import ClipError, read

    try:
        x = read(init, frames, size=(int(about["height"]), int(about["width"])), fps=float(about["fps"]))
    except ClipError as error:
        raise ConfigError(f"init={init}: {error}") from error
    return torch.cat([x, x[:, -1:].expand(-1, frames - x.shape[1], -1, -1)], 1)


def kept(mask: str, frames: int, fps: float) -> Tensor:
    """Return which frames a mask leaves alone, boolean (1, frames, 1, 1).

    Arguments:
        mask: Frames that are made anew, ``first-last`` with either end open, or one number; with an ``s`` behind a
            number it is in seconds; several with commas.
        frames: Frames of the clip.
        fps: Frames per second.

    Raises:
        ConfigError: For anything else, and when everything or nothing would be made anew.
    """
    anew = torch.zeros(frames, dtype=torch.bool)
    number = r"(\d+(?:\.\d+)?s|\d+)"
    for part in mask.split(","):
        match = re.fullmatch(rf"\s*{number}?\s*(-)?\s*{number}?\s*", part)
        if match is None or not (match[1] or match[3]) or (match[3] and not match[2]):
            raise ConfigError(f"mask={mask}: {part!r} names no frames; write 1-, 2-5 or 0.5s-1s (what is made anew)")

        def frame(text: str | None, default: int, up: int) -> int:
            if text is None:
                return default
            # A frame is made anew when any of its time is.
            return int(-(-float(text[:-1]) * fps // 1)) - up if text.endswith("s") else int(text)

        first = frame(match[1], 0, 0) if not (match[1] or "").endswith("s") else int(float(match[1][:-1]) * fps)
        last = frame(match[3], frames - 1, 1) if match[2] else first
        if first >= frames:
            raise ConfigError(f"mask={mask}: {part!r} starts behind the clip, whose frames are 0-{frames - 1}")
        if last < first:
            raise ConfigError(f"mask={mask}: {part!r} ends before it starts")
        anew[first : last + 1] = True
    if anew.all() or not anew.any():
        raise ConfigError(f"mask={mask}: {'everything' if anew.all() else 'nothing'} would be made anew")
    return ~anew[None, :, None, None]
