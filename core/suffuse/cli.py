"""Console scripts: help and mistakes are answered here, before Hydra or torch is imported."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from suffuse import overrides, signals, usage
from suffuse.errors import ConfigError, SuffuseError, suggest
from suffuse.finding import find_checkpoint
from suffuse.modality import Command
from suffuse.plugins import registry

__all__ = ["find_checkpoint", "main", "sample", "train"]


def _warn_of_failures() -> None:
    for failure in registry().failures:
        print(f"warning: {failure}; run `suffuse plugins` for the traceback", file=sys.stderr)


def _check_modalities(words: Sequence[str]) -> None:
    known = registry().providers
    values = [overrides.split(word)[2] for word in words if overrides.split(word)[1] == "modality"]
    for name in (name for value in values for name in value.split(",")):
        if name in known or not name.isidentifier():  # choice(...), glob(...): Hydra's to expand
            continue
        for failure in registry().failures:
            if failure.name == name:
                raise ConfigError(f"modality={name} is installed but broken: {failure}")
        raise ConfigError(f"modality={name}: no such modality{suggest(name, known, listing='installed')}")


def _guard(task: str, run: Callable[[list[str]], None], argv: list[str]) -> None:
    """Run and turn a `SuffuseError` into one line and exit status 1."""
    try:
        run(argv)
    except SuffuseError as error:
        fail(task, error)


def fail(task: str, error: SuffuseError) -> NoReturn:
    """Print the error on one line and exit with status 1; other ranks than the first say which they are."""
    rank = os.environ.get("LOCAL_RANK", "0")
    where = "" if rank == "0" else f"[rank {rank}] "
    print(f"{where}{task}: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(1)


def _train(argv: list[str]) -> None:
    if not any("=" in word for word in argv) and {"-h", "--help"} & set(argv):
        example = next(iter(registry().providers), "NAME")
        print(usage.TRAIN.format(modalities=usage.modalities(), groups=usage.groups(), example=example), end="")
        return
    _warn_of_failures()
    words = _published(overrides.translate(_trusted(argv)))
    if not words:
        raise ConfigError(f"say which modality: train modality=NAME (installed: {', '.join(registry().providers)})")
    _check_modalities(words)
    overrides.check(words, "train")
    sys.argv[1:] = words
    signals.listen()

    from suffuse import app

    app.run_train(words)


def _sample(argv: list[str]) -> None:
    _on_checkpoint(argv, "sample", usage.SAMPLE, "sample")


def _tune(argv: list[str]) -> None:
    words = [f"sampler.{word}" if overrides.split(word)[1] == "steps" else word for word in argv]
    _on_checkpoint(words, "tune", usage.TUNE, "suffuse tune")


def _on_checkpoint(argv: list[str], job: str, text: str, command: str) -> None:
    if _asks_help(argv):
        print(text.format(groups=usage.groups(overrides.SAMPLE_GROUPS)), end="")
        return
    _warn_of_failures()
    words = overrides.translate(_trusted(argv))
    overrides.check(words, job)
    given = {overrides.split(word)[1]: overrides.split(word)[2] for word in words}
    start: list[str] = []
    if job == "sample" and "ckpt" not in given and given.get("pretrained"):
        folder = ("pretrained", "download")
        start = _published([word for word in words if overrides.split(word)[1] in folder])
        checkpoint = Path(dict(overrides.split(word)[1:] for word in start)["pretrained"].strip("'"))
        words = [word for word in words if overrides.split(word)[1] not in folder]
        words += [f"{key}=4" for key in ("num", "batch_size") if key not in given] + ["ckpt=published"]
    elif "ckpt" not in given:
        raise ConfigError(f"say which model: {command} ckpt=RUN_DIR_OR_FILE")
    else:
        checkpoint = find_checkpoint(given["ckpt"])

    from suffuse import app

    app.run_sample(words, checkpoint, job, start)


def _trusted(words: Sequence[str]) -> list[str]:
    """Return the words without ``trust=…``, which is said to all processes of the job; see `suffuse.trust`."""
    said = [word.partition("=")[2] for word in words if word.startswith("trust=")]
    if said and said[-1] not in ("true", "false"):
        raise ConfigError(f"trust={said[-1]} is neither true nor false")
    if said:
        os.environ["SUFFUSE_TRUST"] = str(int(said[-1] == "true"))
    return [word for word in words if not word.startswith("trust=")]


def _published(words: list[str]) -> list[str]:
    """Return the words of a training job with ``pretrained=`` spelt out; as they are without it."""
    if not any(overrides.split(word)[1] == "pretrained" for word in words):
        return words
    from suffuse.pretrained.words import for_training

    return for_training(words)


def _encode(argv: list[str]) -> None:
    if _asks_help(argv):
        print(usage.ENCODE, end="")
        return
    _warn_of_failures()
    own, words = {"processes": "1", "shard": "1024"}, []
    for word in overrides.translate(argv):
        _, key, value = overrides.split(word)
        if key not in own:
            words.append(word)
        elif not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{key}={value} must be a whole number of at least 1")
        else:
            own[key] = value
    _check_modalities(words)
    overrides.check(words, "train")

    from suffuse import encode

    encode.launch(words, int(own["processes"]), int(own["shard"]))


def _ema(argv: list[str]) -> None:
    if _asks_help(argv):
        print(usage.EMA, end="")
        return
    given = _given(argv, {"ckpt": "RUN_DIR_OR_FILE", "std": "0.1"}, "out")
    try:
        std = float(given["std"])
    except ValueError:
        raise ConfigError(f"std={given['std']} is not a number; give a share of the run, as std=0.1") from None
    checkpoint = find_checkpoint(given["ckpt"])

    from suffuse.posthoc import reconstruct

    print(reconstruct(checkpoint, std, _out(given)))


def _consolidate(argv: list[str]) -> None:
    if _asks_help(argv):
        print(usage.CONSOLIDATE, end="")
        return
    given = _given(argv, {"ckpt": "RUN_DIR_OR_CHECKPOINT"}, "out")
    checkpoint = find_checkpoint(given["ckpt"])

    from suffuse.sharded import consolidate

    print(consolidate(checkpoint, _out(given)))


def _export(argv: list[str]) -> None:
    if _asks_help(argv):
        print(usage.EXPORT, end="")
        return
    given = _given(argv, {"ckpt": "RUN_DIR_OR_FILE", "to": "diffusers"}, "out", "weights")
    checkpoint = find_checkpoint(given["ckpt"])

    from suffuse.pretrained.export import export

    print(export(checkpoint, given["to"], _out(given), given.get("weights", "ema")))


def _asks_help(argv: Sequence[str]) -> bool:
    """Return whether a command has no words, or ``--help`` among them."""
    return not argv or bool({"-h", "--help"} & set(argv))


def _given(argv: Sequence[str], needed: Mapping[str, str], *others: str) -> dict[str, str]:
    """Return the values of the words of a small command: of each key of `needed`, whose values are examples, and more.

    Raises:
        ConfigError: For another key, or without one that is needed.
    """
    keys, given = (*needed, *others), dict[str, str]()
    for word in argv:
        _, key, value = overrides.split(word)
        if "=" not in word or key not in keys:
            raise ConfigError(f"unknown key {key!r}{suggest(key, keys, listing='keys')}")
        given[key] = value
    for key, example in needed.items():
        if not given.get(key):
            raise ConfigError(f"{key} is not set; give it as {key}={example}")
    return given


def _out(given: Mapping[str, str]) -> Path | None:
    return Path(given["out"]).expanduser() if given.get("out") else None


def train() -> None:
    """Entry point of ``train``."""
    _guard("train", _train, sys.argv[1:])


def sample() -> None:
    """Entry point of ``sample``."""
    _guard("sample", _sample, sys.argv[1:])


def _plugins(as_json: bool) -> int:
    found = registry()
    if as_json:
        rows = [
            {"name": p.modality.name, "summary": p.modality.summary, "dist": p.dist, "conf": str(p.modality.conf)}
            for p in found.providers.values()
        ]
        print(json.dumps({"modalities": rows, "failures": [str(f) for f in found.failures]}, indent=2))
    else:
        print(usage.modalities())
        for failure in found.failures:
            print(f"\n{failure}", file=sys.stderr)
            traceback.print_exception(failure.error)
    return int(bool(found.failures))


def main() -> None:
    """Entry point of ``suffuse``: train and sample, look at the installation or a checkpoint, start a plugin."""
    tasks = {"train": _train, "sample": _sample, "tune": _tune, "encode": _encode, "ema": _ema, "export": _export}
    tasks["consolidate"] = _consolidate
    if "LOCAL_RANK" in os.environ and os.environ.get("SUFFUSE_TASK") and sys.argv[1:2] != ["train"]:
        # A further rank, which Lightning starts with the words that were left of the first one's command.
        sys.argv.insert(1, os.environ["SUFFUSE_TASK"])
    if len(sys.argv) > 1 and sys.argv[1] in tasks:
        task = os.environ["SUFFUSE_TASK"] = sys.argv.pop(1)
        _guard(task, tasks[task], sys.argv[1:])
        return
    if len(sys.argv) > 1 and (command := registry().commands.get(sys.argv[1])):
        sys.argv.pop(1)
        _guard(f"suffuse {command.name}", functools.partial(_run, command), sys.argv[1:])
        return
    parser = argparse.ArgumentParser(prog="suffuse")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train a model (the same as the command `train`)")
    commands.add_parser("sample", help="draw samples from a checkpoint (the same as `sample`)")
    commands.add_parser("tune", help="fit a sampler's time grid to a trained model")
    commands.add_parser("encode", help="encode all items once, before a run reads them")
    commands.add_parser("ema", help="choose the width of the averaged weights after training")
    commands.add_parser("consolidate", help="make one file of a checkpoint that several processes wrote")
    commands.add_parser("export", help="write a run's weights as a folder of diffusers, or as safetensors")
    plugins = commands.add_parser("plugins", help="list modality packages; fails if one is broken")
    plugins.add_argument("--json", action="store_true", help="print one JSON object")
    new = commands.add_parser("new", help="write the skeleton of a modality package")
    new.add_argument("name", help="lower_snake_case name of the modality")
    new.add_argument("--in", dest="parent", type=Path, default=Path(), help="directory to write it in")
    info = commands.add_parser("info", help="say what a checkpoint is")
    info.add_argument("ckpt", help="a run directory or a checkpoint file")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    for command in registry().commands.values():
        commands.add_parser(command.name, help=command.summary)
    args = parser.parse_args()
    try:
        sys.exit(_command(args))
    except SuffuseError as error:
        fail("suffuse", error)


def _run(command: Command, argv: list[str]) -> None:
    """Run a package's own command."""
    module, _, name = command.run.partition(":")
    getattr(importlib.import_module(module), name)(argv)


def _command(args: argparse.Namespace) -> int:
    if args.command == "plugins":
        return _plugins(args.json)
    if args.command == "new":
        from suffuse.scaffold import write

        target = write(args.name, args.parent)
        print(f"wrote {target}; next: pip install -e {target} && train modality={args.name}")
        return 0
    checkpoint = find_checkpoint(args.ckpt)
    from suffuse.info import show

    print(show(checkpoint, as_json=args.json))
    return 0
