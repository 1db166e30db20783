r"""Pictured: a picture as a condition, beside a caption or a class: outlines, depth, or a smaller version of itself.

The picture joins the network's input as further channels, brought to the state's size, and starts without effect where
the network's first layer says so. For super-resolution as a second stage it is blurred by noise of a random level s,
y' = sqrt(1 - s^2) y + s eps, which the network is told, so that what the first stage draws is good enough ("Cascaded
Diffusion Models for High Fidelity Image Generation", Ho et al. 2022, section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from suffuse.build import build
from suffuse.conditioner import Conditioner, listed, turns
from suffuse.data import Data
from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError, suggest
from suffuse.noise import KeyedNoise
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse_image.codec import read
from suffuse_image.hints import Edges

__all__ = ["Pictured"]

STREAM = 180
"""Noise stream of what is drawn here: the levels, and the noise behind."""


class Pictured(Conditioner):
    """A picture, and what another conditioner reads.

    Arguments:
        inner: Config of that other conditioner.
        noise: Highest level s of training; 0 for a clean picture.
        level: Level of samples for which none is asked.
        dropout: Share of training rows without the picture, drawn for itself; the other conditioner has its own.
        keep: Guidance compares with and without the other conditions alone, the picture stays.
        labels: Names of the classes of the data.
        scalars: Names of its scalars.
        moments: See `suffuse.conditioner.Conditioner`.
        about: Facts of the data, with ``hint``.

    Raises:
        ConfigError: For data without a hint, or levels outside of [0, 1].
    """

    def __init__(
        self, inner: Mapping[str, Any], noise: float = 0.0, level: float | None = None, dropout: float = 0.0,
        keep: bool = True, labels: Sequence[str] = (), scalars: Sequence[str] = (),
        moments: Mapping[str, tuple[float, float]] | None = None, about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dropout=dropout)
        facts = dict(about or {})
        if not facts.get("hint"):
            raise ConfigError(
                "conditioner=image needs pictures that go with the data's: set data.hint, for example to "
                "{_target_: suffuse_image.hints.LowRes, factor: 4}"
            )
        for name, value in (("noise", noise), ("level", level)):
            if value is not None and (isinstance(value, bool) or not 0 <= value <= 1):
                raise ConfigError(f"conditioner.{name}={value} must be in [0, 1]")
        self.inner: Conditioner = build(
            inner, "conditioner.inner", labels=list(labels), scalars=list(scalars), moments=moments or {}, about=facts
        )
        self.hint, self.noise = dict(facts["hint"]), float(noise)
        self.shown = float(noise / 2 if level is None else level)
        self.size: tuple[int, int] = (int(self.hint["size"][0]), int(self.hint["size"][1]))
        self.pictures = (int(facts["channels"]), *(int(side) for side in facts["size"]))
        self.extra, self.context, self.quiet = int(self.hint["channels"]), self.inner.context, self.inner.quiet
        own = bool(noise)
        self.width = self.inner.width or (64 if own else 0)
        self.kept = (("image", "image_noise") if own else ("image",)) if keep else ()
        self.kept += self.inner.kept
        self.text, self.prompts = getattr(self.inner, "text", False), getattr(self.inner, "prompts", ())
        self.stores = getattr(self.inner, "stores", ())
        width = self.width
        self.told: nn.Module | None = None
        if own:
            self.told = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def read(self, captions: Sequence[str]) -> Any:
        """Return what the other conditioner reads of captions."""
        inner: Any = self.inner
        return inner.read(captions)

    def forward(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the other conditioner returns, with ``image``, (B, E, h, w) in [-1, 1]."""
        found = dict(self.inner(raw))
        found["image"] = image = raw["image"].float()
        if self.told is not None:
            level = raw.get("image_noise", image.new_zeros(len(image)))
            vector = self.told(level.float()[:, None])
            found["vector"] = found["vector"] + vector if "vector" in found else vector
        return found

    def nothing(self, batch: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the raw absent condition of `batch` rows: a picture of zeros, midway between black and white."""
        raw = _rest(self.inner.nothing(batch, device))
        raw["image"] = torch.zeros(batch, self.extra, *self.size, device=device)
        return raw | ({"image_noise": torch.zeros(batch, device=device)} if self.told is not None else {})

    def dropped(self, noise: KeyedNoise, step: int, like: Tensor) -> dict[str, Tensor]:
        """Return which rows of each condition a training step drops."""
        return {**self.inner.dropped(noise, step, like), "image": noise.uniform(like, step, STREAM) < self.dropout}

    def drop(self, raw: Mapping[str, Tensor], masks: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `raw` without the rows where a mask is true."""
        inner = masks if isinstance(masks, Tensor) else _rest(masks)
        kept = self.inner.drop(raw, inner)
        mask = masks if isinstance(masks, Tensor) else masks["image"]
        kept["image"] = raw["image"] * (~mask).view(-1, 1, 1, 1).to(raw["image"])
        if "image_noise" in raw:
            kept["image_noise"] = raw["image_noise"]
        return kept

    def augment(self, raw: Mapping[str, Tensor], noise: KeyedNoise, step: int) -> dict[str, Tensor]:
        """Return training conditions whose pictures are blurred by noise."""
        found = self.inner.augment(raw, noise, step)
        if self.told is None:
            return found
        image = raw["image"]
        level = self.noise * noise.uniform(image.new_empty(len(image)), step, STREAM + 1)
        return found | {"image": _blurred(image, level, noise, step), "image_noise": level}

    def prepare(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `raw` with captions read."""
        return self.inner.prepare(raw)

    def examples(self, data: Data, num: int) -> dict[str, Tensor]:
        """Return the conditions of `num` held-out items: what samples are drawn for when nothing is asked."""
        items = data.sample(num, held_out=True)
        conds = torch.utils.data.default_collate([dict(item["cond"]) for item in items])
        names = self.nothing(1)
        raw = {name: turns(value, num) for name, value in conds.items() if name in names}
        absent = self.nothing(num)
        raw = {name: raw.get(name, value) for name, value in absent.items()}
        return self._noisy(raw, [self.shown], num)

    def parse(self, given: Mapping[str, Any], num: int) -> dict[str, Tensor]:
        """Return raw conditions of `num` rows; ``image`` is a file or several that take turns.

        Raises:
            ConfigError: Without a picture, and as the other conditioner.
        """
        own, rest = _own(given), _rest(given)
        unknown = [name for name in rest if name not in self.inner.known()]
        if unknown:
            hint = suggest(unknown[0], self.known())
            raise ConfigError(f"condition.{unknown[0]}: this model knows no such condition{hint}")
        if own.get("image") is None:
            raise ConfigError("condition.image is not set; give it as condition.image=FILE")
        raw = _rest(self.inner.parse(rest, num)) if self.inner.known() else {}
        files = torch.stack([self._opened(str(name)) for name in listed(own["image"])])
        raw["image"] = turns(files, num)
        levels = [self.shown] if own.get("image_noise") is None else listed(own["image_noise"])
        if levels != [self.shown] and self.told is None:
            raise ConfigError("condition.image_noise: this model was trained with conditioner.noise=0")
        return self._noisy(raw, levels, num)

    def _noisy(self, raw: dict[str, Tensor], levels: Sequence[Any], num: int) -> dict[str, Tensor]:
        """Return conditions with pictures blurred by levels that take turns: the same noise for every file."""
        if self.told is None:
            return raw
        for level in levels:
            if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= self.noise:
                raise ConfigError(f"condition.image_noise={level} must be in [0, {self.noise:g}], as in training")
        level = turns(torch.tensor([float(v) for v in levels]), num)
        noise = KeyedNoise(torch.zeros(num, dtype=torch.long))
        return raw | {"image": _blurred(raw["image"], level, noise, 0), "image_noise": level}

    def _opened(self, name: str) -> Tensor:
        """Return the hint of a file, (E, h, w) in [-1, 1]."""
        if self.hint.get("edges") is not None:
            x = read(name, "condition.image", self.pictures[0])
            return 2 * Edges(**self.hint["edges"])(_sized(x, self.pictures[1:])) - 1
        return 2 * _sized(read(name, "condition.image", self.extra), self.size) - 1

    def constrain(self, denoiser: Denoiser, raw: Mapping[str, Tensor]) -> Denoiser:
        """Return what the other conditioner does."""
        return self.inner.constrain(denoiser, raw)

    def known(self) -> list[str]:
        """Return the names of the conditions."""
        return [*self.inner.known(), "image", *(["image_noise"] if self.told is not None else [])]

    def captions(self, raw: Mapping[str, Tensor]) -> list[str]:
        """Return one short text per row."""
        return self.inner.captions(_rest(raw)) if self.inner.known() else [""] * len(raw["image"])


def _blurred(image: Tensor, level: Tensor, noise: KeyedNoise, step: int) -> Tensor:
    """Return sqrt(1 - s^2) y + s eps."""
    s = level.to(image).view(-1, 1, 1, 1)
    return (1 - s.square()).sqrt() * image + s * noise.normal(image, step, STREAM + 2)


def _sized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return a picture (C, h, w) at a size."""
    if tuple(x.shape[1:]) == tuple(size):
        return x
    return F.interpolate(x[None], tuple(size), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in ("image", "image_noise")}


def _rest(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("image", "image_noise")}
