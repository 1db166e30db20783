"""Scaffold: the skeleton of a modality package, as ``suffuse new`` writes it."""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from pathlib import Path

from suffuse.errors import ConfigError
from suffuse.plugins import registry

__all__ = ["write"]

TEMPLATE = Path(__file__).parent / "template"


def write(name: str, parent: Path) -> Path:
    """Write ``suffuse-<name>`` under `parent` and return its path.

    Raises:
        ConfigError: When the name is not lower_snake_case, is taken, or the target exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} cannot be a modality's name; use lower_snake_case, for example {_snake(name)!r}")
    if other := registry().providers.get(name):
        raise ConfigError(f"modality {name!r} is already provided by {other.dist}; choose another name")
    target = parent / f"suffuse-{name}"
    if target.exists():
        raise ConfigError(f"{target} already exists; move it away or choose another name")
    parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that a failure leaves no half a package.
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{target.name}-") as scratch:
        whole = Path(scratch) / target.name
        for path in sorted(p for p in TEMPLATE.rglob("*.in") if p.is_file()):
            out = whole / str(path.relative_to(TEMPLATE)).replace("NAME", name).removesuffix(".in")
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(path.read_text().replace("@NAME@", name))
        shutil.move(whole, target)
    return target


def _snake(name: str) -> str:
    snake = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).strip("_").lower()
    return snake if re.match(r"[a-z]", snake) and not keyword.iskeyword(snake) else f"my_{snake}".rstrip("_")
