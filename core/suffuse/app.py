"""The Hydra applications behind ``train`` and ``sample``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from suffuse.cli import fail
from suffuse.disk import refusal
from suffuse.errors import ConfigError, SuffuseError, suggest
from suffuse.overrides import SAMPLE_GROUPS, asks, check_limits, modality_keys, option_keys, split
from suffuse.plugins import CONF, registry

__all__ = ["compose_sample", "compose_train", "run_sample", "run_train"]


class ModalitySearchPath(SearchPathPlugin):
    """Lets Hydra see the config trees of installed modality packages."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append each provider's tree after the core's."""
        for provider in registry().providers.values():
            search_path.append(provider=provider.dist.split()[0], path=f"file://{provider.modality.conf}")


# Registered here rather than shipped in hydra_plugins, so other Hydra apps in the environment do not see it.
Plugins.instance().register(ModalitySearchPath)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _train_app(cfg: DictConfig) -> float | None:
    from suffuse import jobs

    try:
        return jobs.train(_settled(cfg, HydraConfig.get().overrides.task))
    except SuffuseError as error:
        fail("train", error)


def run_train(words: Sequence[str]) -> None:
    """Compose the words of a command line and train.

    Raises:
        ConfigError: When they do not compose, or nothing can be written where the run would be; only for a single job,
            whose errors Hydra would spread over many lines.
    """
    if not any(word.startswith("-") for word in words):
        cfg = compose_train(words)
        if not any(split(word)[1].startswith("hydra.run") for word in words):
            _check_writable(Path("outputs") / str(cfg.modality.name) / str(cfg.name))
    _train_app()


def _check_writable(folder: Path) -> None:
    if found := refusal(folder.absolute()):
        where, why = found
        raise ConfigError(f"cannot write in {where} ({why}), where {folder.parent} would be; start in another folder")


def compose_train(words: Sequence[str]) -> DictConfig:
    """Return the config of one training job; raises `ConfigError` with the reason on one line."""
    cfg = _settled(_compose("train", list(words)), words)
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{missing[0]} is not set; give it as {missing[0]}=VALUE")
    if cfg.ckpt == "auto" and "${now" in str(OmegaConf.to_container(cfg, resolve=False)["name"]):  # type: ignore[call-overload,index]
        raise ConfigError("ckpt=auto needs name=, which says what run to continue")
    return cfg


def compose_sample(
    words: Sequence[str], saved: Mapping[str, Any], choices: Mapping[str, str] | None = None, job: str = "sample"
) -> DictConfig:
    """Return the config of a job on a checkpoint: what the words say, else what the checkpoint holds.

    Arguments:
        words: Overrides of the command line.
        saved: The config in the checkpoint.
        choices: The options that config was composed from, by group.
        job: ``sample`` or ``tune``.

    Raises:
        ConfigError: When a key or an option does not exist.
    """
    chosen = [word for word in words if split(word)[1] in SAMPLE_GROUPS]
    dotted = [word for word in words if "." in split(word)[1] and split(word)[1].split(".")[0] in SAMPLE_GROUPS]
    plain = [word for word in words if word not in chosen and word not in dotted and not word.startswith("-")]
    modality = saved.get("modality") or {}
    asked = [word for word in plain if split(word)[1] in asks()]
    plain = [word for word in plain if word not in asked]
    for word in asked:
        if split(word)[1] not in (modality.get("asks") or {}):
            raise ConfigError(f"{word}: a model of modality={modality.get('name')} takes no {split(word)[1]}")
    # Which conditions exist is the model's to say, so any key is let through to it.
    plain = [f"++{_literal(word)}" if word.startswith("condition.") else word for word in plain]
    selected = [word if split(word)[1] == "trainer" else f"+{word}" for word in chosen]
    cfg = _compose(job, plain + selected)
    OmegaConf.set_struct(cfg, False)
    for group in SAMPLE_GROUPS:
        if group not in cfg:
            cfg[group] = saved[group]
    for override in _parsed(asked):
        cfg.ask[override.key_or_group] = override.value()
    if saved.get("pretrained"):
        from suffuse.pretrained.words import sized

        sized(cfg)
    cfg.choices = dict(choices or {}) | {split(word)[1]: split(word)[2] for word in chosen}
    for override in _parsed(dotted):
        key = override.key_or_group
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(cfg, parent)
        free = override.is_add() or parent == "guidance.negative"  # whose keys are the model's conditions
        if not isinstance(node, DictConfig) or (leaf not in list(node) and not free):
            names = [f"{parent}.{name!s}" for name in node] if isinstance(node, DictConfig) else []
            raise ConfigError(f"unknown key {key!r}{suggest(key, names, listing='keys')}")
        OmegaConf.update(cfg, key, override.value())
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{missing[0]} is not set; give it as {missing[0]}=VALUE")
    check_limits(_plain(cfg))
    return cfg


