"""A step whose loss is NaN, on one of the ranks: it changes nothing, on any of them, and the run goes on."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from suffuse.training.module import TrainingModule


@pytest.fixture
def bad(monkeypatch) -> int:
    """Let the loss of the last rank be NaN in one step, and return its number."""
    step = TrainingModule.training_step

    def broken(self: TrainingModule, *args: object) -> torch.Tensor:
        loss = step(self, *args)
        return loss * math.nan if self.global_step == 2 and self.global_rank == self.trainer.world_size - 1 else loss

    monkeypatch.setattr(TrainingModule, "training_step", broken)
    return 3


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_it_costs_its_own_update_alone(start, local, short, of_two, bad: int, tmp_path: Path, world: int) -> None:
    words = ["steps=5", "keep=9"]
    if world == 1:
        done = local("train", *short(*words))
        assert done.returncode == 0, done.stderr
    else:
        ranks = start(tmp_path, world, *of_two(*words))
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said
    folder = tmp_path / "outputs/image/run/checkpoints"
    saved = [torch.load(folder / f"step-{step:06d}.ckpt", weights_only=True) for step in range(1, 6)]
    moved = []
    for before, after in itertools.pairwise(saved):
        same = [
            all(torch.equal(value, after[kind][name]) for name, value in before[kind].items())
            for kind in ("current_model_state", "state_dict")
        ]
        assert len(set(same)) == 1
        moved.append(not same[0])
    assert moved == [step != bad for step in range(2, 6)]
    assert all(torch.isfinite(value).all() for value in saved[-1]["state_dict"].values())
