"""Mismatch: in what a checkpoint differs from the model that is to take its weights, on one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from suffuse.errors import CheckpointError

__all__ = ["check_resumable", "difference"]

GROUPS = ("modality", "task", "model", "codec", "conditioner", "objective", "process", "parameterization", "data")
"""Groups of a config that decide what the weights are, the telling ones first."""
SHOWN = 3
"""Weights, and keys of a config, that a message names."""


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return how the weights `found` differ from those `wanted`: how many, and the first of them; nothing if not.

    Arguments:
        found: What has been saved, by name; only shapes are looked at.
        wanted: What the model has.
    """
    apart = [_one(name, found, wanted) for name in dict.fromkeys((*wanted, *found))]
    said = [text for text in apart if text]
    if not said:
        return ""
    more = f" and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return f"{len(said)} of {len(apart)} weights do not fit: {', '.join(said[:SHOWN])}{more}"


def check_resumable(
    saved: Mapping[str, Any], weights: Mapping[str, Any], cfg: Mapping[str, Any], choices: Mapping[str, str], named: str
) -> None:
    """Raise `CheckpointError` unless a run can go on with the weights of a checkpoint.

    Arguments:
        saved: The checkpoint.
        weights: Of the run's model, with the names that they have in the checkpoint.
        cfg: Config of the run.
        choices: Options that it was composed from, by group.
        named: The checkpoint, for the message.
    """
    apart = difference(saved["state_dict"], weights)
    if not apart:
        return
    record = saved["suffuse"]
    keys = list(_changed(record["config"], cfg, record.get("choices") or {}, choices))
    told = f"made with {', '.join(keys[:SHOWN])}; " if keys else ""
    raise CheckpointError(
        f"{named}: this run's model is another: {told}{apart}; say the words that it was trained with, or leave ckpt= "
        "out to begin anew"
    )


def _one(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if name not in found:
        return f"{name} is not there"
    if name not in wanted:
        return f"{name} is not asked for"
    there, here = tuple(found[name].shape), tuple(wanted[name].shape)
    return f"{name} is {_shape(there)} there and {_shape(here)} here" if there != here else ""


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _changed(
    then: Mapping[str, Any], now: Mapping[str, Any], chosen: Mapping[str, str], choices: Mapping[str, str]
) -> Iterator[str]:
    """Yield in what a checkpoint's config differs: options, and keys of the same option."""
    for group in GROUPS:
        old, new = (dict(_flat(cfg.get(group), group)) for cfg in (then, now))
        target = f"{group}._target_"
        if old.get(target) != new.get(target):
            named = [
                names.get(group) or str(keys.get(target)).rpartition(".")[2]
                for names, keys in ((chosen, old), (choices, new))
            ]
            yield f"{group}={named[0]}, not {named[1]}"
            continue
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) != new.get(key):
                yield f"{key}={_value(old.get(key))}, not {_value(new.get(key))}"


def _flat(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}")
    else:
        yield key, node


def _value(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
