"""IDX: the file format of MNIST, plain or gzipped.

A file is the bytes 0, 0, type, d, then d big-endian uint32 sizes, then the values in row-major order; the type of
unsigned bytes is 0x08. Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch

from suffuse.errors import DataError

__all__ = ["find", "read"]

LIMIT = 2**30
"""Most bytes of a file: a few kilobytes of gzip may hold any number."""


def find(folder: Path, name: str) -> Path | None:
    """Return the file `name` or `name` plus ``.gz`` in `folder`, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read(path: Path, dims: int) -> torch.Tensor:
    """Return the bytes of an IDX file as a uint8 tensor of `dims` dimensions.

    Raises:
        DataError: When the file is truncated, is damaged, or holds something else.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data.root: cannot read {path} ({error}); fetch it again") from error
    if len(data) > LIMIT:
        raise DataError(f"data.root: {path} unpacks to more than {LIMIT >> 20} MiB, which no IDX file of ours does")
    start = 4 + 4 * dims
    if len(data) < start or data[:4] != bytes((0, 0, 8, dims)):
        raise DataError(f"data.root: {path} is no IDX file of {dims}-dimensional bytes; fetch it again")
    shape = struct.unpack(f">{dims}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"data.root: {path} should hold {math.prod(shape)} values and holds {len(data) - start}; fetch it again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).view(shape)
