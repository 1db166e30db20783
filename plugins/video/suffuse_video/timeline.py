"""Timeline: which frames of a file a clip takes.

A clip of T frames at the rate f from the time s wants the times t_j = s + j / f, j = 0 … T - 1. Of a file whose frames
are shown from the times u_0 < u_1 < …, counted from its first, it takes for each j the frame k with the least
|t_j - u_k|, of two equally near ones the earlier. So a clip of the file's own rate is the file's frames, one of half
its rate every other one, and a file of varying rate is sampled as it is seen. All times are fractions: nothing is lost
to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

__all__ = ["SHORTS", "ClipError", "Head", "Wanted", "chosen", "consecutive", "fraction"]

SHORTS = ("hold", "repeat", "error")
"""What may be done with a file that is shorter than a clip."""
T = TypeVar("T")


class ClipError(Exception):
    """A file that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Head:
    """What is known of a file before its frames are read.

    Arguments:
        frames: Number of frames; of some containers it is worked out from length and rate.
        fps: Frames per second, on average; 0 for pictures and folders of them, which have no rate of their own.
        height: Height in pixels as shown: turned as the file says, pixels square.
        width: Width.
        seconds: Length; 0 without a rate.
    """

    frames: int
    fps: float
    height: int
    width: int
    seconds: float

    @property
    def still(self) -> bool:
        """Whether it is one picture."""
        return self.frames == 1 and not self.fps

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def count(self, fps: float | None) -> int:
        """Return how many frames it has at the rate `fps`, or at its own."""
        if fps is None or not self.fps:
            return self.frames
        return max(1, round(Fraction(self.seconds).limit_denominator(10**6) * fraction(fps)))


@dataclass(frozen=True)
class Wanted:
    """The frames that are wanted of a file.

    Arguments:
        start: Time of the first, in seconds; in frames for what has no rate.
        frames: How many; None for all that follow.
        fps: Their rate; None for the file's own.
        short: What follows the end of a file that is too short: ``hold`` its last frame, ``repeat`` it from its
            beginning, or ``error``.
    """

    start: Fraction
    frames: int | None
    fps: Fraction | None
    short: str = "hold"

    def times(self, count: int, rate: Fraction) -> list[Fraction]:
        """Return the times, in any order where the file is repeated.

        Arguments:
            count: Frames of the whole file at the wanted rate.
            rate: The wanted rate.

        Raises:
            ClipError: When the file is too short and `short` is ``error``.
        """
        first = round(self.start * rate)
        left = max(1, count - first)
        number = left if self.frames is None else self.frames
        if number > left and self.short == "error":
            raise ClipError(f"it has {count} frames, a clip needs {first + number}")
        if number > left and self.short == "repeat":
            return [Fraction((first + j) % count) / rate for j in range(number)]
        # Behind the end there is the last frame, wherever that is: a head may be off.
        return [self.start + Fraction(j) / rate for j in range(number)]


def fraction(value: float | Fraction) -> Fraction:
    """Return a rate or a time as a fraction: 29.97 is 30000/1001, as broadcasters mean it."""
    if isinstance(value, Fraction):
        return value
    for whole in (24, 30, 48, 60, 120):
        if abs(value - whole * 1000 / 1001) < 0.004:
            return Fraction(whole * 1000, 1001)
    return Fraction(value).limit_denominator(10**6)


def chosen(shown: Iterable[tuple[Fraction, T]], times: Sequence[Fraction], convert: Callable[[T], Any]) -> list[Any]:
    """Return the converted frames nearest to `times`, in their order; no more is read than that takes.

    Arguments:
        shown: Times, rising, and frames of a file, from one at or before the first wanted one on.
        times: In any order; those behind the end take the last frame.
        convert: Called once for every frame that is taken.

    Raises:
        ClipError: When there are no frames.
    """
    order = sorted(range(len(times)), key=lambda j: times[j])
    found: list[Any] = [None] * len(times)
    done = 0
    before: tuple[Fraction, T] | None = None

    def take(frame: T, until: Fraction | None) -> None:
        nonlocal done
        made = None
        while done < len(order) and (until is None or times[order[done]] <= until):
            made = convert(frame) if made is None else made
            found[order[done]] = made
            done += 1

    for time, frame in shown:
        if before is not None:
            take(before[1], (before[0] + time) / 2)
            if done == len(order):
                return found
        before = time, frame
    if before is None:
        raise ClipError("it has no frames")
    take(before[1], None)
    return found


def consecutive(
    shown: Iterable[tuple[Fraction, T]], start: Fraction, count: int | None, convert: Callable[[T], Any]
) -> list[Any]:
    """Return `count` converted frames as they follow one another from a time on, the last one held; None for all."""
    found: list[Any] = []
    kept: T | None = None
    for time, frame in shown:
        kept = frame
        if time >= start:
            found.append(convert(frame))
            if len(found) == count:
                return found
    if kept is None:
        raise ClipError("it has no frames")
    found = found or [convert(kept)]
    return found + [found[-1]] * ((count or 0) - len(found))
