"""Base of the audio codecs: what is common to all maps between samples (B, C, N) and states.

A codec knows rate, channels and length from the facts of the data (``about``). Asked for ``seconds`` it draws samples
of another length than those of training, where the network can: its states then have more or fewer frames. `open`
reads a file for editing; a mask in seconds becomes a mask on frames, of which those are kept that lie wholly outside
what is made anew.

Sounds of lengths of their own (see `suffuse_audio.ragged`) are states of three fields, of which ``x`` is diffused:

    x (B, C', T, ...)   mask (B, T), which columns there are   length (B,), how many samples.

Each sound is transformed as if it were alone, at its own length in whole columns, and back in the same way: neither its
neighbours nor the padding change its state. Time is the first axis behind the channels then, also of pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from suffuse.errors import ConfigError, check_whole
from suffuse.noise import KeyedNoise
from suffuse.state import State
from torch import Tensor

from suffuse_audio.files import read
from suffuse_audio.ragged import clips
from suffuse_audio.spans import kept, spans

__all__ = ["AudioCodec", "counts"]

STREAM = 2**20
"""Noise stream of what is drawn here: lengths."""


class AudioCodec(ABC):
    """Rate, channels, length, and what follows from them.

    Arguments:
        about: Facts of the data: ``rate`` in Hz, ``channels``, ``samples``; ``lengths`` where sounds have lengths of
            their own, some of theirs in samples, rising.
        seconds: Length of the samples that are drawn; by default that of the training data. Where sounds have lengths
            of their own, several take turns by seed, and by default the training data's do by chance.

    Raises:
        ConfigError: When `seconds` is no positive number, or several for a model of one length.
    """

    tolerance = 1e-5
    """Largest difference of samples there and back; infinite where phases are found anew."""
    decibels = 1e-3
    """Largest log-spectral distance of the embedded set there and back, see `suffuse_audio.metrics.Reconstruction`."""
    frame = 1
    """Samples per column of the state."""
    overlap = 0
    """Samples by which a column reaches over its own place on either side."""

    def __init__(self, about: Mapping[str, Any] | None = None, seconds: float | Sequence[float] | None = None) -> None:
        about = about or {}
        self.rate, self.channels = int(about.get("rate", 8000)), int(about.get("channels", 1))
        self.samples = int(about.get("samples", 8192))
        self.stats: Mapping[str, Any] = about.get("codec") or {}
        self.lengths: list[int] = list(about.get("lengths") or [])
        asked = list(seconds) if isinstance(seconds, Sequence) and not isinstance(seconds, str) else [seconds]
        for value in asked if seconds is not None else []:
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ConfigError(f"seconds={seconds} must be a number above 0")
        if (len(asked) > 1 or not asked) and not self.lengths:
            raise ConfigError(
                f"seconds={seconds}: this model's samples have one length, give one number; sounds of several lengths "
                "are learned with experiment=audio/variable"
            )
        self.seconds = seconds if seconds is None or len(asked) > 1 else asked[0]
        self.ratio = 1.0
        if seconds is not None:
            self.ratio = max(map(self._whole_samples, asked)) / self.samples
            total = [float(value) for value in asked if value is not None]
            self.implied = {"seconds_start": 0.0, "seconds_total": total if len(total) > 1 else total[0]}

    @abstractmethod
    def analyse(self, x: Tensor) -> Tensor:
        """Return the state (B, C', ..., T) of samples (B, C, N), a whole number of columns."""

    @abstractmethod
    def synthesise(self, state: Tensor) -> Tensor:
        """Return the samples (B, C, N) of a state (B, C', ..., T)."""

    @abstractmethod
    def statistics(self, x: Tensor) -> Mapping[str, Any]:
        """Return what the codec must know of the data, seen in samples (B, C, N)."""

    @property
    def least(self) -> int:
        """Samples that a transform needs; shorter sounds are followed by silence."""
        return self.frame

    def measure(self, x: Any) -> Mapping[str, Any]:
        """Return what the codec must know of the data, seen in a batch; what follows a sound's end does not count."""
        return self.statistics(clips(x, self.samples) if isinstance(x, Mapping) else x)

    def encode(self, x: Any) -> Any:
        """Return the state of a batch, see above."""
        if not isinstance(x, Mapping):
            return self.analyse(x)
        mask = x["mask"].bool()
        lengths, sounds = mask.sum(1), x["x"].float() * mask[:, None]
        width = -(-sounds.shape[-1] // self.frame)
        columns = self._columns(lengths)
        width = max(width, int(columns.max()))
        sounds = torch.nn.functional.pad(sounds, (0, width * self.frame - sounds.shape[-1]))
        state: Tensor | None = None
        for rows, count in _groups(columns):
            part = self.analyse(sounds[rows, :, : count * self.frame]).movedim(-1, 2)
            if state is None:
                state = part.new_zeros(len(sounds), part.shape[1], width, *part.shape[3:])
            state[rows, :, :count] = part
        return {"x": state, "mask": torch.arange(width, device=columns.device) < columns[:, None], "length": lengths}

    def decode(self, state: Any) -> Any:
        """Return the batch of a state."""
        if isinstance(state, Tensor):
            return self.cut(self.synthesise(state))
        if not isinstance(state, Mapping) or "mask" not in state:
            raise TypeError(f"{type(self).__name__} decodes one tensor, or x, mask, length; not {type(state).__name__}")
        x, lengths, width = state["x"], state["length"], state["x"].shape[2] * self.frame
        sounds = torch.zeros(len(x), self.channels, width, device=x.device)
        for rows, count in _groups(state["mask"].sum(1)):
            sounds[rows, :, : count * self.frame] = self.synthesise(x[rows, :, :count].movedim(2, -1)).float()
        mask = torch.arange(width, device=x.device) < lengths[:, None]
        return {"x": sounds * mask[:, None], "mask": mask}

    def like(self, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> State:
        """Return an empty state of the wanted length, one row per seed; of several, their masks and lengths."""
        if not self.lengths:
            length = self.whole(self._whole_samples(self.seconds))
            shape = self.analyse(torch.zeros(1, self.channels, length)).shape
            return torch.empty(len(seeds), *shape[1:], device=device)
        lengths = self._drawn(seeds, raw)
        asked = self._asked()
        # As wide for every batch of a job: where none is asked for, as in training.
        width = self.whole(max(asked)) if asked else max(self.samples, self.whole(int(lengths.max())))
        return self._empty(lengths, width, device)

    def whole(self, samples: int) -> int:
        """Return the least length of at least `samples` that fills whole frames, a multiple of 16 of them."""
        step = 16 * self.frame if samples != self.samples else self.frame
        return -(-samples // step) * step

    def cut(self, x: Tensor) -> Tensor:
        """Return decoded samples at the length that was asked for."""
        return x if self.seconds is None else x[..., : self._whole_samples(self.seconds)]

    def open(self, init: str, mask: str | None) -> tuple[State, State | None]:
        """Return the state of a file, one row, and where it is kept.

        Arguments:
            init: A sound file; it is resampled, mixed to the model's channels, and cut or filled with silence to the
                length of the samples. Where sounds have lengths of their own and none is asked for, that is the file's.
            mask: What is made anew, in seconds: ``2.0-3.5``, ``-0.5`` (the first half second), ``3-`` (from 3 s on, a
                continuation), or several with commas.
        """
        x = read(init, self.rate, self.channels, key="init")
        length = self._length_of(x.shape[1], init)
        whole = self.whole(length)
        x = torch.nn.functional.pad(x[:, :whole], (0, max(0, whole - x.shape[1])))
        if not self.lengths:
            state = self.encode(x[None])
            return state, None if mask is None else self.kept(mask, state)
        state = self.encode({"x": x[None], "mask": torch.arange(whole)[None] < length})
        return state, None if mask is None else self._kept_fields(mask, state)

    def kept(self, mask: str, state: Tensor) -> Tensor:
        """Return which entries of a state reach into no stretch of a mask, boolean of its shape.

        Raises:
            ConfigError: When the mask is none, or makes everything or nothing anew.
        """
        return self._stays(mask, self._whole_samples(self.seconds), state.shape[-1]).expand(state.shape)

    def _kept_fields(self, mask: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `kept` of a state of three fields; what is frozen stays, and so does what does not exist."""
        x, there = state["x"], int(state["mask"].sum())
        columns = torch.ones(x.shape[2], dtype=torch.bool)
        columns[:there] = self._stays(mask, int(state["length"]), there)
        stays = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in state.items()}
        return stays | {"x": columns.reshape(-1, *[1] * (x.ndim - 3)).expand(x.shape)}

    def _stays(self, mask: str, length: int, columns: int) -> Tensor:
        found = kept(spans(mask, length / self.rate), columns, self.frame, self.overlap, self.rate)
        if not found.any() or found.all():
            raise ConfigError(f"mask={mask}: {'nothing' if found.all() else 'everything'} would be made anew")
        return found

    def _whole_samples(self, seconds: Any) -> int:
        """Return a length in samples; None is that of the training data."""
        return self.samples if seconds is None else max(1, round(seconds * self.rate))

    def _asked(self) -> list[int]:
        """Return the lengths that were asked for in samples, none where they are drawn by chance."""
        seconds = self.seconds if isinstance(self.seconds, Sequence) else [self.seconds]
        return [self._whole_samples(value) for value in seconds if value is not None]

    def _length_of(self, samples: int, init: str) -> int:
        """Return how long what is made of a file of so many samples is to be."""
        asked = self._asked()
        if len(asked) > 1:
            raise ConfigError(f"seconds={self.seconds}: init={init} is one sound; ask for one length")
        if asked:
            return asked[0]
        return min(samples, self.samples) if self.lengths else self.samples

    def _drawn(self, seeds: Tensor, raw: Mapping[str, Tensor]) -> Tensor:
        """Return a length in samples per seed: what is asked for, a condition says, or the data's lengths have."""
        asked = self._asked()
        by_seed = torch.tensor(asked or [0])[seeds.cpu() % max(len(asked), 1)]
        if not asked:
            u = KeyedNoise(seeds.cpu()).uniform(torch.empty(len(seeds), 1), 0, STREAM)[:, 0]
            by_seed = torch.tensor(self.lengths)[(u * len(self.lengths)).long()]
        total, start = (raw[name].cpu() if name in raw else None for name in ("seconds_total", "seconds_start"))
        if total is None:
            return by_seed
        said = ((total - (0 if start is None else start.nan_to_num())) * self.rate).round().clamp(min=1)
        # Of a longer sound training sees a clip; a length that is asked for is one in full.
        said = said if asked else said.clamp(max=self.samples)
        return torch.where(said.isnan(), by_seed.to(said), said).long()

    def _columns(self, lengths: Tensor) -> Tensor:
        """Return how many columns sounds of these lengths have."""
        return -(-lengths.clamp(min=self.least) // self.frame)

    def _empty(self, lengths: Tensor, width: int, device: torch.device | str) -> State:
        """Return an empty state of three fields, `width` samples wide."""
        columns = self._columns(lengths)
        width = max(width, int(columns.max()) * self.frame)
        shape = self.analyse(torch.zeros(1, self.channels, width)).movedim(-1, 2).shape
        mask = torch.arange(shape[2]) < columns[:, None]
        state = {"x": torch.empty(len(lengths), *shape[1:]), "mask": mask, "length": lengths}
        return {name: leaf.to(device) for name, leaf in state.items()}


def _groups(columns: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield the rows of equal numbers of columns, and the number."""
    counts = columns.tolist()
    for count in sorted(set(counts)):
        yield torch.tensor([i for i, c in enumerate(counts) if c == count], device=columns.device), int(count)


def counts(**values: int) -> None:
    """Raise `ConfigError` for the first argument of a codec that is not a whole number of at least 1."""
    for name, value in values.items():
        check_whole(f"codec.{name}", value)
