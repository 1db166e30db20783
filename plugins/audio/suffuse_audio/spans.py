"""Spans: stretches of time as a user writes them, and the columns of a state that they leave alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from suffuse.errors import ConfigError
from torch import Tensor

__all__ = ["kept", "spans"]


def spans(text: str, length: float) -> list[tuple[float, float]]:
    """Return the stretches of ``2.0-3.5``, ``-0.5``, ``3-`` or ``0-1,2-3`` within a sound, in seconds.

    Raises:
        ConfigError: For anything else, an end before its start, or a start behind the sound.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d*\.?\d*)\s*-\s*(\d*\.?\d*)\s*", part)
        if match is None or not any(match.groups()) or "." in match.groups():
            raise ConfigError(f"mask={text}: {part!r} is no stretch of time; write 2.0-3.5, -0.5 or 3- (seconds)")
        start, end = float(match[1] or 0), float(match[2] or math.inf)
        if end <= start:
            raise ConfigError(f"mask={text}: {part!r} ends before it starts")
        if start >= length:
            raise ConfigError(f"mask={text}: {part!r} starts behind the sound, which is {length:g} s long")
        found.append((start, min(end, length)))
    return found


def kept(stretches: Sequence[tuple[float, float]], columns: int, frame: int, overlap: int, rate: int) -> Tensor:
    """Return which columns reach into no stretch, boolean (columns,).

    Arguments:
        stretches: What is made anew, in seconds.
        columns: Columns of the state.
        frame: Samples per column.
        overlap: Samples by which a column reaches over its place on either side.
        rate: Samples per second.
    """
    first = torch.arange(columns) * frame - overlap
    last = first + frame + 2 * overlap
    found = torch.ones(columns, dtype=torch.bool)
    for start, end in stretches:
        found &= (last <= start * rate) | (first >= end * rate)
    return found
