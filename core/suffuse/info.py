"""Info: what a checkpoint is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from suffuse.checkpoint import read
from suffuse.plugins import registry

__all__ = ["show"]


def show(path: Path, as_json: bool = False) -> str:
    """Return a description of a checkpoint file: modality, plugin, steps, weights, figures, config.

    Arguments:
        path: The file.
        as_json: One JSON object instead of text.
    """
    saved = read(path)
    record = saved["suffuse"]
    weights = sum(value.numel() for value in saved["state_dict"].values())
    metrics: dict[str, Any] = dict(record["metrics"])
    final = path.parent.parent / "metrics.json"
    if path.parent.name == "checkpoints" and final.is_file():
        finished = json.loads(final.read_text())
        if finished.get("step") == record["step"]:
            metrics |= {k: v for k, v in finished.items() if isinstance(v, int | float) and k != "step"}
    installed = registry().providers.get(record["plugin"]["modality"])
    known: dict[str, Any] = {
        "checkpoint": str(path),
        "modality": record["plugin"]["modality"],
        "plugin": record["plugin"]["dist"],
        "installed": installed.dist if installed else None,
        "suffuse": record["version"],
        "step": record["step"],
        **({"ema": f"std {record['ema']['std']:g}"} if "ema" in record else {}),
        "steps": record["config"]["steps"],
        "weights": weights,
        "facts": record["facts"],
        "metrics": metrics,
        "config": record["config"],
    }
    if as_json:
        return json.dumps(known, indent=2)
    known["installed"] = known["installed"] or "no: sampling needs it"
    config = yaml.safe_dump(known.pop("config"), sort_keys=False)
    facts = known.pop("facts")
    labels = ", ".join(facts["labels"]) or "none"
    figures = "\n".join(f"  {name:<20} {value:.6g}" for name, value in known.pop("metrics").items())
    head = "\n".join(f"{name:<12} {value}" for name, value in known.items())
    shape = f"{'shape':<12} {facts['shape']}\n{'labels':<12} {labels}"
    return f"{head}\n{shape}\nmetrics\n{figures}\nconfig\n  " + config.rstrip().replace("\n", "\n  ")
