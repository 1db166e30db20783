"""Several processes: the same losses whatever their number and strategy, sharded checkpoints, elastic resume.

Ranks are copies of the test's process (`start`) that are told who they are as torchrun would tell them.
"""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from suffuse import checkpoint, sharded
from suffuse.app import compose_sample
from suffuse.jobs import job_of
from suffuse.parts import Parts
from suffuse.testing import command as inside

RUN = [
    "modality=image", "trainer.accelerator=cpu", "model=dit", "model.width=16", "model.depth=2", "model.heads=2",
    "every.log=1", "every.validate=0", "every.preview=0", "every.checkpoint=3", "preview_num=2", "val_num=8",
    "num=2", "metrics=none", "sampler.steps=2", "name=run", "optimizer.lr=2e-3",
]  # fmt: skip
ROWS = 8
"""Rows of the global batch."""


def ended(ranks: list) -> list[str]:
    """Return what all ranks printed when they have ended well."""
    said = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(said)
    return said


def words(world: int, strategy: str, steps: int) -> list[str]:
    """Return a run on so many ranks with the same global batch."""
    more = [f"data.batch_size={ROWS // world}", f"steps={steps}", f"trainer={strategy}"]
    return [*RUN, *more, *([f"devices={world}"] if world > 1 else [])]


