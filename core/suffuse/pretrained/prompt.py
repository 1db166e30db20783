"""Prompt: the conditioner of a published model, its own text encoders and what else its network is told.

``condition.text`` is a prompt, with weights if wanted (see `weighting`); without one the prompt is empty. A prompt
travels as its UTF-8 bytes, as captions do (see `suffuse.text`); zeros are no prompt at all, which is what guidance
moves away from: the empty prompt, or zeros where the pipeline asks for that. ``guidance.negative.text`` takes its
place. Labels of a data set become prompts through `template`.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from suffuse.conditioner import Conditioner, listed, turns
from suffuse.denoiser import Condition, Denoiser, Prediction
from suffuse.errors import ConfigError, suggest
from suffuse.noise import KeyedNoise
from suffuse.pretrained.encoders import Encoders
from suffuse.pretrained.folder import opened
from suffuse.pretrained.network import signature
from suffuse.pretrained.scheduler import clip_range
from suffuse.state import State, map_state
from suffuse.text import LENGTH, captions_of

__all__ = ["BYTES", "Clipped", "Prompts"]

log = logging.getLogger(__name__)

BYTES = 4096
"""Bytes of a prompt that are kept."""
EMPTY = " "
"""The empty prompt: a row of zeros is none."""


class Prompts(Conditioner):
    """The prompt, and what else a published network is told.

    Arguments:
        path: The folder.
        template: What the name of a class becomes, for data with labels and without captions.
        dropout: Share of training rows without their prompt.
        remember: Prompts whose embeddings are kept in memory.
        labels: Names of the classes of the data.
        about: Facts of the data.

    Raises:
        ConfigError: When `template` lacks ``{label}``, and as `suffuse.pretrained.folder`.
    """

    def __init__(
        self, path: str, template: str = "{label}", dropout: float = 0.1, remember: int = 1000,
        labels: Sequence[str] = (), about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dropout=dropout)
        if "{label}" not in template:
            raise ConfigError(f"conditioner.template={template!r} does not say where the {{label}} goes")
        self.folder = folder = opened(path)
        self.template, self.remember = template, remember
        facts = signature(folder)
        self.text = bool(folder.family.texts)
        self.prompts = tuple((about or {}).get("prompts") or ())
        self.classes = int(facts["classes"])
        if self.classes and len(labels) not in (0, self.classes):
            raise ConfigError(f"conditioner: the data has {len(labels)} classes, the model {self.classes}")
        names = tuple(labels) or tuple(str(i) for i in range(self.classes))
        self.labels = names if self.text or self.classes else ()
        self.captioned = bool((about or {}).get("text"))
        self.audio, self.distilled = folder.family.name == "Stable Audio", bool(facts["distilled"])
        self.scalars = (("seconds",) if self.audio else ()) + (("guidance",) if self.distilled else ())
        self.kept = self.scalars
        self.width = 1 if self.text else 0  # without a prompt there is nothing for guidance to leave out
        self.clip = clip_range(folder.config("scheduler"))
        # In a tuple, so that they are no submodules: they are frozen, and belong in no checkpoint.
        self._frozen: tuple[Any, ...] = (Encoders(folder),) if self.text else ()
        self._seen: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def forward(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the network is given: of every row tensors of its own."""
        if self.classes:
            label = raw["label"]
            if bool((label < 0).any()):
                raise ConfigError("condition.label: this model always needs a class")
            return {"label": label}
        if not self.text:
            return {}
        first = next(iter(raw.values()))
        found = self._embedded(self._captions(raw), first.device)
        if self.distilled:
            given = raw.get("guidance", torch.full((len(first),), math.nan, device=first.device)).float()
            found["guidance"] = torch.where(given.isnan(), 3.5, given)
        return self._timed(found, raw, first) if self.audio else found

    def _timed(self, found: dict[str, Tensor], raw: Mapping[str, Tensor], first: Tensor) -> dict[str, Tensor]:
        """Return the condition of a sound with its beginning and end; guidance moves away from no tokens at all."""
        given = raw.get("seconds", torch.full((len(first),), math.nan, device=first.device)).float()
        end = torch.where(given.isnan(), self.longest, given)
        start, stop = self._frozen[0].seconds(torch.zeros_like(end), end)
        absent = torch.tensor([not text for text in self._captions(raw)], device=first.device)
        tokens = torch.cat([found["tokens"], start, stop], 1)
        tokens = torch.where(absent[:, None, None], torch.zeros_like(tokens), tokens)
        return {"tokens": tokens, "vector": torch.cat([start, stop], 2)}

    @property
    def longest(self) -> float:
        """Seconds of the longest sound."""
        vae = self.folder.config("vae")
        return self.folder.size[0] * self.folder.factor / float(vae.get("sampling_rate", 44100))

    def _captions(self, raw: Mapping[str, Tensor]) -> list[str]:
        """Return one prompt per row; nothing where it is absent."""
        if "text" in raw:
            return captions_of(raw["text"])
        return ["" if i < 0 else self.template.replace("{label}", self.labels[i]) for i in raw["label"].tolist()]

    def _embedded(self, captions: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Return embeddings of prompts, each encoded once."""
        kinds = list(dict.fromkeys(captions))
        new = [text for text in kinds if text not in self._seen]
        for start in range(0, len(new), 16):
            part = new[start : start + 16]
            for text, row in zip(part, _rows(self._frozen[0]([text.strip() for text in part], device)), strict=True):
                nothing = not text and self._zeros
                self._seen[text] = {k: (torch.zeros_like(v) if nothing else v).cpu() for k, v in row.items()}
        chosen = {text: self._seen[text] for text in kinds}
        while len(self._seen) > max(self.remember, 1):
            self._seen.popitem(last=False)
        return {name: torch.stack([chosen[text][name] for text in captions]).to(device) for name in chosen[kinds[0]]}

    @property
    def _zeros(self) -> bool:
        """Whether no prompt is zeros rather than the empty prompt."""
        return self.folder.family.name == "Stable Diffusion XL" and bool(
            self.folder.index.get("force_zeros_for_empty_prompt", True)
        )

    def nothing(self, batch: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the raw absent condition of `batch` rows."""
        raw = {name: torch.full((batch,), math.nan, device=device) for name in self.scalars}
        if self.text and (self.captioned or not self.labels):
            return {"text": torch.zeros(batch, LENGTH, dtype=torch.uint8, device=device)} | raw
        return ({"label": torch.full((batch,), -1, device=device)} if self.labels else {}) | raw

    def dropped(self, noise: KeyedNoise, step: int, like: Tensor) -> dict[str, Tensor]:
        """Return which rows lose their prompt; what is told besides stays."""
        if not self.text:
            return {}
        return {"text" if self.captioned or not self.labels else "label": self.whole(noise, step, like)}

    def drop(self, raw: Mapping[str, Tensor], masks: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `raw` without the rows where a mask, boolean (B,), is true."""
        found = dict(raw)
        for name in ("text", "label"):
            mask = masks if isinstance(masks, Tensor) else masks.get(name)
            if mask is None or name not in raw or not self.text:
                continue
            value = raw[name]
            found[name] = value * (~mask)[:, None].to(value) if name == "text" else torch.where(mask, -1, value)
        if self.text and not found.keys() & {"text", "label"}:
            raise ConfigError("conditioner: the data has neither captions nor labels to train a model of prompts with")
        return {name: value for name, value in found.items() if name in ("text", "label", *self.scalars)}

    def parse(self, given: Mapping[str, Any], num: int) -> dict[str, Tensor]:
        """Return raw conditions of `num` rows; several values of one take turns."""
        known = self.known()
        for name in given:
            if name not in known:
                hint = suggest(name, known, listing="it knows") if known else "; this model is unconditional"
                raise ConfigError(f"condition.{name}: this model knows no such condition{hint}")
        raw: dict[str, Tensor] = {}
        if self.text and (given.get("text") is not None or given.get("label") is None):
            raw["text"] = self._texts(given.get("text"), num)
        elif self.labels:
            wanted = given.get("label")
            chosen = list(range(len(self.labels))) if wanted is None else [self._label(v) for v in listed(wanted)]
            raw["label"] = turns(torch.tensor(chosen), num)
        for name in self.scalars:
            wanted = given.get(name)
            values = [math.nan] if wanted is None else [_number(name, value) for value in listed(wanted)]
            raw[name] = turns(torch.tensor(values), num)
        if self.audio and bool((raw["seconds"] > self.longest).any()):
            raise ConfigError(f"seconds={float(raw['seconds'].max()):g}: this model draws at most {self.longest:.4g} s")
        return raw or {"label": torch.full((num,), -1)}

    def _texts(self, wanted: Any, num: int) -> Tensor:
        """Return prompts as bytes; says what an encoder does not read."""
        chosen = [str(text) for text in listed(wanted)] if wanted is not None else list(self.prompts) or [""]
        for text in dict.fromkeys(chosen):
            for line in self._frozen[0].cut(text):
                log.warning("condition.text: %r is too long: %s", _short(text), line)
        return turns(torch.stack([_bytes(text) for text in chosen]), num)

    def known(self) -> list[str]:
        """Return the names of the conditions."""
        return ["text"] * self.text + ["label"] * bool(self.labels) + list(self.scalars)

    def captions(self, raw: Mapping[str, Tensor]) -> list[str]:
        """Return one short text per row."""
        if self.text:
            return [text.strip() for text in self._captions(raw)]
        if self.classes:
            return [self.labels[i] for i in raw["label"].tolist()]
        return [""] * len(next(iter(raw.values())))

    def constrain(self, denoiser: Denoiser, raw: Mapping[str, Tensor]) -> Denoiser:
        """Return a denoiser whose predictions are clipped where the scheduler says so."""
        return denoiser if self.clip is None else Clipped(denoiser, self.clip)


class Clipped(Denoiser):
    """A denoiser whose x0 stays in [-bound, bound], as schedulers with ``clip_sample`` have it.

    Arguments:
        denoiser: The denoiser.
        bound: Largest absolute value.
    """

    def __init__(self, denoiser: Denoiser, bound: float) -> None:
        super().__init__()
        self.denoiser, self.process, self.bound = denoiser, denoiser.process, bound

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the prediction."""
        found = self.denoiser(x, t, cond).x0
        return Prediction(map_state(lambda leaf: leaf.clamp(-self.bound, self.bound), found))


def _rows(found: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    count = len(next(iter(found.values())))
    return [{name: value[row] for name, value in found.items()} for row in range(count)]


def _bytes(text: str) -> Tensor:
    """Return the UTF-8 bytes of a prompt, uint8 (BYTES,), zeros behind."""
    whole = (text.replace("\0", " ").strip() or EMPTY).encode()
    if len(whole) > BYTES:
        raise ConfigError(f"condition.text: {_short(text)!r} has {len(whole)} bytes; at most {BYTES} are taken")
    return torch.tensor(list(whole) + [0] * (BYTES - len(whole)), dtype=torch.uint8)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"condition.{name}={value} is not a finite number")
    return float(value)
