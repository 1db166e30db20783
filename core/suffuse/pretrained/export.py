"""Export: a run's weights in the formats of others.

``to=diffusers`` writes a folder that diffusers loads: the one that the run was started from with the denoiser that was
trained, adapters added to its weights. ``to=lora`` writes the adapters alone, as diffusers' ``load_lora_weights`` reads
them. ``to=safetensors`` writes the weights of any run, its own ones too, with its config beside. Everything is written
under a temporary name and then renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from suffuse.checkpoint import is_autoencoder, read
from suffuse.errors import CheckpointError, ConfigError, suggest
from suffuse.model import Model
from suffuse.pretrained import lora
from suffuse.pretrained.network import Network

__all__ = ["FORMATS", "export"]

FORMATS = ("diffusers", "lora", "safetensors")


def export(checkpoint: Path, to: str, out: Path | None = None, weights: str = "ema") -> Path:
    """Write a checkpoint in another format; return where.

    Arguments:
        checkpoint: The file.
        to: ``diffusers``, ``lora`` or ``safetensors``.
        out: The folder; by default ``export/<to>`` of the run.
        weights: ``ema`` or ``raw``.

    Raises:
        ConfigError: For an unknown format, or a run that has no such thing.
        CheckpointError: When `out` is there already.
    """
    if to not in FORMATS:
        raise ConfigError(f"to={to}: no such format{suggest(to, FORMATS, listing='formats')}")
    saved = read(checkpoint)
    base = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    target = base / "export" / to if out is None else out
    if target.exists():
        raise CheckpointError(f"out={target} is there already; remove it, or choose another with out=")
    write: Mapping[str, Callable[[dict[str, Any], str, Path], None]] = {
        "diffusers": _diffusers, "lora": _lora, "safetensors": _safetensors
    }  # fmt: skip
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        write[to](saved, weights, temporary)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _network(saved: Mapping[str, Any], weights: str) -> Network:
    """Return the network of a run that was started from a published model."""
    if is_autoencoder(saved):
        raise ConfigError("to: an autoencoder of our own has no such format; use to=safetensors")
    if not str(saved["suffuse"]["config"]["model"].get("_target_", "")).endswith("pretrained.network.Network"):
        raise ConfigError("to: this run was not started with pretrained=, so it has no such format; use to=safetensors")
    network = Model.load(saved, weights).denoiser.network
    assert isinstance(network, Network)  # as its config says
    return network


def _diffusers(saved: dict[str, Any], weights: str, out: Path) -> None:
    network = _network(saved, weights)
    folder, part = network.folder, network.folder.family.network

    def left_out(where: str, names: list[str]) -> list[str]:
        # Pickles are not handed on; the denoiser's old weights, and single files of them beside the parts, not wanted.
        here = Path(where).resolve() in (folder.of(part).resolve(), folder.path.resolve())
        old = (".safetensors", ".bin", ".index.json")
        return [
            n for n in names if n.startswith(".") or n.endswith((".bin", ".ckpt", ".pt")) or (here and n.endswith(old))
        ]

    shutil.copytree(folder.path, out, ignore=left_out, dirs_exist_ok=True)
    for other in folder.index:
        source = folder.path / other
        if other != part and source.is_dir() and any(source.glob("*.bin")) and not any(source.glob("*.safetensors")):
            raise ConfigError(f"{source}: its weights are a pickle, which is not handed on; convert it to safetensors")
    if network.lora:
        lora.merged(network.inner)
    network.inner.save_pretrained(out if folder.flat else out / part, safe_serialization=True)


def _lora(saved: dict[str, Any], weights: str, out: Path) -> None:
    network = _network(saved, weights)
    if not network.lora:
        raise ConfigError("to=lora: this run trained all weights (model.lora=0); use to=diffusers")
    import diffusers
    from diffusers.utils import state_dict_utils

    convert: Any = state_dict_utils.convert_state_dict_to_diffusers
    found = convert(lora.weights(network.inner))
    found = {name: value.detach().contiguous() for name, value in found.items()}
    pipeline: Any = getattr(diffusers, str(network.folder.index["_class_name"]), None)
    if not hasattr(pipeline, "save_lora_weights"):
        raise ConfigError(f"to=lora: diffusers loads no adapters of {network.folder.family.name}; use to=diffusers")
    name = f"{network.folder.family.network}_lora_layers"
    pipeline.save_lora_weights(str(out), safe_serialization=True, **{name: found})


def _safetensors(saved: dict[str, Any], weights: str, out: Path) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ConfigError("to=safetensors needs safetensors: pip install 'suffuse[pretrained]'") from error
    if weights not in ("ema", "raw"):
        raise ConfigError(f"weights={weights} is neither 'ema' nor 'raw'")
    state = saved["state_dict"] if weights == "ema" else saved.get("current_model_state", saved["state_dict"])
    # Copies, since two names of one tensor are refused by the format.
    save_file({k.removeprefix("model."): v.clone().contiguous() for k, v in state.items()}, out / "model.safetensors")
    record = {key: saved["suffuse"][key] for key in ("config", "facts", "plugin", "step") if key in saved["suffuse"]}
    (out / "config.json").write_text(json.dumps(record | {"weights": weights}, indent=2) + "\n")
