"""Damage: what a data set does about files that cannot be used.

A few of them are named in the log and left out, or, once training runs, stand aside for the next; more than a fraction
of all is an error. Which file is damaged, and how, is for the one who reads it to say.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from suffuse.errors import ConfigError, DataError

__all__ = ["check_fraction", "in_threads", "judge"]

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


def in_threads(function: Callable[[S], T], things: Sequence[S]) -> list[T]:
    """Return `function` of every thing in order; decoders work without Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, things))
