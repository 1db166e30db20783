r"""Picture: Riffusion's spectrogram images, 8 bits a pixel.

p = 255 (1 - (m / m_max)^0.25) for mel amplitudes m of 512 bins from 0 to 10 kHz: dark where loud, low frequencies at
the bottom. The greatest amplitude is written in the picture's EXIF (tag 11080, "max value"), as Riffusion does, and so
are rate, window, hop and limits. The state is the picture in [-1, 1]: (B, C, bins, frames); stereo uses the green and
blue channels of the file. "Riffusion: Stable diffusion for real-time music generation", Forsgren and Martiros 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from suffuse.errors import ConfigError, DataError
from suffuse.state import State
from torch import Tensor

from suffuse_audio import dsp
from suffuse_audio.codec.base import AudioCodec, counts
from suffuse_audio.codec.griffin_lim import griffin_lim
from suffuse_audio.codec.mel import inverse_mel

__all__ = ["Picture"]

TAGS = {"sample_rate": 11000, "stereo": 11005, "step_size_ms": 11010, "window_duration_ms": 11020,
        "padded_duration_ms": 11030, "num_frequencies": 11040, "min_frequency": 11050, "max_frequency": 11060,
        "power_for_image": 11070, "max_value": 11080}  # fmt: skip
"""Numbers of the EXIF fields."""


class Picture(AudioCodec):
    """Spectrogram images.

    Arguments:
        bins: Mel bins, the height of a picture.
        hop: Samples between columns; the length must be a multiple.
        size: Samples of a window.
        power: Exponent of the amplitudes.
        levels: 256 rounds the state to what a file can hold; 0 does not round.
        iterations: Of Griffin and Lim.
        options: Arguments of `AudioCodec`.

    Raises:
        ConfigError: For sizes that do not fit together.
    """

    tolerance = float("inf")
    decibels = 4.0

    def __init__(
        self, bins: int = 128, hop: int = 128, size: int = 1024, power: float = 0.25, levels: int = 256,
        iterations: int = 60, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        counts(size=size, hop=hop, bins=bins, iterations=iterations)
        if self.samples % hop or hop > size // 2:
            raise ConfigError(
                f"codec.hop={hop} must divide the {self.samples} samples of a sound, and be at most size/2"
            )
        if not 0 < power <= 1:
            raise ConfigError(f"codec.power={power} must be above 0 and at most 1")
        self.bins, self.hop, self.size, self.power, self.levels = bins, hop, size, power, levels
        self.iterations = iterations
        self.frame, self.overlap = hop, (size - hop) // 2
        self._most = float(self.stats.get("most", 1.0))

    @property
    def least(self) -> int:
        """A window, beyond whose half the ends are mirrored."""
        return self.size

    def statistics(self, x: Tensor) -> Mapping[str, Any]:
        """Return the amplitude that is white's opposite: one for the whole set, so that loudness is kept."""
        return {"most": round(max(self._amplitudes(x).max().item(), 1e-6), 6)}

    def analyse(self, x: Tensor) -> Tensor:
        """Return pictures in [-1, 1], (B, C, bins, N / hop); row 0 is the highest frequency, -1 the loudest."""
        level = 1 - (self._amplitudes(x) / self._most).clamp(0, 1) ** self.power
        if self.levels:
            level = (level * (self.levels - 1)).round() / (self.levels - 1)
        return 2 * level.flip(-2) - 1

    def synthesise(self, state: Tensor) -> Tensor:
        """Return samples (B, C, N) that have about this picture."""
        level = ((state.float() + 1) / 2).clamp(0, 1).flip(-2)
        amplitudes = (1 - level) ** (1 / self.power) * self._most
        spectrum = inverse_mel(amplitudes, self.rate, self.size)
        return griffin_lim(spectrum, self.size, self.hop, self.iterations, state.shape[-1] * self.hop)

    def open(self, init: str, mask: str | None) -> tuple[State, State | None]:
        """Return the state of a sound file, or of a spectrogram image, and where it is kept; see `AudioCodec.open`."""
        path = Path(init).expanduser()
        if path.suffix.lower() != ".png" or not path.is_file():
            return super().open(init, mask)
        found = self.read(path)[None, : self.channels].expand(1, self.channels, -1, -1)
        length = self._length_of(found.shape[-1] * self.hop, init)
        columns = self.whole(length) // self.hop
        found = found[..., :columns]
        found = torch.nn.functional.pad(found, (0, columns - found.shape[-1]), value=1.0)  # white is silence
        if not self.lengths:
            return found, None if mask is None else self.kept(mask, found)
        lengths = torch.tensor([length])
        there = torch.arange(columns) < self._columns(lengths)[:, None]
        state = {"x": (found * there[:, None, None]).movedim(-1, 2), "mask": there, "length": lengths}
        return state, None if mask is None else self._kept_fields(mask, state)

    def write(self, state: Tensor, path: Path) -> Path:
        """Write the picture of one sound (C, bins, frames) with its EXIF; return the path."""
        from PIL import Image

        level = (((state.float() + 1) / 2).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        stereo = len(level) == 2
        planes = [np.full_like(level[0], 255), level[0], level[1]] if stereo else [level[0]] * 3
        image = Image.fromarray(np.stack(planes, -1), mode="RGB")
        exif = image.getexif()
        milliseconds = 1000 / self.rate
        values = {
            "sample_rate": self.rate, "stereo": stereo, "step_size_ms": round(self.hop * milliseconds),
            "window_duration_ms": round(self.size * milliseconds),
            "padded_duration_ms": round(self.size * milliseconds),
            "num_frequencies": self.bins, "min_frequency": 0, "max_frequency": self.rate // 2,
            "power_for_image": self.power, "max_value": self._most,
        }  # fmt: skip
        for name, value in values.items():
            exif[TAGS[name]] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        image.save(temporary, format="PNG", exif=exif)
        temporary.replace(path)
        return path

    def read(self, path: Path) -> Tensor:
        """Return the state (C, bins, frames) of a picture, at this codec's scale.

        Raises:
            DataError: When it is no picture, or of another height.
        """
        from PIL import Image

        try:
            with Image.open(path) as image:
                exif, pixels = dict(image.getexif()), np.asarray(image.convert("RGB"), dtype=np.float32)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: no spectrogram image ({' '.join(str(error).split())[:100]})") from error
        if pixels.shape[0] != self.bins:
            raise DataError(
                f"{path}: {pixels.shape[0]} pixels high, but codec.bins={self.bins}; set it to the picture's"
            )
        stereo = bool(exif.get(TAGS["stereo"], False))
        planes = pixels[..., 1:].transpose(2, 0, 1) if stereo else pixels.mean(-1)[None]
        level = torch.from_numpy(np.ascontiguousarray(planes)) / 255
        # Another picture's loudest is not ours: amplitudes are what is compared.
        scale = (float(exif.get(TAGS["max_value"], self._most)) / self._most) ** self.power
        return 2 * (1 - ((1 - level) * scale).clamp(0, 1)) - 1

    def _amplitudes(self, x: Tensor) -> Tensor:
        found: Tensor = dsp.mel(self.rate, self.size, self.hop, self.bins, 1.0).to(x.device)(x.float())
        return found[..., : x.shape[-1] // self.hop]
