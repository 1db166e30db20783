"""What the tests of several nodes share: a run of seconds, its losses, and real processes of which none is left."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from suffuse import checkpoint
from suffuse.testing import command as inside

RUN = Path("outputs/image/run")
LAST = RUN / "checkpoints/last.ckpt"
STEPS = 80
ROWS = 8
"""Rows of the global batch."""
WORDS = [
    "modality=image", "trainer.accelerator=cpu", "model=dit", "model.width=16", "model.depth=2", "model.heads=2",
    "every.log=1", "every.validate=0", "every.preview=0", "every.checkpoint=4", "preview_num=2", "val_num=8",
    "num=2", "metrics=none", "sampler.steps=2", "name=run", "optimizer.lr=2e-3", "ckpt=auto",
]  # fmt: skip


class Runs:
    """A run on one process or on two nodes of one, with the same global batch, and what is left of it."""

    last = LAST
    steps = STEPS

    def words(self, trainer: str, nodes: int = 1, steps: int = STEPS) -> list[str]:
        """Return the words after ``train``."""
        return [*WORDS, f"trainer={trainer}", f"data.batch_size={ROWS // nodes}", f"steps={steps}"]

    def losses(self, folder: Path) -> list[float]:
        """Return the loss of every step."""
        with (folder / RUN / "metrics.csv").open() as file:
            return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]

    def same(self, a: Path, b: Path) -> None:
        """Compare weights, averages, optimizer, losses and samples of two runs, bit for bit."""
        one, two = (checkpoint.read(folder / LAST) for folder in (a, b))
        for kind in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "training"):
            torch.testing.assert_close(two[kind], one[kind], rtol=0, atol=0)
        assert self.losses(a) == self.losses(b)
        drawn = [sorted((folder / RUN / "samples/final").glob("*.png")) for folder in (a, b)]
        assert [p.read_bytes() for p in drawn[0]] == [p.read_bytes() for p in drawn[1]] and drawn[0]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="session")
def port() -> Callable[[], int]:
    """Return `free_port`."""
    return free_port


@pytest.fixture(scope="session")
def agent() -> Callable[..., list[str]]:
    """Return a function that returns the command of one of two nodes, which meet at an address."""

    def words(meet: str, *more: str, address: str = "127.0.0.1", restarts: int = 0, host: bool = False) -> list[str]:
        return [
            str(Path(sys.executable).with_name("torchrun")), "--nnodes", "2", "--nproc-per-node", "1",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", meet, "--local-addr", address,
            *(["--rdzv-conf", "is_host=1"] if host else []),
            "--max-restarts", str(restarts), "--no-python", "train", *more, "trainer.num_nodes=2", "devices=1",
        ]  # fmt: skip

    return words


@pytest.fixture(scope="session")
def started() -> Callable[[int], list[int]]:
    """Return `below`."""
    return below


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Return a function that waits until something is true, or one of some programs has ended."""

    def wait(found: Callable[[], Any], *programs: Started, seconds: float = 900) -> None:
        end = time.monotonic() + seconds
        while all(program.poll() is None for program in programs) and not found():
            assert time.monotonic() < end, "\n".join(program.log.read_text() for program in programs)
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def runs() -> Runs:
    """Return `Runs`."""
    return Runs()


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, runs: Runs) -> Path:
    """Return the folder of a run on one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = inside(folder, "train", *runs.words("cpu"))
    assert done.returncode == 0, done.stderr
    return folder


class Started:
    """A program in a session of its own, with all it prints in one file."""

    def __init__(self, log: Path, words: Sequence[str], folder: Path, env: dict[str, str]) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                list(words), cwd=folder, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.pid, self.poll = self.process.pid, self.process.poll

    def end(self, seconds: float = 900) -> tuple[int, str]:
        """Wait for its end; return its status and what it printed."""
        code = self.process.wait(seconds)
        return code, self.log.read_text()

    def stop(self, seconds: float = 20) -> None:
        """End it, and all that it has started."""
        others = below(self.pid)
        if self.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        for pid in (self.pid, *others):
            if self.process.returncode is None or pid != self.pid:
                kill(pid)
        self.process.wait()


def below(pid: int) -> list[int]:
    """Return what runs of the processes that a process has started, and that they have, the oldest first."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # of one that has just ended
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents.setdefault(int(parent), []).append(int(stat.parent.name))
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return sorted(found)


