"""Overrides: the `key=value` words of a command line, checked before Hydra or torch is imported.

Hydra composes; this module only knows which groups, options and keys exist (from the file names and the YAML of the
core and of every plugin) so that a slip is answered at once, with the word that was probably meant.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from suffuse.errors import ConfigError, suggest
from suffuse.plugins import CONF, registry

__all__ = [
    "LIMITS", "PUBLISHED", "SAMPLE_GROUPS", "asks", "check", "check_limits", "groups", "modality_keys", "option_keys",
    "own", "split", "translate",
]  # fmt: skip

SAMPLE_GROUPS = ("sampler", "grid", "guidance", "preview", "trainer")
"""Groups that `sample` takes; everything else of a model is settled when it is trained."""

PUBLISHED = ("height", "width", "tiled", "seconds")
"""What some published models let be asked of a sample, see `suffuse.pretrained.families`."""

LIMITS: Mapping[str, int] = {
    "steps": 1, "seed": 0, "num": 1, "keep": 1, "batch_size": 1, "devices": 1, "tries": 1, "fine": 8,
    "preview_num": 1, "val_num": 1, "metrics_num": 2, "data.batch_size": 1, "data.workers": 0, "sampler.steps": 1,
    "every.log": 0, "every.validate": 0, "every.preview": 0, "every.checkpoint": 0, "trainer.accumulate": 1,
    "trainer.max_skipped": 0, "lr_schedule.warmup": 0,
}  # fmt: skip
"""Smallest whole number each of these keys accepts."""

_PLAIN = re.compile(r"[\w./+-]+")


def split(word: str) -> tuple[str, str, str]:
    """Return (prefix, key, value) of an override: prefix is ``+``, ``++``, ``~`` or empty."""
    match = re.fullmatch(r"(\+\+|\+|~)?([^=]*)(?:=(.*))?", word, flags=re.DOTALL)
    assert match is not None  # the pattern accepts any string
    return match[1] or "", match[2].partition("@")[0], match[3] or ""


def translate(argv: Sequence[str]) -> list[str]:
    """Return `argv` with short forms spelt out.

    ``guidance=2`` is ``guidance=cfg guidance.scale=2``; ``task=autoencoder``, ``codec=latent`` and
    ``conditioner=image`` are the modality's own, where it has one: ``task=audio/autoencoder``.
    """
    words: list[str] = []
    modality = next((split(word)[2] for word in argv if split(word)[1] == "modality"), "")
    for word in argv:
        prefix, key, value = split(word)
        if key in ("task", "codec", "conditioner") and not prefix:
            words.append(f"{key}={own(key, value, modality)}")
            continue
        if key == "guidance" and not prefix and _number(value) is not None:
            words += ["guidance=cfg", f"guidance.scale={value}"]
        else:
            words.append(word)
    return words


def own(group: str, option: str, modality: str) -> str:
    """Return the modality's own option of a name, ``audio/latent`` for ``latent``, or the name where it has none."""
    roots = [p.modality.conf for p in registry().providers.values()]
    mine = f"{modality}/{option}"
    return mine if mine in groups(roots).get(group, ()) else option


def check(argv: Sequence[str], job: str) -> None:
    """Raise `ConfigError` for the first override that names nothing, or a value out of its range.

    Arguments:
        argv: Words of the command line; flags are passed over.
        job: ``train`` or ``sample``: which job's keys are meant.
    """
    roots = [CONF, *(p.modality.conf for p in registry().providers.values()), *_config_dirs(argv)]
    words = [word for word in argv if "=" in word and not word.startswith("-")]
    for word in argv:
        if not word.startswith(("-", "~")) and "=" not in word and word not in _flag_values(argv):
            raise ConfigError(f"{word!r} is not of the form key=value")
    for word in words:
        prefix, key, value = split(word)
        if prefix or key.startswith("hydra"):
            continue
        found = groups(roots)
        if key in found and (job == "train" or key in SAMPLE_GROUPS):
            _check_options(key, value, found[key])
        else:
            _check_key(key, job, roots, found)
            _check_limit(key, value)


def check_limits(values: Mapping[str, Any]) -> None:
    """Raise `ConfigError` when a value of a composed job is out of its range; dotted keys look into mappings."""
    for key in LIMITS:
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and value != "auto":
            _check_limit(key, str(value))


def asks(roots: Sequence[Path] | None = None) -> set[str]:
    """Return what some modality lets be asked of a sample; by default of those installed."""
    if roots is None:
        roots = [p.modality.conf for p in registry().providers.values()]
    found = _keys(roots, "modality/*.yaml").get("modality") or {}
    return set(found.get("asks") or {}) | set(PUBLISHED)


