"""Small picture files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder with 20 red and 20 blue pictures of 8 x 6, whose green channel is their number."""
    for name, rgb in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(20):
            array = np.full((6, 8, 3), rgb, np.uint8)
            array[..., 1] = number
            Image.fromarray(array).save(tmp_path / "colours" / name / f"{number:02d}.png")
    return tmp_path / "colours"
