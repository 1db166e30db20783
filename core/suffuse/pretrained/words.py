"""Words: what ``pretrained=FOLDER`` means on a command line. Imports no torch.

It chooses the options ``diffusers`` of the groups that a published model settles, and the sampler, guidance and
objective that its folder names; what is said besides on the command line stays. `settle` fills a composed config with
what only the folder and the modality know together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suffuse.errors import ConfigError, suggest
from suffuse.overrides import own, split
from suffuse.plugins import registry
from suffuse.pretrained.families import Family
from suffuse.pretrained.folder import opened, resolve
from suffuse.pretrained.solvers import objective_of, solver

__all__ = ["for_training", "given", "moved", "settle", "sized"]

GROUPS = ("model", "conditioner", "codec", "schedule", "process", "grid", "parameterization")
"""Groups with an option ``diffusers``."""


def given(words: Sequence[str]) -> str | None:
    """Return what ``pretrained=`` names, or None."""
    found = [split(word)[2] for word in words if split(word)[1] == "pretrained"]
    value = found[-1].strip("'\"") if found else ""
    return value if value not in ("", "null") else None


def _folder(words: Sequence[str]) -> Path:
    name = given(words)
    assert name is not None  # what the callers asked first
    download = any(split(word)[1] == "download" and split(word)[2].lower() == "true" for word in words)
    path = resolve(name, download)
    opened(str(path)).check()
    return path


def for_training(words: Sequence[str]) -> list[str]:
    """Return the words of a training job with what ``pretrained=`` means spelt out; as they are without it."""
    if given(words) is None:
        return list(words)
    path = _folder(words)
    folder = opened(str(path))
    family, config = folder.family, folder.config("scheduler")
    said = {split(word)[1] for word in words}
    found = [word for word in words if split(word)[1] != "pretrained"]
    found.append(f"pretrained={_quoted(path)}")
    if "modality" not in said:
        found.insert(0, f"modality={_modality(family)}")
    found += [f"{group}=diffusers" for group in GROUPS if group not in said]
    if "objective" not in said:
        found.append(f"objective={objective_of(config)}")
    if "sampler" not in said:
        more = [*solver(config), f"sampler.steps={family.steps}"]
        found += [word for word in more if split(word)[1] not in said]
    if "guidance" not in said:
        found += ["guidance=none"] if family.scale == 1 else ["guidance=cfg"]
        if family.scale != 1 and "guidance.scale" not in said:
            found.append(f"guidance.scale={family.scale}")
    if "optimizer" not in said and "optimizer.lr" not in said:
        adapters = any(split(word)[1] == "model.lora" and split(word)[2] != "0" for word in words)
        found.append(f"optimizer.lr={1e-4 if adapters else 1e-5}")
    return found


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _modality(family: Family) -> str:
    if family.modality not in registry().providers:
        raise ConfigError(
            f"pretrained: {family.name} draws {family.modality}; install the package of modality={family.modality}, "
            f"or say another modality="
        )
    return family.modality


def settle(cfg: Any) -> None:
    """Fill in a composed config what a published model and the modality settle together.

    Raises:
        ConfigError: When the modality has no codec of the numbers that the model's autoencoder takes.
    """
    from omegaconf import OmegaConf

    path = cfg.get("pretrained")
    if not path:
        return
    family = opened(str(path)).family
    modality = str(cfg.modality.name)
    codec = cfg.get("codec") or {}
    if str(codec.get("_target_", "")).startswith("suffuse.pretrained.") and codec.get("inner") is None:
        cfg.codec.inner = OmegaConf.create(_inner(modality, family))
    asks = dict(cfg.modality.get("asks") or {})
    cfg.modality.asks = OmegaConf.create(asks | dict(family.asks))


def _inner(modality: str, family: Family) -> dict[str, Any]:
    """Return the config of the modality's codec of plain numbers."""
    import yaml

    option = own("codec", family.signal, modality)
    for provider in registry().providers.values():
        file = provider.modality.conf / "codec" / f"{option}.yaml"
        if file.is_file() and "/" in option:
            found = yaml.safe_load(file.read_text()) or {}
            return {k: v for k, v in found.items() if k != "defaults"} | dict(family.how)
    raise ConfigError(
        f"pretrained: {family.name} draws {family.modality}, but modality={modality} has no codec {family.signal}"
        f"{suggest(family.modality, registry().providers)}"
    )


def sized(cfg: Any) -> None:
    """Tell the grid of a published model which size was asked for."""
    if str(cfg.grid.get("_target_", "")).endswith("pretrained.spacing.Spacing"):
        for side in ("height", "width"):
            if cfg.ask.get(side) is not None:
                cfg.grid[side] = cfg.ask[side]


def moved(config: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the config of a checkpoint whose folder is now where ``pretrained=`` says."""
    old, new = str(config.get("pretrained")), str(_folder(words))
    if not config.get("pretrained"):
        raise ConfigError("pretrained= beside ckpt= is for runs that were started from a published model; this was not")

    def change(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: change(value) for key, value in node.items()}
        return new if node == old else node

    found: dict[str, Any] = change(config)
    return found
