"""Start: a published model as if it were a checkpoint, so that `sample` treats the two alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suffuse.model import Facts
from suffuse.pretrained.folder import Folder, opened

__all__ = ["checkpoint", "facts_of"]


def facts_of(folder: Folder) -> Facts:
    """Return what data would have decided about a model."""
    about: dict[str, Any] = {"text": True} if folder.family.texts else {}
    if folder.family.modality == "audio":
        vae = folder.config("vae")
        about |= {
            "rate": int(vae.get("sampling_rate", 44100)), "channels": int(vae.get("audio_channels", 2)),
            "samples": folder.size[0] * folder.factor,
        }  # fmt: skip
    return Facts((folder.latent, *folder.size), (), (), 1.0, about)


def checkpoint(config: Mapping[str, Any], choices: Mapping[str, str], plugin: Mapping[str, str]) -> dict[str, Any]:
    """Return what a checkpoint of a published model would hold; its network reads the weights itself.

    Arguments:
        config: As `train` composes it, resolved.
        choices: The options it was composed from, by group.
        plugin: Which package provides the modality.
    """
    folder = opened(str(config["pretrained"]))
    record = {
        "format": 1, "config": dict(config), "choices": dict(choices), "facts": facts_of(folder).record(),
        "plugin": dict(plugin), "metrics": {}, "step": 0,
    }  # fmt: skip
    return {"suffuse": record, "state_dict": None}
