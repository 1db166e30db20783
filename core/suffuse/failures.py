"""Failures: what goes wrong while a job runs and a user can mend (memory, disk, a lost worker), in one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from suffuse.disk import is_full
from suffuse.errors import SuffuseError

__all__ = ["readable"]

_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def readable(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a user can mend into a `SuffuseError` that says how; everything else passes with its traceback.

    Arguments:
        cfg: The job's config, whose values are named.
    """
    try:
        yield
    except SuffuseError as error:
        raise _unwrapped(error) from error.__cause__
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
            raise SuffuseError(f"out of memory: {_less(cfg)}, or set trainer.precision=bf16-mixed") from error
        if text.startswith("DataLoader worker"):
            # Killed from outside, as a rule by the system for want of memory; what it raised itself comes as it is.
            workers = (cfg.get("data") or {}).get("workers")
            raise SuffuseError(
                f"a process that loads data was killed, perhaps for want of memory: lower data.workers (now {workers}) "
                "and continue with ckpt=auto"
            ) from error
        raise
    except OSError as error:
        what = error.filename2 or error.filename or "a file"
        if is_full(error, Path()):
            raise SuffuseError(
                f"no space left on the disk while writing {what}; free some space and {_again(cfg)}"
            ) from error
        if error.errno in _REFUSED:
            raise SuffuseError(f"{what}: {error.strerror}; name a folder where you may read and write") from error
        raise


def _unwrapped(error: SuffuseError) -> SuffuseError:
    """Return an error as it was raised in a process that loads data, which hands on its traceback as text."""
    kind, text = type(error), str(error)
    if not text.startswith("Caught ") or "Original Traceback" not in text:
        return error
    return kind(text.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip())


def _again(cfg: Mapping[str, Any]) -> str:
    """Return how to go on once something was mended."""
    return "give the same command again" if "batch_size" in cfg else "continue with ckpt=auto"


def _less(cfg: Mapping[str, Any]) -> str:
    """Return what to lower for want of memory."""
    if "batch_size" in cfg:
        return f"lower batch_size (now {cfg['batch_size']})"
    size = cfg["data"].get("batch_size")
    return f"lower data.batch_size (now {size}) and raise trainer.accumulate by as much, take a smaller model"
