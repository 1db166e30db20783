"""Console scripts: help and mistakes are answered here, before Hydra or torch is imported."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from suffuse import overrides
from suffuse.errors import CheckpointError, ConfigError, SuffuseError, suggest
from suffuse.modality import Command
from suffuse.plugins import CONF, registry

__all__ = ["main", "sample", "train"]

TRAIN_HELP = """\
usage: train modality=NAME [group=OPTION ...] [key=value ...] [--help] [--cfg job] [--multirun]

Trains a diffusion model, draws samples from it and measures them; prints where everything is.

modalities
{modalities}

groups
{groups}

keys
  name=x ckpt=auto         a fixed run directory outputs/<modality>/x, continued where it stopped
  steps=N seed=N num=N     optimizer steps, seed, samples drawn at the end
  every.preview=N          also every.log, every.validate, every.checkpoint (optimizer steps)

examples
  train modality={example}
  train modality={example} model=dit trainer=ddp devices=2 logger=wandb
  train modality={example} --cfg job             show the composed config and exit
  train pretrained=/models/sd15 data=image/folder data.path=/pets model.lora=8
  train -m modality={example} objective=edm,flow    one job per value
"""

SAMPLE_HELP = """\
usage: sample ckpt=RUN_DIR_OR_FILE|pretrained=FOLDER_OR_NAME
              [num=64] [seed=0] [out=DIR] [sampler=NAME] [sampler.steps=N]
              [grid=NAME] [guidance=SCALE] [condition.label=7] [trainer=NAME] [batch_size=64] [weights=raw]
              [init=FILE mask=PART|strength=SHARE] [interpolate=true [seed_to=N]] [preview.KEY=VALUE]

Draws samples from a checkpoint: one file each, overview.png and manifest.jsonl.
What is not said is taken from the checkpoint. Sample i has the seed `seed + i`.

groups
{groups}

editing, where the modality reads files
  init=FILE mask=PART        make a part of a file anew and keep the rest, as mask=2.0-3.5 in seconds
  init=FILE strength=0.5     vary a file: the share of the steps that are taken from it on
  interpolate=true           from the first condition (and seed) to the last, in num samples
  trust=true                 let a checkpoint of your own name code outside suffuse and the installed modalities
  share_seeds=true           several conditions from the same seeds: a grid, one column per condition

examples
  sample ckpt=outputs/image/x num=16 condition.label=[0,1,2]
  sample ckpt=outputs/image/x sampler=heun sampler.steps=30 guidance=2
  sample ckpt=outputs/image/x num=1000 trainer=ddp devices=2
  sample pretrained=/models/sd15 "condition.text=a (red:1.3) cat" "guidance.negative.text=blurry" height=512
"""


TUNE_HELP = """\
usage: suffuse tune ckpt=RUN_DIR_OR_FILE [sampler=NAME] [steps=N] [guidance=SCALE] [num=64] [tries=400]
                    [condition.label=7] [grid=NAME] [out=FILE]

Fits the time grid of a sampler to a trained model: `sample ckpt=… grid=tuned` with the same sampler and number of steps
then uses it. What is not said is taken from the checkpoint; the grid given is the one whose ends are kept.

groups
{groups}

examples
  suffuse tune ckpt=outputs/image/x steps=10
  suffuse tune ckpt=outputs/image/x sampler=unipc steps=8
  sample ckpt=outputs/image/x sampler=unipc sampler.steps=8 grid=tuned
"""

ENCODE_HELP = """\
usage: suffuse encode modality=NAME data=… codec=… [group=OPTION ...] [key=value ...] [processes=N] [shard=1024]

Encodes all items of a data set once, for the `train` with the same words and cache=true, which then reads only that:
states in shards that are read through memory, and what frozen text encoders say of the captions. Several processes
share the work, also those of torchrun or srun; a command that was interrupted goes on where it stopped.

examples
  suffuse encode modality=image data=image/folder data.path=/pets codec=latent codec.ckpt=outputs/image/ae processes=4
  train modality=image data=image/folder data.path=/pets codec=latent codec.ckpt=outputs/image/ae cache=true
"""

EMA_HELP = """\
usage: suffuse ema ckpt=RUN_DIR_OR_FILE std=WIDTH [out=FILE]

Writes a copy of a checkpoint whose averaged weights have another width, a share of the run, combined from the snapshots
that a run with ema=posthoc keeps. By default the file is checkpoints/ema-WIDTH.ckpt of the run.

examples
  train modality=NAME ema=posthoc name=x
  suffuse ema ckpt=outputs/NAME/x std=0.15
  sample ckpt=outputs/NAME/x/checkpoints/ema-0.15.ckpt
"""

CONSOLIDATE_HELP = """\
usage: suffuse consolidate ckpt=RUN_DIR_OR_CHECKPOINT [out=FILE]

Writes the checkpoint of a run with trainer=fsdp, a folder with one file per process, as one file, by default
checkpoints/consolidated.ckpt of the run. `sample` and `train ckpt=…` take either.

examples
  train modality=NAME trainer=fsdp name=x
  suffuse consolidate ckpt=outputs/NAME/x
"""

EXPORT_HELP = """\
usage: suffuse export ckpt=RUN_DIR_OR_FILE to=FORMAT [out=DIR] [weights=ema|raw]

Writes a run's weights for others. By default the folder is export/FORMAT of the run.

