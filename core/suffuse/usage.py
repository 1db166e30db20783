"""Usage: what the console scripts answer to --help."""

from __future__ import annotations

from collections.abc import Sequence

from suffuse import overrides
from suffuse.plugins import CONF, registry

__all__ = ["CONSOLIDATE", "EMA", "ENCODE", "EXPORT", "SAMPLE", "TRAIN", "TUNE", "groups", "modalities"]

TRAIN = """\
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

SAMPLE = """\
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

TUNE = """\
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

ENCODE = """\
usage: suffuse encode modality=NAME data=… codec=… [group=OPTION ...] [key=value ...] [processes=N] [shard=1024]

Encodes all items of a data set once, for the `train` with the same words and cache=true, which then reads only that:
states in shards that are read through memory, and what frozen text encoders say of the captions. Several processes
share the work, also those of torchrun or srun; a command that was interrupted goes on where it stopped.

examples
  suffuse encode modality=image data=image/folder data.path=/pets codec=latent codec.ckpt=outputs/image/ae processes=4
  train modality=image data=image/folder data.path=/pets codec=latent codec.ckpt=outputs/image/ae cache=true
"""

EMA = """\
usage: suffuse ema ckpt=RUN_DIR_OR_FILE std=WIDTH [out=FILE]

Writes a copy of a checkpoint whose averaged weights have another width, a share of the run, combined from the snapshots
that a run with ema=posthoc keeps. By default the file is checkpoints/ema-WIDTH.ckpt of the run.

examples
  train modality=NAME ema=posthoc name=x
  suffuse ema ckpt=outputs/NAME/x std=0.15
  sample ckpt=outputs/NAME/x/checkpoints/ema-0.15.ckpt
"""

CONSOLIDATE = """\
usage: suffuse consolidate ckpt=RUN_DIR_OR_CHECKPOINT [out=FILE]

Writes the checkpoint of a run with trainer=fsdp, a folder with one file per process, as one file, by default
checkpoints/consolidated.ckpt of the run. `sample` and `train ckpt=…` take either.

examples
  train modality=NAME trainer=fsdp name=x
  suffuse consolidate ckpt=outputs/NAME/x
"""

EXPORT = """\
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


def modalities() -> str:
    """Return a line per modality that is installed."""
    rows = registry().providers.values()
    return "\n".join(f"  {p.modality.name:<12} {p.modality.summary}  ({p.dist})" for p in rows) or "  (none installed)"


def groups(names: Sequence[str] | None = None) -> str:
    """Return a line per config group with its options: of all groups, or of `names`."""
    roots = [CONF, *(p.modality.conf for p in registry().providers.values())]
    found = overrides.groups(roots)
    rows = {name: sorted(found[name]) for name in sorted(names or found) if name in found and name != "modality"}
    return "\n".join(f"  {name:<12} {', '.join(options)}" for name, options in rows.items())
