"""Modality: the record a plugin hands to the core."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from suffuse.errors import PluginError

__all__ = ["API_VERSION", "Command", "Modality"]

API_VERSION = 1


@dataclass(frozen=True, slots=True)
class Command:
    """A command of its own that a package adds: ``suffuse NAME``.

    Arguments:
        name: The word after ``suffuse``.
        summary: One line shown by ``suffuse --help``.
        run: ``package.module:function``, imported when the command is given; called with the list of words behind it.
    """

    name: str
    summary: str
    run: str

    def validate(self) -> None:
        """Raise `PluginError` when the record cannot be used."""
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", self.name):
            raise PluginError(f"command name {self.name!r} is not lower case")
        if not re.fullmatch(r"[\w.]+:\w+", self.run):
            raise PluginError(f"command {self.name!r}: run={self.run!r} is not package.module:function")


@dataclass(frozen=True, slots=True)
class Modality:
    """One kind of data that can be diffused.

    Arguments:
        name: What users write after ``modality=``.
        summary: One line shown by ``train --help`` and ``suffuse plugins``.
        conf: Directory added to the Hydra search path; holds ``modality/<name>.yaml``.
        api: Version of the plugin interface the package was written for.
    """

    name: str
    summary: str
    conf: Path
    api: int = API_VERSION

    def validate(self) -> None:
        """Raise `PluginError` when the record cannot be used."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise PluginError(f"modality name {self.name!r} is not lower_snake_case")
        if self.api != API_VERSION:
            raise PluginError(
                f"modality {self.name!r} was written for plugin API {self.api}, this suffuse speaks {API_VERSION}"
            )
        entry = self.conf / "modality" / f"{self.name}.yaml"
        if not entry.is_file():
            raise PluginError(f"modality {self.name!r} has no config file {entry}")