def losses(folder: Path) -> list[float]:
    """Return the loss of every step."""
    with (folder / "outputs/image/run/metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def norms(folder: Path) -> list[float]:
    """Return the norm of every step's gradient."""
    with (folder / "outputs/image/run/metrics.csv").open() as file:
        return [float(row["grad_norm"]) for row in csv.DictReader(file) if row["grad_norm"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, start) -> dict[str, Path]:
    """Return the folders of a run of six steps on one process, on two, and on two with parts of the model each."""
    found = {name: tmp_path_factory.mktemp(name) for name in ("one", "ddp", "fsdp")}
    done = inside(found["one"], "train", *words(1, "cpu", 6))
    assert done.returncode == 0, done.stderr
    ended(start(found["ddp"], 2, *words(2, "ddp", 6)))
    ended(start(found["fsdp"], 2, *words(2, "fsdp", 6), "every.preview=3", "every.validate=3"))
    return found


def last(folder: Path) -> Path:
    return folder / "outputs/image/run/checkpoints/last.ckpt"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_losses_and_norms_do_not_depend_on_the_ranks(runs: dict[str, Path], kind: str) -> None:
    assert len(losses(runs["one"])) == 6
    torch.testing.assert_close(losses(runs[kind]), losses(runs["one"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(norms(runs[kind]), norms(runs["one"]), rtol=1e-4, atol=0)


def test_every_run_logs_the_same_operations_per_sample(runs: dict[str, Path]) -> None:
    found = []
    for folder in runs.values():
        with (folder / "outputs/image/run/metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row.get("perf/tflops")]
        assert len(rows) >= 4
        found += [float(row["perf/tflops"]) / float(row["perf/samples_per_s"]) * 1e12 for row in rows]
    # 16 tokens of 16 channels in two blocks: by hand, qkv and out 4 w^2, gated feed-forward 8 w^2, attention 2 n w, of
    # multiply-adds that count twice, once forward and twice backward; what is around the blocks comes on top.
    tokens, width = 16, 16
    blocks = 2 * 2 * tokens * (12 * width**2 + 2 * tokens * width)
    assert max(found) == pytest.approx(min(found), rel=1e-4)
    assert 3 * blocks < found[0] < 3 * blocks * 1.5


def test_a_sharded_checkpoint_is_the_whole_one(runs: dict[str, Path]) -> None:
    assert sharded.is_sharded(last(runs["fsdp"]))
    one, parts = checkpoint.read(last(runs["one"])), checkpoint.read(last(runs["fsdp"]))
    assert one.keys() == parts.keys()
    for kind in ("state_dict", "current_model_state"):
        assert one[kind].keys() == parts[kind].keys()
        for name, value in one[kind].items():
            torch.testing.assert_close(parts[kind][name], value, rtol=0, atol=2e-5, msg=f"{kind} {name}")
    moments = [c["optimizer_states"][0]["state"] for c in (one, parts)]
    assert moments[0].keys() == moments[1].keys()
    for number, state in moments[0].items():
        torch.testing.assert_close(moments[1][number]["exp_avg"], state["exp_avg"], rtol=0, atol=1e-5)
    # Each process wrote about half of what there is.
    sizes = [p.stat().st_size for p in sorted(last(runs["fsdp"]).glob("part-*.pt"))]
    assert len(sizes) == 2 and max(sizes) < 0.7 * sum(sizes)


def test_consolidate_and_sample(runs: dict[str, Path], tmp_path: Path) -> None:
    where = runs["fsdp"] / "outputs/image/run"
    done = inside(tmp_path, "suffuse", "consolidate", f"ckpt={where}", f"out={tmp_path / 'whole.ckpt'}")
    assert done.returncode == 0, done.stderr
    for ckpt, out in ((where, "a"), (tmp_path / "whole.ckpt", "b")):
        done = inside(tmp_path, "sample", f"ckpt={ckpt}", "num=2", f"out={tmp_path / out}", "trainer=cpu")
        assert done.returncode == 0, done.stderr
    assert [p.read_bytes() for p in sorted((tmp_path / "a").glob("0*.png"))] == [
        p.read_bytes() for p in sorted((tmp_path / "b").glob("0*.png"))
    ]
    done = inside(tmp_path, "suffuse", "consolidate", f"ckpt={tmp_path / 'whole.ckpt'}")
    assert done.returncode == 1 and "one file already" in done.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("fsdp", 2), ("cpu", 1)), (("cpu", 1), ("fsdp", 2)),
        pytest.param(("fsdp", 2), ("fsdp", 4), marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_another_strategy_goes_on(
    runs: dict[str, Path], tmp_path: Path, start, before: tuple[str, int], after: tuple[str, int]
) -> None:
    source = runs["one"] if before[0] == "cpu" else runs["fsdp"]
    run = source / "outputs/image/run/checkpoints/step-000003.ckpt"
    more = [*words(after[1], after[0], 6), f"ckpt={run}"]
    if after[1] > 1:
        ended(start(tmp_path, after[1], *more))
    else:
        done = inside(tmp_path, "train", *more)
        assert done.returncode == 0, done.stderr
    torch.testing.assert_close(losses(tmp_path), losses(runs["one"])[3:], rtol=0, atol=1e-5)


def test_every_sample_once_after_another_number_of_ranks(runs: dict[str, Path], tmp_path: Path, start) -> None:
    """Three steps of 8 rows on one process, then steps of 4 rows per rank on two: the losses of 8 rows go on."""
    source = runs["one"] / "outputs/image/run/checkpoints/step-000003.ckpt"
    more = [*words(2, "ddp", 5), f"ckpt={source}", "data.batch_size=2"]
    ended(start(tmp_path, 2, *more))
    saved = checkpoint.read(last(tmp_path))["training"]
    assert saved["past"] == [(3, 1, 8)] and saved["ranks"] == 2 and saved["batch"] == 2 and saved["micro"] == 5


def drawn(out: Path, run: Path, how: list[str]) -> Parts:
    """Return the parts of a sampling job, as the job itself names it."""
    ckpt = last(run)
    saved = checkpoint.read(ckpt)
    cfg = compose_sample(how, saved["suffuse"]["config"], saved["suffuse"]["choices"])
    return Parts(out, job_of(OmegaConf.to_container(cfg, resolve=True), saved))


def test_samples_of_two_ranks_go_on_where_they_stopped(runs: dict[str, Path], tmp_path: Path, start) -> None:
    how = [f"ckpt={runs['one'] / 'outputs/image/run'}", "num=7", "batch_size=2", "seed=3"]
    done = inside(tmp_path, "sample", *how, "trainer=cpu", f"out={tmp_path / 'one'}")
    assert done.returncode == 0, done.stderr
    ddp = [*how, "trainer=ddp", "trainer.accelerator=cpu", "devices=2", f"out={tmp_path / 'two'}"]
    # As an attempt leaves it that was stopped after two batches, one of which it was writing.
    job = drawn(tmp_path / "two", runs["one"], how)
    assert job.missing(4) == [0, 1, 2, 3]
    marked = {"drawn": torch.full((2, 1, 8, 8), 0.25)}
    checkpoint.write(marked, job.folder / "part-000001.pt")
    (job.folder / ".part-000002.pt.1.tmp").write_bytes(b"torn")
    said = ended(start(tmp_path, 2, *ddp, command="sample"))
    assert "1 of 4 batches are there already" in said[0] and not job.folder.exists()
    for name in ("one", "two"):
        rows = [json.loads(line) for line in (tmp_path / name / "manifest.jsonl").read_text().splitlines()]
        assert [row["index"] for row in rows] == list(range(7)) and [row["seed"] for row in rows] == list(range(3, 10))
    for i, image in enumerate(sorted((tmp_path / "one").glob("0*.png"))):
        same = image.read_bytes() == (tmp_path / "two" / image.name).read_bytes()
        assert same == (i not in (2, 3))  # what was there is not made again


@pytest.mark.parametrize("signum", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_preempted_and_requeued(tmp_path: Path, start, environment, signum: signal.Signals) -> None:
    """A stand-in for scontrol notes what it was asked; the same command then goes on in the same run."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tools / "scontrol").chmod(0o755)
    env = {"PATH": f"{tools}:{environment()['PATH']}", "SLURM_JOB_ID": "17", "WANDB_MODE": "disabled"}
    # The second rank alone is told, as when one node of several is taken.
    how = [*words(2, "slurm", 100000), "trainer.num_nodes=1", "ckpt=auto"]
    ranks = start(tmp_path, 2, *how, **env)
    end = time.monotonic() + 300
    while not last(tmp_path).exists():
        assert time.monotonic() < end and ranks[0].poll() is None, ranks[0].log.read_text()
        time.sleep(0.02)
    ranks[1].send_signal(signum)
    said = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [128 + signum] * 2, said
    assert "SLURM starts it again" in said[0] and (tmp_path / "asked").read_text().endswith("\nrequeue 17\n")
    step = checkpoint.read(last(tmp_path))["suffuse"]["step"]
    again = [word if not word.startswith("steps=") else f"steps={step + 2}" for word in how]
    said = ended(start(tmp_path, 2, *again, **env))
    assert f"at step {step}" in said[0] and len(losses(tmp_path)) == step + 2


@pytest.mark.slow
def test_losses_of_1_2_and_4_ranks_over_50_steps(tmp_path: Path, start) -> None:
    done = inside(tmp_path / "1", "train", *words(1, "cpu", 50)) if (tmp_path / "1").mkdir() is None else None
    assert done is not None and done.returncode == 0
    whole = losses(tmp_path / "1")
    for world, strategy, nodes in ((2, "ddp", 2), (4, "ddp", 1), (2, "fsdp", 1), (4, "fsdp", 1)):
        folder = tmp_path / f"{strategy}-{world}"
        more = [f"devices={world // nodes}", f"trainer.num_nodes={nodes}"]
        ended(start(folder, world, *words(world, strategy, 50), *more, nodes=nodes))
        apart = max(abs(a - b) for a, b in zip(losses(folder), whole, strict=True))
        print(f"{strategy} on {world} ranks, {nodes} nodes: losses apart by {apart:.1e}")
        assert apart < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("more", [["trainer=ddp", "trainer.strategy.gradients=bf16"], ["trainer=fsdp"]])
def test_several_micro_batches_and_writing_in_the_background(tmp_path: Path, start, more: list[str]) -> None:
    how = [*words(2, "ddp", 4), *more, "trainer.accumulate=2", "trainer.background=true"]
    ended(start(tmp_path, 2, *how))
    saved = checkpoint.read(last(tmp_path))
    assert saved["training"]["micro"] == 8 and len(losses(tmp_path)) == 4
    assert not [p for p in last(tmp_path).parent.iterdir() if p.name.startswith(".")]
