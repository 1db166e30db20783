"""Distributed: copies of the model on several processes, and what a cluster says of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from suffuse.errors import ConfigError
from suffuse.training.progress import say

__all__ = ["answer_signals", "ddp", "requeue", "start_again"]


def ddp(static_graph: bool = True, gradients: str | None = None, accumulate: int = 1) -> DDPStrategy:
    """Return one copy of the model per process, whose gradients are averaged while the backward pass goes on.

    Arguments:
        static_graph: Every step uses the same weights in the same order, as all of ours do; torch then needs no search
            for unused ones.
        gradients: What gradients are sent as: null for float32, or ``bf16``, which halves what is sent.
        accumulate: Micro-batches per step. With several torch cannot take the graph as static: it does not send the
            gradients of the first, and fails at that ("expect_autograd_hooks_ INTERNAL ASSERT").

    Raises:
        ConfigError: For another `gradients`.
    """
    static = static_graph and accumulate == 1
    how: dict[str, Any] = {"static_graph": static, "find_unused_parameters": not static}
    how["gradient_as_bucket_view"] = True
    if gradients == "bf16":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        how["ddp_comm_hook"] = bf16_compress_hook
    elif gradients is not None:
        raise ConfigError(f"trainer.strategy.gradients={gradients} is neither null nor bf16")
    return DDPStrategy(**how)


def answer_signals(trainer: Trainer) -> None:
    """Keep Lightning from answering SLURM's signals, which `suffuse.training.callbacks.Stop` does."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


def start_again(trainer: Trainer) -> bool:
    """Let the first rank call `requeue`; return on that rank what it does.

    SLURM ends a job that it is to start again, and may end all ranks once one has ended. So they wait for the first
    one, and end by themselves.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trainer.strategy.barrier("before")
    again = trainer.is_global_zero and requeue()
    trainer.strategy.barrier("after")
    return again


def requeue() -> bool:
    """Have SLURM start this job again, with the same command; return whether it will.

    SLURM's signals do not say why they come. A job that SLURM is already starting again is not asked for once more, and
    one that was cancelled is not asked for at all.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None or shutil.which("scontrol") is None:
        return False
    known = _known(job)
    if int(known.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return True  # after `scontrol requeue`, or where another job takes the nodes
    ending = known.get("JobState") in ("COMPLETING", "CANCELLED")
    if ending and known.get("Reason") != "TimeLimit":
        return False  # after `scancel`
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"scontrol requeue {job} failed: {' '.join(done.stderr.split())}")
    return done.returncode == 0


def _known(job: str) -> dict[str, str]:
    """Return what SLURM says of a job; nothing where it does not answer."""
    said = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, check=False)
    return dict(re.findall(r"(JobState|Reason|Restarts)=(\w+)", said.stdout))
