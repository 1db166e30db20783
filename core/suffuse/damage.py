"""Damage: what a data set does about files that cannot be used.

A few of them are named in the log and left out, or, once training runs, stand aside for the next; more than a fraction
of all is an error. Which file is damaged, and how, is for the one who reads it to say.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, TypeVar

from suffuse.errors import ConfigError, DataError

__all__ = ["Tolerant", "check_fraction", "in_threads", "judge"]

S = TypeVar("S")
T = TypeVar("T")
SHOWN = 3
"""Damaged files that a message names."""

_log = logging.getLogger(__name__)


def check_fraction(max_bad: float) -> None:
    """Raise `ConfigError` when ``data.max_bad`` is not in [0, 1)."""
    if not 0 <= max_bad < 1:
        raise ConfigError(f"data.max_bad={max_bad} must be a fraction, at least 0 and below 1")


def judge(
    bad: Mapping[int, Exception], names: Callable[[int], str], total: int, max_bad: float, key: str, what: str
) -> None:
    """Log what is damaged, or raise `DataError` when it is too much.

    Arguments:
        bad: The fault of each damaged file, by its number.
        names: The name of a file.
        total: How many files there are.
        max_bad: Fraction of them that may be damaged.
        key: The config key that names the files.
        what: What they are and fail at: ``images cannot be read``.
    """
    if not bad:
        return
    shown = ", ".join(f"{names(i)} ({reason})" for i, reason in list(bad.items())[:SHOWN])
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    if len(bad) > max_bad * total:
        raise DataError(
            f"{key}: {len(bad)} of {total} {what}: {shown}{more}; repair or remove them, "
            f"or allow for more with data.max_bad (now {max_bad:g})"
        )
    _log.warning("%d of %d %s and are left out: %s%s", len(bad), total, what, shown, more)


class Tolerant:
    """Base of a reader of files of which a few may be damaged: a frozen dataclass with the fields annotated here."""

    cache: bool
    """Keep decoded files in memory, up to `memory` bytes."""
    max_bad: float
    """Fraction of the files that may be damaged."""
    key: str
    """The config key that names the files, for messages."""
    what: ClassVar[str]
    """What the files are, for messages."""
    fails: ClassVar[str] = "cannot be used"
    fault: ClassVar[type[Exception]]
    """What a damaged file raises."""
    memory: ClassVar[int] = 4 * 2**30

    def __post_init__(self) -> None:
        check_fraction(self.max_bad)

    def keeps(self, size: float) -> bool:
        """Return whether decoded files of `size` bytes are kept in memory."""
        if self.cache and size > self.memory:
            _log.warning("the %s take %.1f GiB: reading them as they are asked for", self.what, size / 2**30)
        return self.cache and size <= self.memory

    def tried(self, function: Callable[[S], T], thing: S) -> T | Exception:
        """Return `function` of a thing, or how it is damaged."""
        try:
            return function(thing)
        except self.fault as error:
            return error

    def judge(self, bad: Mapping[int, Exception], names: Callable[[int], str], total: int) -> None:
        """Log the damaged files, or raise `DataError` when they are too many."""
        judge(bad, names, total, self.max_bad, self.key, f"{self.what} {self.fails}")

    def stand_in(
        self, read: Callable[[int], T], index: int, total: int, bad: dict[int, Exception], names: Callable[[int], str],
        like: Callable[[int], bool] = lambda _: True,
    ) -> tuple[T, int]:  # fmt: skip
        """Return what can be read of an item, or of the next one in its place, and the index of that item.

        Arguments:
            read: Reads an item.
            index: The item.
            total: How many there are.
            bad: The damaged ones that are known, which are added to.
            names: The name of an item.
            like: Whether an item may stand in.

        Raises:
            DataError: When more than `max_bad` of them have turned out damaged, or none is left.
        """
        for k in itertools.chain(range(index, total), range(index)):
            if k not in bad and like(k):
                found = self.tried(read, k)
                if not isinstance(found, self.fault):
                    return found, k  # type: ignore[return-value]
                bad[k] = found
                self.judge(bad, names, total)
        raise DataError(f"{self.key}: none of the {self.what} is left that can be read")


def in_threads(function: Callable[[S], T], things: Sequence[S]) -> list[T]:
    """Return `function` of every thing in order; decoders work without Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, things))
