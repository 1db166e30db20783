"""Plugins: discovery of modality packages.

A plugin that fails (an import error, ``sys.exit`` at import, a misspelt hook, no result, another API version, a missing
conf, a name or a YAML path that is taken) is that plugin's alone: it is recorded, named in one line, and skipped.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pluggy

from suffuse import hookspecs
from suffuse.errors import PluginError
from suffuse.modality import Command, Modality

__all__ = ["CONF", "Failure", "Provider", "Registry", "registry"]

DISABLED = "SUFFUSE_DISABLE_PLUGINS"

BUILT_IN = ("train", "sample", "tune", "ema", "encode", "export", "consolidate", "plugins", "new", "info")
"""Words that a package's command cannot take."""

_HERE = Path(__file__).resolve().parent
# Inside the package when installed from a wheel, at the top of the repository in a checkout.
CONF = next(path for path in (_HERE / "conf", _HERE.parents[1] / "conf") if path.is_dir())


@dataclass(frozen=True)
class Provider:
    """A modality and the distribution it came from."""

    modality: Modality
    dist: str


@dataclass(frozen=True)
class Failure:
    """A plugin that was skipped, and why."""

    name: str
    dist: str
    error: BaseException

    def __str__(self) -> str:
        reason = " ".join(str(self.error).split())
        return f"plugin {self.name!r} ({self.dist}) was skipped: {type(self.error).__name__}: {reason}"


@dataclass
class Registry:
    """Every installed modality, and every plugin that could not be loaded."""

    providers: dict[str, Provider] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def load(self, entry: EntryPoint) -> None:
        """Add the modalities of one entry point; a plugin that raises is recorded, not propagated."""
        dist = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
        try:
            modalities, commands = _records(entry)
            found = [Provider(modality, dist) for modality in modalities]
            if not found:  # pluggy drops a hook that returns None without a word
                raise PluginError(f"{entry.value} implements no suffuse_modalities hook, or it returned nothing")
            names = [provider.modality.name for provider in found]
            if twice := {name for name in names if names.count(name) > 1}:
                raise PluginError(f"modality {min(twice)!r} is returned twice")
            for provider in found:
                self._check(provider)
            for command in commands:
                command.validate()
                if command.name in self.commands or command.name in BUILT_IN:
                    raise PluginError(f"command {command.name!r} is taken")
        except (Exception, SystemExit) as error:
            self.failures.append(Failure(entry.name, dist, error))
        else:
            self.providers |= {p.modality.name: p for p in found}
            self.commands |= {command.name: command for command in commands}

    def _check(self, provider: Provider) -> None:
        provider.modality.validate()
        if other := self.providers.get(provider.modality.name):
            raise PluginError(f"modality {provider.modality.name!r} is already provided by {other.dist}")
        others = [p for p in self.providers.values() if p.modality.conf != provider.modality.conf]
        taken = {"suffuse": CONF} | {p.dist: p.modality.conf for p in others}
        for owner, conf in taken.items():
            if clash := _configs(conf) & _configs(provider.modality.conf):
                raise PluginError(f"config {min(clash)} is already provided by {owner}")


def _records(entry: EntryPoint) -> tuple[list[Modality], list[Command]]:
    # One manager per plugin: a hook that raises, or a misspelt one, is then that plugin's alone.
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), name=entry.name)
    manager.check_pending()
    modalities = [record for batch in manager.hook.suffuse_modalities() for record in batch]
    commands = [record for batch in manager.hook.suffuse_commands() for record in batch]
    for hook, kind, records in (("modalities", Modality, modalities), ("commands", Command, commands)):
        for record in records:
            if not isinstance(record, kind):
                raise PluginError(f"suffuse_{hook} must return {kind.__name__} records, not {type(record).__name__}")
    return modalities, commands


def _configs(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*.yaml")}


@functools.cache
def registry() -> Registry:
    """Load every plugin once."""
    found = Registry()
    disabled = {name.strip() for name in os.environ.get(DISABLED, "").split(",")}
    for entry in sorted(entry_points(group=hookspecs.PROJECT), key=lambda entry: entry.name):
        if entry.name not in disabled:
            found.load(entry)
    return found