def modality_keys(modality: str) -> dict[str, set[str]]:
    """Return the keys of config groups that a modality sets, by group."""
    provider = registry().providers.get(modality)
    if provider is None:
        return {}
    root = provider.modality.conf
    tree = _keys([root], f"modality/{modality}.yaml")
    found = groups([CONF, root])
    return {group: set(node) for group, node in tree.items() if group in found and isinstance(node, Mapping)}


def option_keys(group: str, target: str) -> set[str]:
    """Return the keys of all options of a group that have this ``_target_``; empty where none has."""
    keys: set[str] = set()
    for root in [CONF, *(p.modality.conf for p in registry().providers.values())]:
        for path in sorted((root / group).rglob("*.yaml")):
            tree = _tree(path.read_text())
            if tree.get("_target_") == target:
                keys |= set(tree)
    return keys


def groups(roots: Sequence[Path]) -> dict[str, set[str]]:
    """Return every config group of `roots` with the names of its options."""
    found: dict[str, set[str]] = {}
    for root in roots:
        for path in _yaml(root):
            top, _, rest = path.relative_to(root).with_suffix("").as_posix().partition("/")
            if rest:
                found.setdefault(top, set()).add(rest)
    return found


@functools.cache
def _yaml(root: Path) -> tuple[Path, ...]:
    return tuple(sorted(root.rglob("*.yaml")))


def _config_dirs(argv: Sequence[str]) -> Iterator[Path]:
    for flag, value in itertools.pairwise(argv):
        if flag in ("-cd", "--config-dir", "-cp", "--config-path") and Path(value).is_dir():
            yield Path(value).resolve()


def _flag_values(argv: Sequence[str]) -> set[str]:
    return {value for flag, value in itertools.pairwise(argv) if flag.startswith("-")}


def _check_options(group: str, value: str, options: set[str]) -> None:
    for name in value.split(","):
        if name in options or name == "null" or not _PLAIN.fullmatch(name):  # choice(...), glob(...): Hydra's
            continue
        raise ConfigError(f"{group}={name}: no such option{suggest(name, options, listing='options')}")


def _check_key(key: str, job: str, roots: Sequence[Path], found: Mapping[str, set[str]]) -> None:
    names = set(found) if job == "train" else set(SAMPLE_GROUPS)
    tree: dict[str, Any] = dict.fromkeys(names)
    for pattern in (f"{job}.yaml", "modality/*.yaml"):
        _merge(tree, _keys(roots, pattern))
    if job == "sample":
        # What a modality lets be asked of a sample, as seconds of a sound.
        tree |= dict.fromkeys(asks(roots))
    first, *rest = key.split(".")
    if first not in tree:
        raise ConfigError(f"unknown key {key!r}{suggest(first, set(tree), listing='keys')}")
    node: Any = tree[first]
    if first in names:
        # What modalities set of a group is among its keys too.
        node = _keys(roots, f"{first}/**/*.yaml")
        _merge(node, tree[first] if isinstance(tree[first], Mapping) else {})
    done = first
    for part in rest:
        if not isinstance(node, Mapping) or not node:  # a leaf or an open mapping: Hydra's to judge
            return
        if part not in node:
            raise ConfigError(f"unknown key {key!r}{_near(part, done, node)}")
        node, done = node[part], f"{done}.{part}"


def _near(part: str, parent: str, node: Mapping[str, Any]) -> str:
    return suggest(f"{parent}.{part}", [f"{parent}.{name}" for name in node if name[0] != "_"], listing="keys")


def _keys(roots: Sequence[Path], pattern: str) -> dict[str, Any]:
    """Return the union of the trees in every file that matches; of global ones, the part at the pattern's group."""
    group = pattern.partition("/")[0]
    merged: dict[str, Any] = {}
    for root in roots:
        for path in sorted(root.glob(pattern)):
            text = path.read_text()
            tree = _tree(text)
            whole = group == "modality" or "@package _global_" not in text.partition("\n")[0]
            _merge(merged, tree if whole else tree.get(group) or {})
    return {key: value for key, value in merged.items() if key not in ("defaults", "hydra")}


def _tree(text: str) -> dict[str, Any]:
    """Return what YAML says; libyaml, where it was built in, reads it ten times as fast."""
    import yaml

    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif into.get(key) is None:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _check_limit(key: str, value: str) -> None:
    if key not in LIMITS or value in ("null", "auto", "") or "$" in value or "," in value or "(" in value:
        return
    number = _number(value)
    if number is None or number != int(number):
        raise ConfigError(f"{key}={value} is not a whole number")
    if number < LIMITS[key]:
        raise ConfigError(f"{key}={value} is out of range; it must be at least {LIMITS[key]}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
