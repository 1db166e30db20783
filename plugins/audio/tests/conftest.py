"""Small sound files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile


def tone(f: float, seconds: float = 0.5, rate: int = 8000, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """Return a sine (samples, channels); channel c is c octaves up and softer."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([level * 0.4**c * np.sin(2 * np.pi * f * 2**c * t) for c in range(channels)], 1)


@pytest.fixture
def tones(tmp_path: Path) -> Path:
    """A folder with ten low and ten high tones of various rates, lengths and formats, by subfolder."""
    for name, f in (("high", 1000.0), ("low", 200.0)):
        (tmp_path / "tones" / name).mkdir(parents=True)
        for i in range(10):
            rate, end = (8000, 11025, 16000, 44100)[i % 4], ("wav", "flac", "ogg")[i % 3]
            soundfile.write(tmp_path / "tones" / name / f"{i:02d}.{end}", tone(f, 0.3 + 0.1 * i, rate, 1 + i % 2), rate)
    return tmp_path / "tones"