formats
  diffusers      the folder that a run with pretrained= was started from, with the denoiser that was trained
  lora           the adapters of a run with model.lora=RANK alone, for load_lora_weights of diffusers
  safetensors    model.safetensors and config.json of any run

examples
  suffuse export ckpt=outputs/image/x to=diffusers out=/models/mine
  sample pretrained=/models/mine "condition.text=a cat"
"""


def _modalities() -> str:
    rows = registry().providers.values()
    return "\n".join(f"  {p.modality.name:<12} {p.modality.summary}  ({p.dist})" for p in rows) or "  (none installed)"


def _groups(names: Sequence[str] | None = None) -> str:
    roots = [CONF, *(p.modality.conf for p in registry().providers.values())]
    found = overrides.groups(roots)
    rows = {name: sorted(found[name]) for name in sorted(names or found) if name in found and name != "modality"}
    return "\n".join(f"  {name:<12} {', '.join(options)}" for name, options in rows.items())


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
        print(TRAIN_HELP.format(modalities=_modalities(), groups=_groups(), example=example), end="")
        return
    _warn_of_failures()
    words = _published(overrides.translate(_trusted(argv)))
    if not words:
        raise ConfigError(f"say which modality: train modality=NAME (installed: {', '.join(registry().providers)})")
    _check_modalities(words)
    overrides.check(words, "train")
    sys.argv[1:] = words

    from suffuse import app

    app.run_train(words)


def _sample(argv: list[str]) -> None:
    _on_checkpoint(argv, "sample", SAMPLE_HELP, "sample")


def _tune(argv: list[str]) -> None:
    words = [f"sampler.{word}" if overrides.split(word)[1] == "steps" else word for word in argv]
    _on_checkpoint(words, "tune", TUNE_HELP, "suffuse tune")


def _on_checkpoint(argv: list[str], job: str, text: str, command: str) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(text.format(groups=_groups(overrides.SAMPLE_GROUPS)), end="")
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
    if not argv or {"-h", "--help"} & set(argv):
        print(ENCODE_HELP, end="")
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
    if not argv or {"-h", "--help"} & set(argv):
        print(EMA_HELP, end="")
        return
    given: dict[str, str] = {}
    for word in argv:
        _, key, value = overrides.split(word)
        if "=" not in word or key not in ("ckpt", "std", "out"):
            raise ConfigError(f"unknown key {key!r}{suggest(key, ('ckpt', 'std', 'out'), listing='keys')}")
        given[key] = value
    for key, example in (("ckpt", "RUN_DIR_OR_FILE"), ("std", "0.1")):
        if not given.get(key):
            raise ConfigError(f"{key} is not set; give it as {key}={example}")
    try:
        std = float(given["std"])
    except ValueError:
        raise ConfigError(f"std={given['std']} is not a number; give a share of the run, as std=0.1") from None
    checkpoint = find_checkpoint(given["ckpt"])

    from suffuse.posthoc import reconstruct

    print(reconstruct(checkpoint, std, Path(given["out"]).expanduser() if given.get("out") else None))


def _consolidate(argv: list[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(CONSOLIDATE_HELP, end="")
        return
    given: dict[str, str] = {}
    for word in argv:
        _, key, value = overrides.split(word)
        if "=" not in word or key not in ("ckpt", "out"):
            raise ConfigError(f"unknown key {key!r}{suggest(key, ('ckpt', 'out'), listing='keys')}")
        given[key] = value
    if not given.get("ckpt"):
        raise ConfigError("ckpt is not set; give it as ckpt=RUN_DIR_OR_CHECKPOINT")
    checkpoint = find_checkpoint(given["ckpt"])

    from suffuse.sharded import consolidate

    print(consolidate(checkpoint, Path(given["out"]).expanduser() if given.get("out") else None))


def _export(argv: list[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(EXPORT_HELP, end="")
        return
    keys = ("ckpt", "to", "out", "weights")
    given: dict[str, str] = {}
    for word in argv:
        _, key, value = overrides.split(word)
        if "=" not in word or key not in keys:
            raise ConfigError(f"unknown key {key!r}{suggest(key, keys, listing='keys')}")
        given[key] = value
    for key, example in (("ckpt", "RUN_DIR_OR_FILE"), ("to", "diffusers")):
        if not given.get(key):
            raise ConfigError(f"{key} is not set; give it as {key}={example}")
    checkpoint = find_checkpoint(given["ckpt"])

    from suffuse.pretrained.export import export

    out = Path(given["out"]).expanduser() if given.get("out") else None
    print(export(checkpoint, given["to"], out, given.get("weights", "ema")))


def find_checkpoint(where: str) -> Path:
    """Return the checkpoint file of a run directory, or the file itself.

    Raises:
        CheckpointError: When there is none; names the nearest existing run.
    """
    path = Path(where).expanduser()
    if _is_checkpoint(path):
        return path
    for candidate in (path / "checkpoints" / "last.ckpt", path / "last.ckpt"):
        if _is_checkpoint(candidate):
            return candidate
    if path.is_dir():
        raise CheckpointError(f"ckpt={where}: no checkpoint there (looked for checkpoints/last.ckpt)")
    runs = [str(last.parents[1]) for last in Path("outputs").glob("*/*/checkpoints/last.ckpt")]
    raise CheckpointError(f"ckpt={where}: no such run directory or file{suggest(where, runs, listing='runs here')}")


def _is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint: a file, or the folder of a sharded one."""
    return path.is_file() or (path / "tree.pt").is_file()


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
        print(_modalities())
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