def run_sample(words: Sequence[str], checkpoint: Path, job: str = "sample", start: Sequence[str] = ()) -> None:
    """Do the job ``sample`` or ``tune`` on a checkpoint file as the words say.

    Arguments:
        words: Overrides of the command line.
        checkpoint: The file; of a published model its folder.
        job: ``sample`` or ``tune``.
        start: Words that `train` would be given for a published model, in the place of a checkpoint.
    """
    from suffuse import jobs
    from suffuse.checkpoint import check_installed, read
    from suffuse.trust import check

    if start:
        from suffuse.pretrained.start import checkpoint as published

        config = _plain(compose_train(start))
        choices = {key: value for _, key, value in map(split, start) if "." not in key}
        saved = published(config, choices, jobs.provider(str(config["modality"]["name"])))
    else:
        saved = read(checkpoint)
        check_installed(saved, checkpoint)  # else its own package would be named as one that is not to be trusted
        check(saved["suffuse"]["config"], checkpoint)
        if any(split(word)[1] == "pretrained" for word in words):
            from suffuse.pretrained.words import moved

            saved["suffuse"]["config"] = moved(saved["suffuse"]["config"], words)
    cfg = compose_sample(words, saved["suffuse"]["config"], saved["suffuse"]["choices"], job)
    if "--cfg" in words:
        print(OmegaConf.to_yaml(cfg), end="")
        return
    {"sample": jobs.sample, "tune": jobs.tune}[job](cfg, saved, checkpoint)


def _settled(cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """Return the config without what a modality says of another option of a group than the one that was chosen.

    A modality that sets ``grid.sigma_min`` means its own grid; ``grid=trailing`` has no such key. What is said on the
    command line stays, for the option to refuse.
    """
    said = {split(word)[1] for word in words}
    OmegaConf.set_struct(cfg, False)
    for group, names in modality_keys(str(cfg.modality.name)).items():
        node = cfg.get(group)
        known = option_keys(group, str(node.get("_target_", ""))) if isinstance(node, DictConfig) else set()
        for name in names if known else ():
            if name not in known and name in node and not any(word.startswith(f"{group}.{name}") for word in said):
                del node[name]
    if cfg.get("pretrained"):
        from suffuse.pretrained.words import settle

        settle(cfg)
    OmegaConf.set_struct(cfg, True)
    return cfg


def _literal(word: str) -> str:
    """Return a word whose value is taken as it is where it is no value of Hydra's: a SMILES, a sentence with commas."""
    key, _, value = word.partition("=")
    try:
        if not OverridesParser.create().parse_override(word).is_sweep_override():
            return word
    except HydraException:
        pass
    text = value.replace("'", "\\'")
    return f"{key}='{text}'"


def _compose(name: str, words: list[str]) -> DictConfig:
    _parsed(words)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return compose(name, overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if error.__cause__ is not None and str(error.__cause__) not in str(error):
            lines += [line.strip() for line in str(error.__cause__).splitlines()[:1]]
        raise ConfigError(" ".join(lines[:3])) from error


def _parsed(words: Sequence[str]) -> list[Override]:
    found = []
    for word in words:
        try:
            found.append(OverridesParser.create().parse_override(word))
        except HydraException as error:
            key, equals, value = word.partition("=")
            remedy = f""": put quotes around the value: "{key}='{value}'\"""" if equals else "; write key=value"
            raise ConfigError(f"cannot read {word!r}{remedy}") from error
    return found


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
