"""Errors whose message is meant for the user, shown on one line and without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["CheckpointError", "ConfigError", "DataError", "PluginError", "SuffuseError", "check_whole", "suggest"]


class SuffuseError(Exception):
    """Base of every error the command line prints as a single line, with exit status 1."""


class PluginError(SuffuseError):
    """A plugin does not keep its side of the contract."""


class ConfigError(SuffuseError):
    """A key or a value of the configuration cannot be used."""


class DataError(SuffuseError):
    """The data named by the configuration is missing, empty or unreadable."""


class CheckpointError(SuffuseError):
    """A checkpoint is missing, unreadable, or belongs to something that is not installed."""


def suggest(word: str, known: Iterable[str], *, listing: str = "known") -> str:
    """Return ``; did you mean 'x'?`` for the nearest of `known`, or the list of them.

    Arguments:
        word: What the user wrote.
        known: What would have been understood.
        listing: How the list is introduced when nothing is near.
    """
    names = sorted(set(known))
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f"; did you mean {close[0]!r}?"
    return f"; {listing}: {', '.join(names)}" if names else ""


def check_whole(key: str, value: Any, least: int = 1) -> int:
    """Return the value of `key`, or raise `ConfigError` when it is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{key}={value} must be a whole number of at least {least}")
    return value
