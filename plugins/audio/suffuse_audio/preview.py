"""Preview: sounds as WAV files, as one sheet of waveforms and mel spectrograms, and as W&B audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from suffuse.errors import ConfigError
from torch import Tensor

from suffuse_audio.dsp import mel
from suffuse_audio.files import write
from suffuse_audio.ragged import alone, each

__all__ = ["Sounds", "loop"]


class Sounds:
    """Writes and shows sounds (C, N) in [-1, 1], each at its own length where they have one.

    A batch is a tensor, or as `suffuse_audio.ragged` says it.

    Arguments:
        format: ``wav`` or ``flac``, 16 bits.
        columns: Sounds per row of the sheet; by default as many as make it about as wide as high.
        most: Most sounds on the sheet.
        loop: Seconds of the end that are laid over the beginning, so that the file can be repeated without a seam; 0
            for none.
        joined: Also write all samples one after another as ``joined.wav``, with crossfades of this many seconds: the
            way from one prompt to another with ``interpolate=true``. 0 for none.
        about: Facts of the data, for the rate.

    Raises:
        ConfigError: For an unknown format, or numbers out of range.
    """

    def __init__(
        self, format: str = "wav", columns: int | None = None, most: int = 48, loop: float = 0.0, joined: float = 0.0,
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if format not in ("wav", "flac"):
            raise ConfigError(f"preview.format={format} is neither 'wav' nor 'flac'")
        for name, value, least in (
            ("columns", columns, 1),
            ("most", most, 1),
            ("loop", loop, 0),
            ("joined", joined, 0),
        ):
            if value is not None and (isinstance(value, bool) or value < least):
                raise ConfigError(f"preview.{name}={value} must be at least {least}")
        self.format, self.columns, self.most, self.loop, self.joined = format, columns, most, loop, joined
        self.rate = int((about or {}).get("rate", 8000))

    def save(self, x: Any, stem: Path) -> Path:
        """Write one sound to `stem` plus ``.wav`` and return that path."""
        return write(stem.with_name(f"{stem.name}.{self.format}"), self._finished(alone(x)), self.rate)

    def write(self, xs: Any, rows: Sequence[dict[str, Any]], out: Path) -> None:
        """Write one file per sound, with its caption, seed and checkpoint as tags; add length and peak to the rows."""
        xs = each(xs)
        for x, row in zip(xs, rows, strict=True):
            path = out / f"{row['index']:05d}.{self.format}"
            y = self._finished(x, kept="mask" in row)
            said = [f"seed {row['seed']}"] if "seed" in row else []
            note = ", ".join(said + [str(row[key]) for key in ("sampler", "checkpoint") if key in row])
            row["file"] = write(path, y, self.rate, title=row["caption"], comment=note, software="suffuse").name
            row |= {"seconds": round(y.shape[-1] / self.rate, 4), "peak": round(float(x.abs().max()), 4)}
        if self.joined:
            fade = round(self.joined * self.rate)
            whole = xs[0]
            for x in xs[1:]:
                whole = faded(whole, x, fade)
            write(out / "joined.wav", loop(whole, fade) if self.loop else whole, self.rate)

    def overview(self, xs: Any, captions: Sequence[str], path: Path) -> Path:
        """Write one PNG with waveform and mel spectrogram of each sound below its caption; return `path`."""
        import matplotlib
        from matplotlib.figure import Figure

        xs = [x.detach().float().cpu().nan_to_num() for x in each(xs)]
        if not len(xs) or len(xs) != len(captions):
            raise ValueError(f"{len(xs)} sounds and {len(captions)} captions make no sheet")
        xs, captions = xs[: self.most], captions[: self.most]
        longest = max(x.shape[-1] for x in xs)
        columns = min(len(xs), self.columns or max(1, round((len(xs) * 0.9) ** 0.5)))
        rows = -(-len(xs) // columns)
        with matplotlib.rc_context({"font.size": 6.5, "font.family": "DejaVu Sans"}):
            figure = Figure(figsize=(2.1 * columns, 1.75 * rows + 0.1), dpi=110, layout="constrained")
            grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[1, 2.4] * rows)
            for place in range(rows * columns):
                top, low = (
                    grid[2 * (place // columns)][place % columns],
                    grid[2 * (place // columns) + 1][place % columns],
                )
                for axes in (top, low):
                    axes.set_xticks([])
                    axes.set_yticks([])
                if place >= len(xs):
                    top.set_visible(False)
                    low.set_visible(False)
                    continue
                self._drawn(xs[place], captions[place], top, low, xs[place].shape[-1] / longest)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            figure.savefig(temporary, format="png")
        temporary.replace(path)
        return path

    def media(self, xs: Any, captions: Sequence[str]) -> list[Any]:
        """Return one ``wandb.Audio`` per sound."""
        import wandb  # takes a second that runs without W&B need not wait

        shown = [self._finished(x).detach().float().cpu().clamp(-1, 1).nan_to_num() for x in each(xs)]
        return [
            wandb.Audio(x.T.numpy(), sample_rate=self.rate, caption=caption)
            for x, caption in zip(shown, captions, strict=True)
        ]

    def _finished(self, x: Tensor, kept: bool = False) -> Tensor:
        """Return what goes into a file; where a part of the sound was `kept`, its level is too."""
        if x.ndim != 2:
            raise ConfigError(f"preview: a sample of shape {tuple(x.shape)} is no sound; it needs (channels, samples)")
        # Softer rather than clipped: guidance makes some samples louder than a file can be.
        if not kept:
            x = x / x.abs().max().nan_to_num().clamp(min=1.0)
        return loop(x, round(self.loop * self.rate)) if self.loop else x

    def _drawn(self, x: Tensor, caption: str, top: Any, low: Any, share: float) -> None:
        """Draw one sound; `share` is its part of the width, which the longest one fills."""
        mono = x.mean(0) / x.abs().max().clamp(min=1.0)
        # Least and greatest value of each pixel column: what a player shows.
        parts = np.array_split(mono.numpy(), min(160, len(mono)))
        at = np.arange(len(parts))
        top.fill_between(at, [p.min() for p in parts], [p.max() for p in parts], color="#2a6f97", linewidth=0.3)
        top.set_ylim(-1.05, 1.05)
        top.set_xlim(0, max(len(parts) - 1, 1) / share)
        top.set_title(_wrapped(caption), fontsize=6.5, pad=2)
        size = 2 ** round(np.log2(self.rate * 0.05))
        mono = torch.nn.functional.pad(mono, (0, max(0, size - len(mono))))  # a window is the least that has a spectrum
        power = mel(self.rate, size, max(1, min(size // 4, len(mono) // 100)), 80)(mono[None])[0]
        decibels = 10 * torch.log10(power + 1e-9)
        low.imshow(
            decibels.numpy(), origin="lower", aspect="auto", cmap="magma", vmin=float(decibels.max()) - 70,
            vmax=float(decibels.max()), interpolation="nearest",
        )  # fmt: skip
        low.set_xlim(-0.5, decibels.shape[1] / share - 0.5)


def loop(x: Tensor, fade: int) -> Tensor:
    """Return a sound (C, N) that repeats without a seam: its last `fade` samples are laid over the first."""
    fade = min(fade, x.shape[-1] // 2)
    if fade < 1:
        return x
    return torch.cat([_crossed(x[..., -fade:], x[..., :fade]), x[..., fade:-fade]], -1)


def faded(a: Tensor, b: Tensor, fade: int) -> Tensor:
    """Return two sounds one after the other, the end of the first laid over the beginning of the second."""
    fade = min(fade, a.shape[-1], b.shape[-1])
    if fade < 1:
        return torch.cat([a, b], -1)
    return torch.cat([a[..., :-fade], _crossed(a[..., -fade:], b[..., :fade]), b[..., fade:]], -1)


def _crossed(out: Tensor, into: Tensor) -> Tensor:
    """Return one stretch fading into another of the same length."""
    w = (torch.arange(out.shape[-1], device=out.device, dtype=out.dtype) + 0.5) / out.shape[-1]
    return out * (1 - w) + into * w


def _wrapped(text: str, width: int = 34) -> str:
    import textwrap

    lines = textwrap.wrap(text, width)[:2]
    return "\n".join(lines)
