"""A real SLURM of two nodes on this machine: `srun`, preemption and time limits, cancelling, samples, sweeps.

Debian's packages slurm-wlm and munge are enough. The nodes are two daemons, so a name that a cluster would know is not
known here: MASTER_ADDR says where the first one is.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from suffuse import checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cluster, runs) -> Path:
    """Return the folder of a run on both nodes that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    said = cluster.ask("srun", "-N2", "--ntasks-per-node=1", "train", *runs.words("slurm", 2), folder=folder)
    assert (folder / runs.last).exists() and "trained in" in said, said
    return folder


def test_losses_of_two_nodes_are_those_of_one_process(runs, alone: Path, whole: Path) -> None:
    assert len(runs.losses(whole)) == runs.steps
    torch.testing.assert_close(runs.losses(whole), runs.losses(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["USR1", "requeue", "preempted"])
def test_a_stopped_job_goes_on_and_ends_the_same(cluster, runs, whole: Path, tmp_path: Path, how: str) -> None:
    job = cluster.submit(tmp_path, runs.words("slurm", 2))
    log = tmp_path / "job.log"
    cluster.until(job, (tmp_path / runs.last).exists, log)
    if how == "USR1":
        said = cluster.ask("scancel", "--signal", "USR1", job)
    elif how == "requeue":
        said = cluster.ask("scontrol", "requeue", job)
    else:
        said = cluster.ask("srun", "-p", "urgent", "-N2", "--ntasks-per-node=1", "--exclusive", "sleep", "1")
    cluster.until(job, lambda: False, log)
    text = log.read_text()
    assert cluster.state(job) == "COMPLETED", said + text
    signum = 10 if how == "USR1" else 15
    assert f"stopped by signal {signum} at step " in text and "which is saved; SLURM starts it again" in text, text
    step = int(text.partition(" at step ")[2].partition(",")[0])
    assert step < runs.steps and f"at step {step}\n" in text and "failed" not in text, text
    runs.same(whole, tmp_path)


def test_a_cancelled_job_does_not_come_back(cluster, runs, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path, runs.words("slurm", 2, steps=100000))
    log = tmp_path / "job.log"
    cluster.until(job, (tmp_path / runs.last).exists, log)
    cluster.ask("scancel", job)
    cluster.until(job, lambda: False, log)
    text = log.read_text()
    assert cluster.state(job) == "CANCELLED" and "starts it again" not in text, text
    step = int(text.partition("stopped by signal 15 at step ")[2].partition(",")[0])
    assert checkpoint.read(tmp_path / runs.last)["suffuse"]["step"] == step


def test_samples_of_two_nodes_are_in_order(cluster, runs, whole: Path, tmp_path: Path) -> None:
    how = [f"ckpt={whole / runs.last}", "num=7", "batch_size=2", "seed=3", "trainer.accelerator=cpu"]
    said = cluster.ask(
        "srun", "-N2", "--ntasks-per-node=1", "sample", *how, "trainer=slurm", "out=two", folder=tmp_path
    )
    rows = [json.loads(line) for line in (tmp_path / "two/manifest.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(7)), said
    assert [row["seed"] for row in rows] == list(range(3, 10))
    assert len(list((tmp_path / "two").glob("0*.png"))) == 7
