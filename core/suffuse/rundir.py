"""Run directory: where the files of a run are, and what may be written there.

``outputs/<modality>/<name>/`` holds ``config.yaml``, ``checkpoints/``, ``metrics.csv``, ``metrics.json``, ``previews/``
and ``samples/``. Nothing in it is overwritten by another run, and every file appears whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from suffuse.cli import find_checkpoint
from suffuse.errors import ConfigError
from suffuse.training.progress import is_first_rank

__all__ = ["next_samples", "resume_path", "run_dir", "tuned_folder", "write_text"]


def run_dir(cfg: DictConfig) -> Path:
    """Return the directory of the run that `cfg` describes, relative to the current one where it lies below it."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():  # called from Python, not from the console script
        return Path("outputs") / str(cfg.modality.name) / str(cfg.name)
    found = Path(str(HydraConfig.get().runtime.output_dir))
    with contextlib.suppress(ValueError):
        found = found.relative_to(Path.cwd())
    return found


def resume_path(cfg: Mapping[str, Any], folder: Path) -> Path | None:
    """Return what to continue from, and refuse to overwrite a run.

    Raises:
        ConfigError: When the run directory holds a run and ``ckpt`` does not say to continue it.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if cfg["ckpt"] is None:
        if last.is_file() and is_first_rank():
            raise ConfigError(f"name={folder.name}: {folder} already holds a run; add ckpt=auto to continue it")
        return None
    if cfg["ckpt"] == "auto":
        return last if last.is_file() else None
    return find_checkpoint(str(cfg["ckpt"]))


def next_samples(out: str | None, checkpoint: Path) -> Path:
    """Return where samples go: what was asked, or the next free number in the run's ``samples/``."""
    if out is not None:
        return Path(out).expanduser()
    in_run = checkpoint.parent.name == "checkpoints"
    base = checkpoint.parents[1] / "samples" if in_run else Path("samples")
    number = 1
    while (base / f"{number:03d}").exists():
        number += 1
    return base / f"{number:03d}"


def tuned_folder(checkpoint: Path) -> Path:
    """Return where the grids that were tuned to a checkpoint are."""
    return (checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent) / "tuned"


def write_text(path: Path, text: str) -> None:
    """Write a small file on the first rank, under a temporary name first."""
    if not is_first_rank():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
