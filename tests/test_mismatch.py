"""A checkpoint of another model: one line says in what it is another, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from suffuse.mismatch import difference


def test_nothing_differs() -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    assert difference(state, torch.nn.Linear(2, 3).state_dict()) == ""


def test_the_first_weights_and_how_many() -> None:
    wanted = torch.nn.Sequential(*[torch.nn.Linear(2, 3) for _ in range(3)]).state_dict()
    found = {**wanted, "0.weight": torch.zeros(4, 2), "more": torch.zeros(())}
    del found["1.bias"]
    assert difference(found, wanted) == (
        "3 of 7 weights do not fit: 0.weight is 4 x 2 there and 3 x 2 here, 1.bias is not there, more is not asked for"
    )
    assert difference({}, wanted).endswith(
        "0.weight is not there, 0.bias is not there, 1.weight is not there and 3 more"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.width=24"], "made with model.width=16, not 24; "),
        (["model=dit", "model.depth=1", "model.heads=2"], "made with model=unet, not dit; "),
        (["task=autoencoder"], "made with task=diffusion, not image/autoencoder, model=unet, not image/autoencoder, "),
        (["conditioner=none"], "made with conditioner=class, not none; "),
    ],
)
def test_a_run_does_not_go_on_with_another_model(
    local, tiny: list[str], trained: Path, words: list[str], said: str
) -> None:
    kept = [word for word in tiny if words[0] != "model=dit" or word != "model.blocks=1"]
    done = local("train", *kept, *words, "name=other", f"ckpt={trained}")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert line.startswith(f"train: ckpt={trained}") and said in line and line.count(" is ") <= 4
    assert "leave ckpt= out to begin anew" in line and len(line) < 800


def test_weights_that_are_not_those_of_their_own_config(local, trained: Path, tmp_path: Path) -> None:
    saved = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    name = next(iter(saved["state_dict"]))
    del saved["state_dict"][name]
    torch.save(saved, tmp_path / "cut.ckpt")
    done = local("sample", "ckpt=cut.ckpt", "num=1", "trainer=cpu")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "do not fit the checkpoint's own config: 1 of " in done.stderr and "is not there" in done.stderr
