"""Parts: the batches of a sampling job on disk until all are there, so that one that was stopped goes on.

``OUT/.parts/`` holds one file per batch, each whole, written by whichever process drew it, and ``job.json``, which says
what job they are of: parts of another job are removed. Processes of many nodes need a common disk.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from suffuse import checkpoint as files
from suffuse.disk import named

__all__ = ["Parts"]

FOLDER = ".parts"


class Parts:
    """The parts of a job.

    Arguments:
        out: Directory of the samples.
        job: What decides the samples and how they are cut into batches, as plain values.
    """

    def __init__(self, out: Path, job: Mapping[str, Any]) -> None:
        self.out, self.text = out, json.dumps(job, sort_keys=True, default=str)

    @property
    def folder(self) -> Path:
        """Where the parts are."""
        return self.out / FOLDER

    def find(self) -> None:
        """Move to a directory beside this one where the same job was stopped, if there is one."""
        for about in sorted(self.out.parent.glob(f"*/{FOLDER}/job.json")):
            if about.read_text() == self.text:
                self.out = about.parents[1]
                return

    def missing(self, count: int) -> list[int]:
        """Return which of so many parts are still to be drawn; removes those of another job."""
        about = self.folder / "job.json"
        if self.folder.is_dir() and not (about.is_file() and about.read_text() == self.text):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with named(about):
            about.write_text(self.text)
        return [number for number in range(count) if not self._file(number).is_file()]

    def write(self, number: int, drawn: Any) -> None:
        """Keep a part."""
        files.write({"drawn": drawn}, self._file(number), "give the same command again")

    def read(self, count: int) -> list[Any]:
        """Return all parts, in order."""
        return [torch.load(self._file(number), weights_only=True)["drawn"] for number in range(count)]

    def abandon(self) -> None:
        """Leave nothing behind of a job that failed before it drew anything."""
        if not any(self.folder.glob("part-*.pt")):
            self.remove()
            with contextlib.suppress(OSError):  # holds something of the user's, or was never made
                self.out.rmdir()

    def remove(self) -> None:
        """Remove the parts, once the samples are written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.pt"
