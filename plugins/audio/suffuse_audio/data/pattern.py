"""Pattern: what a file's name says of it, as ``{label}_{speaker}_{index}``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from suffuse.errors import ConfigError

__all__ = ["Pattern", "chosen"]


class Pattern:
    """A pattern of names, matched against a file's name without its ending.

    Arguments:
        text: Literal text and ``{field}``, each field standing for anything that is not empty. Where that leaves a
            choice, the last field is as short as can be, then the first: what is between may hold separators.

    Raises:
        ConfigError: When it has no field, or one twice, or two with nothing between.
    """

    def __init__(self, text: str) -> None:
        fields = re.findall(r"\{(\w+)\}", text)
        if (
            not fields
            or len(set(fields)) != len(fields)
            or "}{" in text
            or re.sub(r"\{\w+\}", "", text).strip("{}") != (re.sub(r"\{\w+\}", "", text))
        ):
            raise ConfigError(
                f"data.label={text}: no pattern of a file name; write fields in braces with something between, as "
                '"{label}_{speaker}_{index}"'
            )
        self.text, self.fields = text, tuple(fields)
        parts = re.split(r"\{\w+\}", text)
        groups = (["(.+?)"] if len(fields) > 2 else []) + ["(.+)"] * len(fields)
        groups = [*groups[: len(fields)], ""]
        self._match = re.compile("".join(re.escape(p) + f for p, f in zip(parts, groups, strict=True)))

    def __call__(self, name: str) -> dict[str, str] | None:
        """Return the fields of a name without its ending, or None when it does not match."""
        match = self._match.fullmatch(name)
        return None if match is None else dict(zip(self.fields, match.groups(), strict=True))


def chosen(fields: Mapping[str, str], where: Mapping[str, object]) -> bool:
    """Return whether every field of `where` has a wanted value: one, several in a list, or numbers as ``0-4``."""
    for name, wanted in where.items():
        value = fields.get(name, "")
        options = wanted if isinstance(wanted, list | tuple) else [wanted]
        if not any(_fits(value, option) for option in options):
            return False
    return True


def _fits(value: str, option: object) -> bool:
    match = re.fullmatch(r"(\d+)-(\d+)", str(option))
    if match and value.isdecimal():
        return int(match[1]) <= int(value) <= int(match[2])
    return value == str(option) or (value.isdecimal() and str(option).isdecimal() and int(value) == int(str(option)))
