"""The real commands, run as a user would run them."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
from suffuse.testing import command as inside
from suffuse.testing.command import as_command, status

BIN = Path(sys.executable).parent
TINY = [
    "modality=image", "trainer=cpu", "model.width=16", "model.blocks=1", "data.batch_size=16", "steps=6",
    "every.log=1", "every.validate=3", "every.preview=3", "every.checkpoint=2", "preview_num=4", "val_num=20",
    "num=4", "metrics=none", "sampler.steps=3",
]  # fmt: skip
"""A run of seconds that still does everything a run does."""

Command = Callable[..., subprocess.CompletedProcess[str]]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command: one thread, byte code kept, no network, no W&B account."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "WANDB_API_KEY")}
    env |= {"OMP_NUM_THREADS": "1", "NETRC": "/nonexistent", "PATH": f"{BIN}{os.pathsep}{env['PATH']}"}
    return env | more


@pytest.fixture
def tiny() -> list[str]:
    """Return the words of a tiny training run."""
    return list(TINY)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Return a function that runs a console script in `tmp_path`."""

    def run(*words: str, cwd: Path = tmp_path, timeout: float = 900, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]], cwd=cwd, capture_output=True, text=True, check=False,
            timeout=timeout, env=environment(**env),
        )  # fmt: skip

    return run


@pytest.fixture
def local(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Return a function like `command` that runs the script in this process, and sees what libraries print too."""

    def run(*words: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with as_command(cwd, *words):
            code = status(words[0])
        return subprocess.CompletedProcess(list(words), code, *capfd.readouterr())

    return run


def _forks_cleanly() -> bool:
    """Return whether gradients work in this copy: not where an earlier test made torch start threads for them."""
    import torch

    try:
        torch.zeros(1, requires_grad=True).sum().backward()
    except RuntimeError:
        return False
    return True


class Forked:
    """A console script in a process of its own that is a copy of this one: torch is loaded, a start takes no time.

    A subset of `subprocess.Popen`: signals reach it, and it can be killed. Standard output and error are one text.
    """

    def __init__(self, folder: Path, *words: str, **env: str) -> None:
        import suffuse.jobs  # noqa: F401  (loaded once, before the fork)

        self.log = folder / f"{words[0]}-{next(_COUNT)}.log"
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._become(folder, words, env)

    def _become(self, folder: Path, words: tuple[str, ...], env: dict[str, str]) -> NoReturn:
        code = 1
        try:
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(file, number)
                setattr(sys, name, os.fdopen(number, "w", buffering=1))
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            wanted = environment(**env)
            os.environ.clear()
            os.environ.update(wanted)
            sys.modules["__main__"] = ModuleType("__main__")  # else other ranks would start pytest
            if "RANK" in env:  # which Lightning reads when it is imported
                from lightning.fabric.utilities.rank_zero import rank_zero_only

                rank_zero_only.rank = int(env["RANK"])
            if not _forks_cleanly():
                os.chdir(folder)
                script = str(Path(sys.executable).parent / words[0])
                os.execv(script, [script, *words[1:]])
            with as_command(folder, *words):
                code = status(words[0])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """Return the status, negative for a signal, or None while it runs."""
        if self.returncode is None:
            pid, ended = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(ended) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 900) -> tuple[str, None]:
        """Wait for the end and return what was printed; kill it after `timeout` seconds."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"no end after {timeout} s: {self.log.read_text()}")
            time.sleep(0.01)
        return self.log.read_text(), None


_COUNT = itertools.count()


@pytest.fixture(scope="session")
def forked() -> type[Forked]:
    """Return `Forked`."""
    return Forked


@pytest.fixture(scope="session")
def start() -> Callable[..., list[Forked]]:
    """Return a function that starts all ranks of a command, as torchrun would on so many nodes."""

    def ranks(
        folder: Path, world: int, *words: str, command: str = "train", nodes: int = 1, **env: str
    ) -> list[Forked]:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        each = world // nodes
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        common |= {"LOCAL_WORLD_SIZE": str(each), "TORCHELASTIC_RUN_ID": "test", **env}
        return [
            Forked(folder, command, *words, RANK=str(r), LOCAL_RANK=str(r % each), GROUP_RANK=str(r // each), **common)
            for r in range(world)
        ]

    return ranks


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny finished run; treat it as read-only."""
    folder = tmp_path_factory.mktemp("trained")
    done = inside(folder, "train", *TINY, "name=tiny")
    assert done.returncode == 0, done.stderr
    (folder / "train.out").write_text(done.stdout)
    (folder / "train.err").write_text(done.stderr)
    return folder / "outputs" / "image" / "tiny"


@pytest.fixture(scope="session", name="environment")
def _environment() -> Callable[..., dict[str, str]]:
    """Return the function that makes a command's environment."""
    return environment
