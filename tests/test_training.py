"""Training: what happens when numbers, processes or options go wrong, and that ranks agree."""

from __future__ import annotations

import csv
import errno
import math
import re
from pathlib import Path

import pytest
import torch
from suffuse.training.loggers import CSVLogger
from suffuse.training.lr import Constant, Cosine
from suffuse.training.progress import duration


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_nan_stops_with_step_rate_and_items(local, tiny: list[str], tmp_path: Path) -> None:
    words = [w for w in tiny if not w.startswith("steps=")]
    result = local(
        "train", *words, "steps=40", "optimizer.lr=1e18", "trainer.clip=0", "trainer.max_skipped=2", "name=n"
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert re.search(r"NaN or infinite at step \d+ for the 3\. time in a row \(lr .*, items \[\d+, ", line), line
    last = tmp_path / "outputs/image/n/checkpoints/last.ckpt"
    if last.is_file():
        assert torch.load(last, weights_only=True)["suffuse"]["step"] < 40


def test_continuing_a_finished_run_changes_nothing(local, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "outputs/image/f"
    assert local("train", *tiny, "name=f").returncode == 0

    def state() -> dict[str, bytes]:
        files = [run / "metrics.csv", *sorted(run.glob("samples/final/*")), *sorted(run.glob("checkpoints/*"))]
        return {path.name: path.read_bytes() for path in files}

    before = state()
    result = local("train", *tiny, "name=f", "ckpt=auto")
    assert result.returncode == 0 and "at step 6" in result.stdout, result.stderr
    assert state() == before


def test_two_ranks_train_like_one(local, forked, tiny: list[str], tmp_path: Path) -> None:
    """Equal global batch, equal losses; noise, times and dropped conditions follow the place in the global batch."""
    words = [*tiny, "every.preview=0"]
    assert local("train", *words, "name=one").returncode == 0
    words += ["data.batch_size=8", "trainer=ddp", "trainer.accelerator=cpu", "devices=2", "name=two"]
    process = forked(tmp_path, "train", *words)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert output.count("draw more") == 1
    one, two = rows(tmp_path / "outputs/image/one"), rows(tmp_path / "outputs/image/two")
    for a, b in zip(one, two, strict=True):
        assert math.isclose(float(a["loss"]), float(b["loss"]), rel_tol=1e-5)
        if a["val/loss"]:
            assert math.isclose(float(a["val/loss"]), float(b["val/loss"]), rel_tol=1e-5)


def test_accumulation_equals_a_larger_batch(local, tiny: list[str], tmp_path: Path) -> None:
    """The gradient is the mean over both micro-batches; only their draws differ, so the losses are near, not equal."""
    assert (
        local("train", *tiny, "every.preview=0", "trainer.accumulate=2", "data.batch_size=8", "name=x").returncode == 0
    )
    found = rows(tmp_path / "outputs/image/x")
    assert [row["step"] for row in found] == ["1", "2", "3", "4", "5", "6"]


def test_wandb_offline_continues_the_same_run(forked, tiny: list[str], tmp_path: Path) -> None:
    def train(*more: str) -> str:
        process = forked(tmp_path, "train", *tiny, "logger=wandb", "name=w", *more)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return said

    assert "W&B logs offline: no API key" in train("steps=4")
    run = tmp_path / "outputs/image/w"
    identity = (run / "wandb_id").read_text()
    train("steps=6", "ckpt=auto")
    assert (run / "wandb_id").read_text() == identity
    folders = list((run / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(folders) == 2
    assert any((folder / "files/media/images").is_dir() for folder in folders)


def test_other_networks_objectives_and_schedules_train(local, tiny: list[str]) -> None:
    words = [w for w in tiny if not w.startswith("model.")] + ["steps=2", "every.preview=0"]
    for number, choice in enumerate(
        [
            ["model=dit", "model.width=32", "model.depth=1", "objective=flow", "schedule=flow", "grid=trailing"],
            [
                "objective=v",
                "schedule=cosine",
                "sampler=ancestral",
                "model.width=16",
                "ema=power",
                "lr_schedule=constant",
            ],
            ["objective=min_snr", "schedule=linear", "sampler=deis", "model.width=16", "trainer.precision=bf16-mixed"],
        ]
    ):
        result = local("train", *words, *choice, f"name=c{number}")
        assert result.returncode == 0, (choice, result.stderr)


@pytest.mark.slow
def test_compile_changes_no_key(local, tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "steps=2", "every.preview=0", "every.validate=0"]
    assert local("train", *words, "compile=true", "name=c").returncode == 0
    saved = torch.load(tmp_path / "outputs/image/c/checkpoints/last.ckpt", weights_only=True)
    assert not any("_orig_mod" in key for key in saved["state_dict"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["trainer.precision=float7"], "trainer: "),
        (["lr_schedule.hold=2"], "lr_schedule.hold=2 must be in [0, 1)"),
        (["ema.decay=1.5"], "ema.decay=1.5 must be in [0, 1)"),
        (["+model.widht=3"], "did you mean 'width'"),
        (["model.factors=3"], "is not divisible"),
        (["schedule.sigma_min=-1"], "sigma_min"),
        (["conditioner.dropout=2"], "conditioner.dropout=2"),
        (["trainer=gpu"], "trainer: "),
    ],
)
def test_a_bad_value_is_one_clear_line(local, tiny: list[str], words: list[str], text: str) -> None:
    if words == ["trainer=gpu"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    chosen = tiny if words != ["trainer=gpu"] else [w for w in tiny if w != "trainer=cpu"]
    result = local("train", *chosen, *words)
    lines = [line for line in result.stderr.splitlines() if line.startswith("train: ")]
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert len(lines) == 1 and text in lines[0], lines


# Parts.


def test_rates() -> None:
    cosine = Cosine(warmup=10, hold=0.5, final=0.1)
    assert cosine(0, 100) == pytest.approx(0.1)
    assert cosine(9, 100) == cosine(50, 100) == 1.0
    assert cosine(75, 100) == pytest.approx(0.55)
    assert cosine(100, 100) == pytest.approx(0.1)
    assert Constant(4)(1, 9) == 0.5 and Constant(0)(0, 9) == 1.0


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 3661)] == ["0:00", "1:00", "1:01:01"]


def test_the_csv_is_cut_back_to_a_checkpoint(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    for step in (1, 2, 3):
        logger.log_metrics({"loss": step / 3}, step)
    logger.log_metrics({"val/loss": 0.5}, 3)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,0.1")  # a torn row
    again = CSVLogger(str(tmp_path))
    again.resume(2)
    again.log_metrics({"loss": 9.0}, 3)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,loss,val/loss", "1,0.333333333,", "2,0.666666667,", "3,9,",
    ]  # fmt: skip


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(local, tiny: list[str], tmp_path: Path, monkeypatch) -> None:
    calls = []

    def full_later(_: int) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full_later)
    result = local("train", *tiny, "name=full")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "train: no space left on the disk" in result.stderr and "ckpt=auto" in result.stderr
    folder = tmp_path / "outputs/image/full/checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["last.ckpt", "step-000002.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["suffuse"]["step"] == 2


def test_out_of_memory_says_what_to_lower(local, tiny: list[str], trained: Path, monkeypatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 TiB")

    monkeypatch.setattr("suffuse.model.Model.draw", greedy)
    result = local("sample", f"ckpt={trained}", "num=2", "trainer=cpu")
    assert result.returncode == 1 and "sample: out of memory: lower batch_size (now 64)" in result.stderr
    monkeypatch.setattr("suffuse.training.module.TrainingModule.training_step", greedy)
    result = local("train", *tiny, "name=oom")
    assert result.returncode == 1 and "train: out of memory: lower data.batch_size (now 16)" in result.stderr
    assert "Traceback" not in result.stderr
