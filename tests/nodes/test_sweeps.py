"""Sweeps by submitit, as the guide starts them; `uv run --with hydra-submitit-launcher pytest …` has the launcher."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
WHY = "the extra hydra-submitit-launcher is not installed"


@pytest.fixture
def sweep(runs) -> list[str]:
    """Return the command of a sweep of two runs, but for its launcher."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason=WHY)
    words = [word for word in runs.words("cpu", steps=2) if not word.startswith(("name=", "ckpt="))]
    return [str(Path(sys.executable).with_name("train")), "-m", *words, "optimizer.lr=3e-4,1e-3", "hydra.sweep.dir=all"]


def check(folder: Path, said: str) -> None:
    """Look for both runs, each with a rate of its own."""
    rates = set()
    for number in (0, 1):
        assert (folder / f"all/{number}/checkpoints/last.ckpt").is_file(), said
        with (folder / f"all/{number}/metrics.csv").open() as file:
            rates.add(next(csv.DictReader(file))["lr"])
    assert len(rates) == 2


def test_on_this_machine(launch, sweep: list[str], tmp_path: Path) -> None:
    code, said = launch(tmp_path, *sweep, "hydra/launcher=submitit_local").end()
    assert code == 0, said
    check(tmp_path, said)


def test_on_slurm(cluster, sweep: list[str], tmp_path: Path) -> None:
    """The line of the guide, on a cluster that counts GPUs which are none."""
    how = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1"]
    said = cluster.ask(*sweep, *how, "hydra.launcher.cpus_per_task=1", folder=tmp_path)
    check(tmp_path, said)
