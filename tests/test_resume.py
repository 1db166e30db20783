"""Exact resume: a run that was killed, at any moment and several times, ends as if nothing had happened."""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

RUN = [
    "modality=image", "trainer=cpu", "model.width=16", "data.batch_size=8", "trainer.accumulate=2", "steps=30",
    "model.dropout=0.1", "every.log=4", "every.validate=10", "every.preview=12", "every.checkpoint=3", "preview_num=2",
    "val_num=16", "num=2", "metrics=none", "sampler.steps=2", "name=run",
]  # fmt: skip


def result(folder: Path) -> tuple[dict, list[dict[str, str]], str]:
    """Return what must be equal: the last checkpoint, the deterministic columns, the samples."""
    run = folder / "outputs" / "image" / "run"
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]
    files = sorted([*run.glob("samples/final/*.png"), *run.glob("previews/*.png")])
    return saved, rows, "".join(f"{p.name}:{p.read_bytes().hex()}" for p in files)


def same(a: object, b: object, where: str = "") -> None:
    """Assert that two checkpoints hold the same bits; loop counters of Lightning aside, which count restarts."""
    if isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys(), where
        for key in a:
            if key != "loops":
                same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple) and len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), f"{where}: {a!r} != {b!r}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, environment) -> Path:
    """Return the folder of an uninterrupted run, in a process that starts from nothing."""
    folder = tmp_path_factory.mktemp("whole")
    script = str(Path(sys.executable).parent / "train")
    subprocess.run([script, *RUN], cwd=folder, check=True, capture_output=True, timeout=900, env=environment())
    return folder


def wait_for(run: Path, step: int, process) -> None:
    """Wait until the CSV shows that training reached `step`, or the process ended."""
    end = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < end:
        if (run / "metrics.csv").is_file():
            rows = (run / "metrics.csv").read_text().splitlines()
            if rows and rows[-1].split(",")[0].isdigit() and int(rows[-1].split(",")[0]) >= step:
                return
        time.sleep(0.005)


def test_killed_at_random_moments(whole: Path, tmp_path: Path, forked) -> None:
    run = tmp_path / "outputs" / "image" / "run"
    moments = random.Random(0)
    kills = 0
    for at in (4, 12, 20):
        process = forked(tmp_path, "train", *RUN, "ckpt=auto")
        wait_for(run, at, process)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if (run / "checkpoints" / "last.ckpt").is_file():  # whatever the moment, it is whole
            torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    process = forked(tmp_path, "train", *RUN, "ckpt=auto")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert kills >= 2 and "continuing" in output
    (a, rows_a, files_a), (b, rows_b, files_b) = result(whole), result(tmp_path)
    same(a, b)
    assert rows_a == rows_b and files_a == files_b
    assert not list((run / "checkpoints").glob(".*.tmp")) or kills


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on(whole: Path, tmp_path: Path, forked, signum: signal.Signals) -> None:
    run = tmp_path / "outputs" / "image" / "run"
    process = forked(tmp_path, "train", *RUN)
    wait_for(run, 8, process)
    process.send_signal(signum)
    output, _ = process.communicate()
    assert process.returncode == 128 + signum, output
    assert "Traceback" not in output and "continue with the same command and ckpt=auto" in output
    stopped = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["suffuse"]["step"]
    assert 8 <= stopped < 30 and f"at step {stopped}" in output
    process = forked(tmp_path, "train", *RUN, "ckpt=auto")
    output, _ = process.communicate()
    assert process.returncode == 0 and f"at step {stopped}" in output, output
    same(result(whole)[0], result(tmp_path)[0])
    assert result(whole)[1] == result(tmp_path)[1]
