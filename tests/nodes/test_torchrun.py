"""Two agents of torchrun on this machine, a node each: the losses of one process, also when a worker is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("killed", [False, True])
def test_losses_are_those_of_one_process(
    runs, alone: Path, launch, agent, port, until, started, tmp_path: Path, killed: bool
) -> None:
    """A killed worker ends that of the other node too, and both agents start again from the last checkpoint."""
    words = agent(f"127.0.0.1:{port()}", *runs.words("ddp", nodes=2), restarts=int(killed))
    agents = [launch(tmp_path, *words) for _ in range(2)]
    if killed:
        until((tmp_path / runs.last).exists, *agents)
        os.kill(started(agents[1].pid)[0], signal.SIGKILL)
    ended = [one.end() for one in agents]
    said = "\n".join(text for _, text in ended)
    assert [code for code, _ in ended] == [0, 0], said
    assert said.count("was lost; the last checkpoint is ") == killed, said
    assert ("continuing " in said) == killed
    torch.testing.assert_close(runs.losses(tmp_path), runs.losses(alone), rtol=0, atol=1e-5)
