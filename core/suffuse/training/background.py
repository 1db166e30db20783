"""Background: files are written by a thread while the training goes on, in the order in which they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Background"]


class Background:
    """A queue of things to write; without a thread each is written at once.

    At most one checkpoint waits: the next waits for the one before, which bounds the memory that copies take.

    Arguments:
        threaded: Write in a thread.
    """

    def __init__(self, threaded: bool = False) -> None:
        self.threaded = threaded
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: list[Future[None]] = []

    def submit(self, write: Callable[[], None]) -> None:
        """Do `write` after everything before it; an error of the thread is raised by `drain`, or the next `begin`."""
        if not self.threaded:
            write()
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._waiting.append(self._pool.submit(write))

    def begin(self) -> None:
        """Wait until what was asked for before is written."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.result()

    def drain(self) -> None:
        """Wait until everything is written, and end the thread."""
        try:
            self.begin()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