def kill(pid: int) -> None:
    """Kill a process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def launch(environment: Callable[..., dict[str, str]]) -> Iterator[Callable[..., Started]]:
    """Return a function that starts a program in a folder; what still runs when the test is over is ended."""
    started: list[Started] = []

    def begin(folder: Path, *words: str, **env: str) -> Started:
        folder.mkdir(parents=True, exist_ok=True)
        started.append(Started(folder / f"{len(started)}.log", words, folder, environment(**env)))
        return started[-1]

    yield begin
    for one in started:
        one.stop()


NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo")
MISSING = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
CONF = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs={cpus} Gres=gpu:1
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
PartitionName=gpu Nodes=ALL
GresTypes=gpu
"""
"""Two nodes are two daemons; what counts as a GPU is none."""
SCRIPT = """#!/bin/sh
#SBATCH --nodes 2 --ntasks-per-node 1 --cpus-per-task 1 --output job.log --open-mode append
#SBATCH --time 60 --requeue --signal USR1@120
srun train {words}
"""
"""The script of the guide."""


class Cluster:
    """SLURM's daemons, with all their files in a folder.

    Arguments:
        folder: Where they keep their files.
        env: The environment of every command.
    """

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env | {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1"}
        self.env["PATH"] += ":/usr/sbin:/sbin"
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self, ports: list[int]) -> None:
        """Start the daemons and wait for the nodes."""
        host, cpus = socket.gethostname().split(".")[0], os.cpu_count()
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(CONF.format(folder=self.folder, host=host, ports=ports, cpus=cpus))
        (self.folder / "gres.conf").write_text("NodeName=node[1-2] Name=gpu File=/dev/null\n")
        (self.folder / "key").write_bytes(os.urandom(1024))
        (self.folder / "key").chmod(0o600)
        files = {"socket": "munge", "key-file": "key", "pid-file": "munge.pid", "log-file": "log", "seed-file": "seed"}
        self._daemon("munged", "--foreground", "--force", *(f"--{k}={self.folder / v}" for k, v in files.items()))
        self._wait(lambda: (self.folder / "munge").exists())
        self._daemon("slurmctld", "-D", "-i")
        for node in ("node1", "node2"):
            self._daemon("slurmd", "-D", "-N", node)
        self._wait(lambda: self.ask("sinfo", "-h", "-o", "%T %D") == "idle 2")

    def _daemon(self, *words: str) -> None:
        with (self.folder / f"daemon-{len(self.daemons)}.log").open("w") as log:
            self.daemons.append(subprocess.Popen(words, env=self.env, stdout=log, stderr=log))

    def _wait(self, found: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not found():
            said = "\n".join(log.read_text()[-800:] for log in sorted(self.folder.glob("daemon-*.log")))
            assert time.monotonic() < end and all(daemon.poll() is None for daemon in self.daemons), said
            time.sleep(0.2)

    def stop(self) -> None:
        """End what runs, then the daemons, the last one first."""
        self.ask("scancel", "--signal", "KILL", "--full", "--user", "root")
        self.ask("scancel", "--user", "root")
        end = time.monotonic() + 60
        while self.ask("squeue", "-h") and time.monotonic() < end:
            time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def ask(self, *words: str, folder: Path | None = None) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(words, cwd=folder, env=self.env, capture_output=True, text=True, check=False, timeout=900)
        return (done.stdout + done.stderr).strip()

    def submit(self, folder: Path, words: list[str], *options: str) -> str:
        """Submit the script of the guide for a run in a folder; return the job's number."""
        (folder / "job.sh").write_text(SCRIPT.format(words=" ".join(words)))
        return self.ask("sbatch", "--parsable", *options, "job.sh", folder=folder)

    def state(self, job: str) -> str:
        """Return the state of a job, as SLURM calls it."""
        return self.ask("scontrol", "show", "job", "-o", job).partition("JobState=")[2].split(" ")[0]

    def until(self, job: str, found: Callable[[], object], log: Path, seconds: float = 900) -> None:
        """Wait until something is true, or the job has ended."""
        end = time.monotonic() + seconds
        while self.state(job) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING") and not found():
            assert time.monotonic() < end, log.read_text() if log.exists() else self.ask("squeue")
            time.sleep(0.1)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, environment: Callable[..., dict[str, str]]) -> Iterator[Cluster]:
    """Return SLURM on two nodes, each of which is a daemon on this machine."""
    if MISSING:
        pytest.skip(f"no {', '.join(MISSING)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons start jobs as root")
    found, first = Cluster(tmp_path_factory.mktemp("slurm"), environment()), free_port()
    try:
        found.start([free_port(), first, first + 1])
        yield found
    finally:
        found.stop()
