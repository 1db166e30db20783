"""Record: the config of a job as plain values, and what a checkpoint and a manifest say of where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from suffuse.overrides import check_limits
from suffuse.plugins import registry
from suffuse.training.trainer import quiet

__all__ = ["choices", "names_of", "plain_config", "provider", "resolved", "version"]


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the config of a job as plain values, checked; raises `ConfigError` for a value out of its range."""
    quiet()
    plain = resolved(cfg)
    check_limits(plain)
    return plain


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config of a job as plain values, without Hydra's own part."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "hydra"}


def provider(modality: str) -> dict[str, str]:
    """Return which package provides a modality, for the record of a checkpoint."""
    found = registry().providers.get(modality)
    return {"modality": modality, "dist": found.dist if found else "unknown"}


def choices() -> dict[str, str]:
    """Return the option chosen in each config group, where Hydra composed the job."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    chosen = HydraConfig.get().runtime.choices
    return {str(group): str(option) for group, option in chosen.items() if not str(group).startswith("hydra")}


def names_of(cfg: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, str]:
    """Return what the manifest calls the sampler and the grid: the option's name, or the class without one."""
    return {key: choices.get(key) or cfg[key]["_target_"].rpartition(".")[2] for key in ("sampler", "grid")}


def version() -> str:
    """Return the version of suffuse."""
    from suffuse import __version__

    return __version__
