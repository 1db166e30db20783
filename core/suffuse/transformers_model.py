"""Transformers model: a frozen model of transformers that a metric looks through, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from suffuse.errors import ConfigError

__all__ = ["load"]


def load(path: str | None, download: bool, processor: str, model: str, what: str, need: str) -> tuple[Any, Any]:
    """Return what prepares a model's input, and the model in evaluation mode, without gradients.

    Arguments:
        path: A folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``, or a name on the
            hub.
        download: Allow the hub; else only what is on disk.
        processor: Class of transformers of what prepares the input.
        model: Class of transformers of the model.
        what: The model's name, for messages.
        need: What needs transformers, for messages.

    Raises:
        ConfigError: Without `path`, without transformers, or when there is no such model.
    """
    if not path:
        raise ConfigError(f"metrics.path is not set; give a folder with a {what} model (config.json, safetensors)")
    folder = Path(path).expanduser()
    if not download and not folder.is_dir():
        raise ConfigError(f"metrics.path={path}: no such folder; allow the hub with metrics.download=true")
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"{need} needs transformers: pip install 'suffuse[text]'") from error
    where = str(folder) if folder.is_dir() else path
    how = {"local_files_only": not download}
    try:
        prepared = getattr(transformers, processor).from_pretrained(where, **how)
        found = getattr(transformers, model).from_pretrained(where, use_safetensors=True, **how)
    except Exception as error:  # the library raises a dozen kinds for what a wrong folder or no network causes
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"metrics.path={path}: transformers cannot load it ({text})") from error
    return prepared, found.eval().requires_grad_(False)
