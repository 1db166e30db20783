"""Runs on sounds of lengths of their own: the contract, samples, editing, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from suffuse.testing import ModalityContract, command

TINY = ("data.count=96", "data.batch_size=16", "model.width=16", "conditioner.width=16")


class TestVariable(ModalityContract):
    modality = "audio"
    overrides = (*TINY, "experiment=audio/variable")

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        return []


class TestPictures(ModalityContract):
    """A picture's first axis is time there, and a token is a column."""

    modality = "audio"
    overrides = (
        *TINY, "experiment=audio/variable", "codec=audio/stft", "model=dit", "model.width=16", "model.heads=2",
        "model.depth=2", "model.patch=[1,128]", "objective=flow",
    )  # fmt: skip
    training_steps = 60

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        return []


def manifest(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [row | {"y": soundfile.read(folder / row["file"])[0]} for row in rows]


def test_commands(tmp_path: Path):
    """A run's own samples, lengths that are asked for, editing, and going on after a stop."""
    words = [*TINY, "name=v", "num=4", "metrics_num=4", "trainer=cpu", "data.count=48", "sampler.steps=2",
             "experiment=audio/variable", "codec=audio/mdct", "objective=flow", "every.checkpoint=2"]  # fmt: skip
    done = command(tmp_path, "train", "modality=audio", *words, "steps=2")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "audio" / "v"
    rows = manifest(run / "samples" / "final")
    assert all(0.6 * 8192 - 1 <= len(row["y"]) <= 8192 for row in rows) and len({len(row["y"]) for row in rows}) > 1
    assert all(row["seconds"] == round(len(row["y"]) / 8000, 4) for row in rows)
    again = command(tmp_path, "train", "modality=audio", *words, "steps=4", "ckpt=auto")
    assert again.returncode == 0, again.stderr
    assert "at step 2" in again.stdout + again.stderr

    def drawn(out: str, *more: str) -> list[dict]:
        how = ["ckpt=outputs/audio/v", "trainer=cpu", "sampler.steps=2", f"out={out}", *more]
        done = command(tmp_path, "sample", *how)
        assert done.returncode == 0, done.stderr
        return manifest(tmp_path / out)

    assert [len(row["y"]) for row in drawn("one", "num=2", "seconds=1.5")] == [12_000] * 2
    turns = drawn("turns", "num=4", "seconds=[0.7,1.1]", "batch_size=3")
    assert [len(row["y"]) for row in turns] == [5600, 8800] * 2
    # A sample by itself is what it was in the batch.
    alone = drawn("alone", "num=1", "seed=2", "seconds=[0.7,1.1]", f"condition.text={turns[2]['caption']}")[0]["y"]
    assert np.abs(alone - turns[2]["y"]).max() < 1e-3
    y = 0.5 * np.sin(2 * np.pi * 440 * np.arange(6000) / 8000)
    soundfile.write(tmp_path / "in.wav", y, 8000, subtype="FLOAT")
    for row in drawn("inside", "num=3", "init=in.wav", "mask=0.3-0.5"):
        outside = np.r_[0 : 2400 - 256, 4000 + 256 : 6000]
        assert len(row["y"]) == 6000 and np.abs(row["y"][outside] - y[outside]).max() < 1e-3
        assert np.abs(row["y"][2500:3900] - y[2500:3900]).max() > 0.02
    assert len(drawn("on", "num=1", "init=in.wav", "mask=0.7-", "seconds=1.2")[0]["y"]) == 9600
    near = drawn("near", "num=1", "init=in.wav", "strength=0.1", "sampler.steps=20")[0]["y"]
    assert len(near) == 6000 and np.sqrt(np.mean((near - y) ** 2)) < 0.1
    wrong = (("model=audio/unet", "masks need attention: model=dit"), ("process=gaussian", "choose a process"))
    for bad, said in wrong:
        kept = [w for w in words if not w.startswith("model.")]
        done = command(tmp_path, "train", "modality=audio", *kept, bad, "name=bad")
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_run_from_the_cache_is_the_same_run(tmp_path: Path):
    """States with their masks are read back as they were encoded: every loss and every weight is the same."""
    words = [*TINY, "num=2", "trainer=cpu", "data.count=48", "sampler.steps=2", "metrics=none", "steps=3",
             "experiment=audio/variable", "codec=audio/mdct", "objective=flow", "every.preview=0", "val_num=8",
             "every.log=1", "optimizer.lr=1e-2", "lr_schedule=constant"]  # fmt: skip
    losses, states = [], []
    for name, more in (("plain", []), ("kept", ["cache=true"])):
        done = command(tmp_path, "train", "modality=audio", *words, f"name={name}", *more)
        assert done.returncode == 0, done.stderr
        assert ("cache: train, 48 items" in done.stdout) == bool(more)
        run = tmp_path / "outputs/audio" / name
        with (run / "metrics.csv").open() as file:
            losses.append([(row["loss"], row["grad_norm"], row["val/loss"]) for row in csv.DictReader(file)])
        saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        states.append(saved["state_dict"] | saved["current_model_state"])
    assert losses[0] == losses[1] and len({loss for loss, *_ in losses[0]}) == 3
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    (folder,) = (tmp_path / "outputs/audio/cache").iterdir()
    assert [p.name.split(".")[1] for p in sorted((folder / "train").glob("states-*"))] == ["length", "mask", "x"]
