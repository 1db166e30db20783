"""Trust: what a stored config may name.

A config says by ``_target_`` what is built, and that of a checkpoint was written by whoever trained it. It may name
what is in suffuse and in the installed packages of modalities, and what their own YAML files name, such as
``torch.optim.AdamW``; nothing else is imported, let alone called. What a name leads to counts as well:
``suffuse.encode.os.system`` is of the system, not of suffuse. ``trust=true`` lets a checkpoint of your own name the
rest.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from suffuse.errors import CheckpointError
from suffuse.plugins import CONF, registry

__all__ = ["VARIABLE", "check"]

VARIABLE = "SUFFUSE_TRUST"
"""Set by ``trust=true``: in the environment, so that it holds for all processes of a job."""


def check(config: Any, where: object) -> None:
    """Refuse a stored config that names what it may not.

    Arguments:
        config: Nested mappings and lists.
        where: What it was read from, for the message.

    Raises:
        CheckpointError: Names the first such target and the remedy.
    """
    if os.environ.get(VARIABLE) == "1":
        return
    for key, target in _targets(config, ""):
        if not _allowed(target):
            raise CheckpointError(
                f"{where}: its config names {target!r} at {key}, which is neither of suffuse nor of an installed "
                "modality; if you trust whoever made it, add trust=true"
            )


def _targets(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield where a config names what, at any depth."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            at = f"{key}.{name}".strip(".")
            if name == "_target_":
                yield at, value
            else:
                yield from _targets(value, at)
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _targets(value, f"{key}[{number}]")


def _allowed(target: Any) -> bool:
    if not isinstance(target, str):
        return False
    packages, declared = _known()
    if target in declared:
        return True
    if target.partition(".")[0] not in packages:
        return False
    from hydra.utils import get_object

    try:
        found = get_object(target)
    except Exception:  # whatever the import of a name of ours leads to; `build` says it better
        return True
    own = getattr(found, "__module__", None) or getattr(type(found), "__module__", "")
    return str(own).partition(".")[0] in packages


@functools.cache
def _known() -> tuple[frozenset[str], frozenset[str]]:
    """Return the packages of suffuse and of the installed modalities, and what their YAML files name."""
    roots = [CONF, *(provider.modality.conf for provider in registry().providers.values())]
    packages = {"suffuse", *(root.parent.name for root in roots[1:])}
    declared = set()
    for root in roots:
        for file in root.rglob("*.yaml"):
            declared |= set(re.findall(r"^\s*_target_:\s*['\"]?([\w.]+)", file.read_text(), re.MULTILINE))
    return frozenset(packages), frozenset(declared)
