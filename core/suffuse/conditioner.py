"""Conditioner: what a user asks for, as numbers a network can take.

A raw condition is a mapping of tensors with one row per sample: ``label`` (int64, -1 = none given) and named scalars
(float, NaN = none given). A conditioner embeds it once per batch into ``{"vector": (B, width)}``. In training a share
`dropout` of the rows loses its condition, so that one network learns both the conditional and the unconditional mean,
which guidance compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError, suggest
from suffuse.noise import KeyedNoise

__all__ = ["ClassConditioner", "Conditioner", "NoConditioner", "VectorConditioner", "listed", "turns"]

Raw = Mapping[str, Tensor]

DROP_STREAM = 101
"""Noise stream of the dropped conditions, and of scalars dropped for themselves from there on; the objective uses those
up to 100."""


class Conditioner(nn.Module):
    """Base: labels and scalars that may be absent.

    Arguments:
        labels: Names of the classes; empty for none.
        scalars: Names of the float conditions; empty for none.
        width: Size of the embedded vector.
        dropout: Share of training rows whose condition is dropped.
        each: Share of training rows in which a scalar is dropped for itself, whatever happens to the others: the
            network then learns every subset of them.
        moments: Mean and standard deviation of scalars; a network sees them standardised.

    Raises:
        ConfigError: Unless 0 <= dropout < 1, 0 <= each < 1 and width >= 1.
    """

    context: int = 0
    """Size of the tokens that are attended to; 0 without any."""
    kept: tuple[str, ...] = ()
    """Conditions that are facts of a sample rather than wishes: what guidance moves away from has them too."""
    extra: int = 0
    """Channels of a picture, ``cond["image"]``, that the network takes beside the state."""
    quiet: tuple[str, ...] = ()
    """Conditions that go without saying in a caption."""

    def __init__(
        self, labels: Sequence[str] = (), scalars: Sequence[str] = (), width: int = 64, dropout: float = 0.1,
        each: float = 0.0, moments: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, share in (("dropout", dropout), ("each", each)):
            if not 0 <= share < 1:
                raise ConfigError(f"conditioner.{name}={share} must be in [0, 1)")
        if width < 1:
            raise ConfigError(f"conditioner.width={width} must be at least 1")
        self.labels, self.scalars = tuple(labels), tuple(scalars)
        self.width = width if self.labels or self.scalars else 0
        self.dropout, self.each = dropout, each
        self.moments = {name: tuple(pair) for name, pair in (moments or {}).items()}
        # The last row stands for no label.
        self.embed = nn.Embedding(len(self.labels) + 1, width) if self.labels else None
        self.scalar = nn.ModuleDict()
        self.absent = nn.ParameterDict()
        for name in self.scalars:
            self.scalar[name] = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
            self.absent[name] = nn.Parameter(torch.zeros(width))

    def forward(self, raw: Raw) -> dict[str, Tensor]:
        """Return ``{"vector": (B, width)}``, or nothing for an unconditional model."""
        parts: list[Tensor] = []
        if self.embed is not None:
            label = raw["label"]
            parts.append(self.embed(torch.where(label < 0, len(self.labels), label)))
        for name in self.scalars:
            value = raw[name].float()
            missing = value.isnan()[:, None]
            mean, spread = self.moments.get(name, (0.0, 1.0))
            embedded = self.scalar[name](((value - mean) / spread).nan_to_num()[:, None])
            parts.append(torch.where(missing, self.absent[name], embedded))
        return {"vector": torch.stack(parts).sum(0)} if parts else {}

    def null(self, batch: int, device: torch.device | str) -> dict[str, Tensor]:
        """Return the embedded absent condition of `batch` rows."""
        return self.forward(self.nothing(batch, device))

    def nothing(self, batch: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the raw absent condition of `batch` rows."""
        raw: dict[str, Tensor] = {name: torch.full((batch,), float("nan"), device=device) for name in self.scalars}
        return ({"label": torch.full((batch,), -1, device=device)} if self.labels else {}) | raw

    def dropped(self, noise: KeyedNoise, step: int, like: Tensor) -> dict[str, Tensor]:
        """Return which rows of each condition a training step drops, boolean (B,).

        Arguments:
            noise: One stream per row.
            step: Which draw.
            like: Float (B,), for the device.
        """
        every = self.whole(noise, step, like)
        masks = dict.fromkeys(["label"] * bool(self.labels) + list(self.scalars), every)
        for number, name in enumerate(self.scalars if self.each else ()):
            masks[name] = every | (noise.uniform(like, step, DROP_STREAM + 1 + number) < self.each)
        return masks

    def whole(self, noise: KeyedNoise, step: int, like: Tensor) -> Tensor:
        """Return which rows lose every condition, boolean (B,)."""
        return noise.uniform(like, step, DROP_STREAM) < self.dropout

    def drop(self, raw: Raw, masks: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `raw` without the rows where a mask, boolean (B,), is true: one for all conditions or one of each.

        What has more than one number per row is absent where it is zero.
        """
        first = masks if isinstance(masks, Tensor) else next(iter(masks.values()), None)
        if first is None:
            return {}
        nothing, kept = self.nothing(len(first), first.device), {}
        for name, empty in nothing.items():
            mask, value = masks if isinstance(masks, Tensor) else masks[name], raw[name]
            if value.ndim > 1:
                kept[name] = value * (~mask).view(-1, *[1] * (value.ndim - 1)).to(value.dtype)
            else:
                kept[name] = torch.where(mask, empty, value.to(empty.dtype))
        return kept

    def augment(self, raw: Raw, noise: KeyedNoise, step: int) -> dict[str, Tensor]:
        """Return training conditions as a step sees them, after what is dropped; by default as they are.

        Arguments:
            raw: Prepared conditions.
            noise: One stream per row.
            step: Which draw.
        """
        return dict(raw)

    def prepare(self, raw: Raw) -> dict[str, Tensor]:
        """Return `raw` as `forward` embeds it: what needs the host is done here, before a batch goes to a device."""
        return dict(raw)

    def constrain(self, denoiser: Denoiser, raw: Raw) -> Denoiser:
        """Return a denoiser that obeys what `raw` demands exactly rather than suggests; by default the same one."""
        return denoiser

    def parse(self, given: Mapping[str, Any], num: int) -> dict[str, Tensor]:
        """Return raw conditions of `num` rows from what a user wrote.

        Arguments:
            given: ``{"label": 7}``, ``{"label": [0, "cat"]}``, ``{"gap": 1.5}``; several values take turns. Without a
                label every class takes its turn; a scalar that is not given is absent.
            num: Number of rows.

        Raises:
            ConfigError: For an unknown name, label or value.
        """
        known = self.known()
        for name in given:
            if name not in known:
                hint = suggest(name, known) if known else "; this model is unconditional"
                raise ConfigError(f"condition.{name}: this model knows no such condition{hint}")
        raw: dict[str, Tensor] = {}
        if self.labels:
            wanted = given.get("label")
            chosen = list(range(len(self.labels))) if wanted is None else [self._label(v) for v in listed(wanted)]
            raw["label"] = turns(torch.tensor(chosen), num)
        for name in self.scalars:
            wanted = given.get(name)
            values = [float("nan")] if wanted is None else [_scalar(name, value) for value in listed(wanted)]
            raw[name] = turns(torch.tensor(values), num)
        # An unconditional model still needs to say how many rows there are.
        return raw or {"label": torch.full((num,), -1)}

    def known(self) -> list[str]:
        """Return the names of the conditions."""
        return (["label"] if self.labels else []) + list(self.scalars)

    def captions(self, raw: Raw) -> list[str]:
        """Return one short text per row."""
        rows = len(next(iter(raw.values())))
        texts: list[list[str]] = [[] for _ in range(rows)]
        for row, text in enumerate(texts):
            if self.labels and int(raw["label"][row]) >= 0:
                text.append(self.labels[int(raw["label"][row])])
            for name in self.scalars:
                value = float(raw[name][row])
                text += [f"{name} {value:.3g}"] * (value == value and name not in self.quiet)
        return [", ".join(text) for text in texts]

    def _label(self, value: Any) -> int:
        if str(value) in self.labels:
            return self.labels.index(str(value))
        if isinstance(value, int) and not isinstance(value, bool) and -1 <= value < len(self.labels):
            return value
        hint = suggest(str(value), self.labels, listing="labels")
        raise ConfigError(f"condition.label={value}: no such label{hint}")


class ClassConditioner(Conditioner):
    """A learned vector per class; unconditional when the data has no labels."""

    def __init__(self, labels: Sequence[str] = (), width: int = 64, dropout: float = 0.1) -> None:
        super().__init__(labels=labels, width=width, dropout=dropout)


class VectorConditioner(Conditioner):
    """Labels where there are any, and named scalars; each may be absent for itself."""


class NoConditioner(Conditioner):
    """Nothing is asked for."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)


def listed(value: Any) -> list[Any]:
    """Return the values a user gave, one or several."""
    found = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not found:
        raise ConfigError("condition: an empty list asks for nothing; name at least one value")
    return found


def _scalar(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"condition.{name}={value} is not a number") from None


def turns(values: Tensor, num: int) -> Tensor:
    """Return `num` rows: those of `values`, over and over."""
    return values[torch.arange(num) % len(values)]
