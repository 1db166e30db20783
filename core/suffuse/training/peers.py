"""Peers: the ranks of a job hold a line to the first one, so that when one dies the others say so and end.

A collective does not tell: over NCCL it waits for half an hour, a rank that waits for another's files as long, and
before all ranks have met nobody is listening. A connection does, whoever started the ranks: the system closes it when a
process ends, however that happens. Processes that this one started, or that started this one, are looked at directly.

What a rank that has lost another raises is turned into one line; one that hangs is ended after `GRACE` seconds. The
first rank speaks, and where it is the one that was lost, the second. A network that is gone says nothing: the system
asks the other end of a connection now and then, and gives it up after a minute and a half.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from suffuse.cli import fail
from suffuse.errors import SuffuseError

__all__ = ["Peers"]

GRACE = 10.0
"""Seconds a rank has to end by itself once another is lost."""
_PARENT = "SUFFUSE_PARENT"
_BROKEN = ("gloo", "NCCL", "onnection", "Broken pipe", "TCPStore")
_NETWORK = ("Network is unreachable", "No route to host", "Connection timed out")
_BYE, _FAILED, _LOST = "bye", "failed", "lost"


class Peers(Callback):
    """What a rank knows of the others.

    Arguments:
        task: The command, for the line.
        remedy: Returns what is left of the work, and how to go on.
    """

    def __init__(self, task: str, remedy: Callable[[], str]) -> None:
        self.task, self.remedy = task, remedy
        self.rank = self._local = 0
        self.started: list[Any] = []
        self._names: dict[int, str] = {}
        self._lines: dict[int, socket.socket] = {}
        self._over, self._met = threading.Event(), False
        self._lost, self._found = threading.Event(), ""
        self._losing, self._speaking, self._silent = threading.Lock(), threading.Lock(), False

    def attach(self, trainer: Trainer) -> None:
        """Start the ranks of `trainer` under this eye; does nothing for one process."""
        if not isinstance(trainer.strategy, ParallelStrategy) or trainer.world_size == 1:
            return
        strategy: Any = trainer.strategy
        self.rank, self._local = trainer.global_rank, trainer.local_rank
        environment: Any = strategy.cluster_environment
        strategy._launcher = _Launcher(self, environment, strategy.num_processes, strategy.num_nodes)
        parent = os.environ.pop(_PARENT, None)
        if parent is not None:
            self._in_thread(self._watch_parent, int(parent))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Meet the others, once they can be asked where."""
        if trainer.world_size == 1:
            return
        self.rank, world = trainer.global_rank, trainer.world_size
        server = socket.create_server(("", 0)) if self.rank == 0 else None
        said: Any = None if server is None else (server.getsockname()[1], secrets.token_hex(8), _name())
        port, token, name = trainer.strategy.broadcast(said)
        self._names[0], self._met = name, True
        if server is not None:
            self._in_thread(self._serve, server, token, world)
            return
        environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        try:
            line = socket.create_connection((environment.main_address, port), timeout=30)
        except OSError:
            return  # a network that lets nothing but collectives through
        _keep_alive(line)
        self._lines[0] = line
        self._send(line, f"{token} {self.rank} {_name()}")
        self._in_thread(self._listen, line)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take leave."""
        self._leave(_BYE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others that this rank ends with an error."""
        if not self._lost.is_set():
            self._leave(_FAILED)

    def explain(self, error: Exception) -> None:
        """End with one line when an error comes from a lost rank or a lost network; else return."""
        if not _is_broken(error):
            return
        if not self._lost.wait(5) and self._losing.acquire(blocking=False):
            why = next((text for text in _NETWORK if text in str(error)), None)
            if why is None:
                return
            # Nobody knows yet which rank it was; one process of each node says so.
            self._found, self._silent = f"the line to other ranks broke ({why})", self._local != 0
        self._speak()
        raise SystemExit(1) from error

    def watch_started(self) -> None:
        """Look after the processes that this one has started, from before they are met."""
        self._in_thread(self._watch_started)

    # Threads.

    def _in_thread(self, run: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=run, args=args, name="peers", daemon=True).start()

    def _serve(self, server: socket.socket, token: str, world: int) -> None:
        """Take the lines of all other ranks."""
        with server:
            server.settimeout(0.5)
            while not self._over.is_set() and len(self._names) < world:
                with contextlib.suppress(TimeoutError):
                    line, _ = server.accept()
                    self._in_thread(self._hear, line, token)

    def _hear(self, line: socket.socket, token: str) -> None:
        """Wait for what another rank says to the first, or for its end."""
        line.settimeout(None)
        _keep_alive(line)
        said = _sentences(line)
        words = next(said, "").split()
        if len(words) < 3 or words[0] != token:
            return  # a stranger
        rank = int(words[1])
        self._lines[rank], self._names[rank] = line, " ".join(words[2:])
        word = next(said, "")
        self._lines.pop(rank, None)
        if word != _BYE:
            self._lose(rank, word == _FAILED)

    def _listen(self, line: socket.socket) -> None:
        """Wait for what the first rank says, or for its end."""
        line.settimeout(None)
        words = next(_sentences(line), "").split()
        if words[:1] == [_LOST]:
            self._lose(int(words[1]), words[2] == _FAILED)
        elif words[:1] != [_BYE]:
            self._lose(0, words[:1] == [_FAILED])

    def _watch_started(self) -> None:
        while not self._over.wait(0.2):
            for number, process in enumerate(self.started, 1):
                if process.poll():
                    self._lose(number + self.rank, False)
                    return
            if self.started and all(process.poll() == 0 for process in self.started):
                return

    def _watch_parent(self, parent: int) -> None:
        while not self._over.is_set():
            if os.getppid() != parent:
                self._lose(self.rank - int(os.environ.get("LOCAL_RANK", "0")), False)
                return
            time.sleep(0.2)

    def _lose(self, rank: int, failed: bool) -> None:
        """Note that a rank is lost, tell the others, and end this process if it does not end by itself."""
        if self._over.is_set() or not self._losing.acquire(blocking=False):
            return
        how = self._end_of(rank, failed)
        self._found = f"rank {rank} ({self._names.get(rank, 'not met yet')}) {how}"
        self._silent = self.rank != (1 if rank == 0 else 0) or (rank == 0 and failed)
        self._lost.set()
        for line in list(self._lines.values()):
            self._send(line, f"{_LOST} {rank} {_FAILED if failed else 'died'}")
        time.sleep(GRACE if self._met else 1.0)
        self._speak()
        for process in (*self.started, *multiprocessing.active_children()):
            process.kill()
        os._exit(1)

    def _end_of(self, rank: int, failed: bool) -> str:
        if failed:
            return "ended with an error of its own, which it has named"
        code = None
        number = rank - self.rank
        if 0 < number <= len(self.started):
            with contextlib.suppress(Exception):
                code = self.started[number - 1].wait(2)
        if code == -signal.SIGKILL:
            return "was killed, perhaps for want of memory"
        if code is not None and code < 0:
            return f"was ended by signal {-code}"
        return "was lost" if code is None else f"ended with status {code}"

    def _speak(self) -> None:
        """Print the line, once."""
        if not self._speaking.acquire(blocking=False) or self._silent:
            return
        with contextlib.suppress(SystemExit):
            fail(self.task, SuffuseError(f"{self._found}; {self.remedy()}"))

    def _leave(self, word: str) -> None:
        self._over.set()
        lines, self._lines = self._lines, {}
        for line in lines.values():
            self._send(line, word)
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_WR)

    def _send(self, line: socket.socket, text: str) -> None:
        with contextlib.suppress(OSError):  # it is gone
            line.sendall(f"{text}\n".encode())


class _Launcher(_SubprocessScriptLauncher):
    """Lightning's, which starts a rank per device; theirs ends this process without a word when one of them dies."""

    def __init__(self, peers: Peers, environment: Any, processes: int, nodes: int) -> None:
        super().__init__(environment, processes, nodes)
        self.peers = peers

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other ranks of this node, unless somebody else does, and call `function`."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[_PARENT] = str(os.getpid())
            self._call_children_scripts()
            del os.environ[_PARENT]
            self.peers.started = self.procs
            self.peers.watch_started()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            self.peers.explain(error)
            raise


def _is_broken(error: Exception) -> bool:
    """Return whether an error may be what a collective raises when another rank is gone."""
    known = isinstance(error, ConnectionError | torch.distributed.DistError)
    return known or (isinstance(error, RuntimeError) and any(word in str(error) for word in _BROKEN))


def _name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _sentences(line: socket.socket) -> Iterator[str]:
    """Yield what is said, until the other end is gone."""
    with contextlib.suppress(OSError), line.makefile(errors="replace") as file:
        for text in file:
            yield text.strip()


def _keep_alive(line: socket.socket) -> None:
    """Let the system find out within a minute or two that the other end's machine is gone."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
