"""Task: what a run trains, and how it shows what was learned.

``task=diffusion`` trains a model of the data's states and draws from it; ``task=autoencoder`` trains an encoder and a
decoder of states and shows held-out items beside what comes back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.autoencoder import Autoencoder
from suffuse.codec import empty, implied
from suffuse.data import Data
from suffuse.errors import ConfigError
from suffuse.model import Facts, Model, Recipe
from suffuse.overrides import own
from suffuse.sampling import Sampling, take
from suffuse.state import leaves, map_state
from suffuse.training.progress import Progress

__all__ = ["Autoencoding", "Diffusion", "Results", "Task"]


@dataclass(frozen=True)
class Results:
    """What a finished run has to show.

    Arguments:
        xs: Decoded samples, for the metrics.
        raw: Their conditions.
        shown: Decoded samples that are written to files.
        rows: What the manifest says of these.
    """

    xs: Any
    raw: Mapping[str, Tensor]
    shown: Any
    rows: list[dict[str, Any]]


class Task(ABC):
    """Base: a model that says its loss, and what is shown of it.

    Arguments:
        cfg: The job's config.
        facts: Facts of the data.
    """

    model: nn.Module
    """Has ``loss(x0, raw, noise, step, positions, total)`` and ``prepare(raw)``, see `suffuse.model.Model`."""
    draws = True
    """Whether a sampler and a grid have a part in the results."""

    @abstractmethod
    def __init__(self, cfg: Mapping[str, Any], facts: Facts) -> None: ...

    @abstractmethod
    def show(self, codec: Any, data: Data, num: int) -> tuple[Any, list[str]]:
        """Return decoded samples for a preview and their captions, the same ones every time."""

    @abstractmethod
    def results(self, codec: Any, data: Data, num: int, measured: int, seed: int, how: Mapping[str, str]) -> Results:
        """Return what the finished run shows.

        Arguments:
            codec: Of the run.
            data: Of the run.
            num: Samples that are written.
            measured: Samples that the metrics look at; 0 for none.
            seed: Of the first sample.
            how: Plain values for every row of the manifest.
        """

    def begun(self, codec: Any, data: Data, metrics: Any, seed: int) -> tuple[Any, Mapping[str, Tensor]]:
        """Return samples that a metric gives the beginning of by its ``begin(codec, data)``, and their conditions.

        Raises:
            ConfigError: When the task draws no samples.
        """
        raise ConfigError(f"metrics: {type(metrics).__name__} needs samples, which this task does not draw")

    def describe(self) -> str:
        """Return a line about the model; by default nothing."""
        return ""

    def hint(self, where: str) -> str:
        """Return a line on what to do next with the run in the folder `where`; by default nothing."""
        return ""

    def compile(self) -> None:
        """Compile the network."""
        self.model.compile()


class Diffusion(Task):
    """A diffusion model and a recipe to draw from it."""

    model: Model

    def __init__(self, cfg: Mapping[str, Any], facts: Facts) -> None:
        self.model, self.recipe = Model(cfg, facts), Recipe.build(cfg, facts)
        self._wanted = str(cfg["conditioner"].get("_target_", ""))

    def show(self, codec: Any, data: Data, num: int) -> tuple[Any, list[str]]:
        """Draw the seeds 0 to `num`."""
        raw = self._asked(codec, data, num)
        seeds = torch.arange(num)
        like = empty(codec, self.model.facts, seeds, raw, self.model.device)
        return codec.decode(self.model.draw(self.recipe, seeds, raw, like)), self.model.conditioner.captions(raw)

    def results(self, codec: Any, data: Data, num: int, measured: int, seed: int, how: Mapping[str, str]) -> Results:
        """Draw as many samples as are asked for."""
        count = max(num, measured)
        raw = self._asked(codec, data, count)
        sampling = Sampling(self.model, codec, self.recipe, seed=seed)
        xs = sampling.draw(torch.arange(count), raw, batch=64, progress=Progress(count, word="sample"))
        rows = sampling.rows(torch.arange(num), {name: value[:num] for name, value in raw.items()}, how)
        part = slice(measured)
        return Results(take(xs, part), {k: v[part] for k, v in raw.items()}, take(xs, slice(num)), rows)

    def begun(self, codec: Any, data: Data, metrics: Any, seed: int) -> tuple[Any, Mapping[str, Tensor]]:
        """Draw one sample for every row of what the metric gives."""
        raw, known = metrics.begin(codec, data)
        count = len(next(leaves(known.known)))
        sampling = Sampling(self.model, codec, self.recipe, seed, known)
        return sampling.draw(torch.arange(count), raw, batch=64, progress=Progress(count, word="sample")), raw

    def _asked(self, codec: Any, data: Data, num: int) -> dict[str, Tensor]:
        """Return the conditions of samples for which nobody asked: a conditioner may want them from the data."""
        conditioner = self.model.conditioner
        own = getattr(conditioner, "examples", None)
        return conditioner.parse(implied(codec, conditioner), num) if own is None else dict(own(data, num))

    def describe(self) -> str:
        """Say so when there is nothing to condition on."""
        if self.model.conditioner.width == 0 and not self._wanted.endswith("NoConditioner"):
            return "note: the data has no conditions, so the model is unconditional"
        return ""

    def hint(self, where: str) -> str:
        """Return how to draw more."""
        label = " condition.label=0" if self.model.facts.labels else ""
        return f"  draw more    sample ckpt={where} num=64{label}"

    def compile(self) -> None:
        """Compile the network, not what is around it."""
        self.model.denoiser.compile_network()


class Autoencoding(Task):
    """An autoencoder; it shows held-out items, each followed by what comes back."""

    model: Autoencoder
    draws = False

    def __init__(self, cfg: Mapping[str, Any], facts: Facts) -> None:
        self.model, self.modality = Autoencoder(cfg, facts), str(cfg["modality"]["name"])

    def show(self, codec: Any, data: Data, num: int) -> tuple[Any, list[str]]:
        """Return `num` samples, half of them reconstructions."""
        pairs, items = self._pairs(codec, data, -(-num // 2))
        return pairs, _captions(items)

    def results(self, codec: Any, data: Data, num: int, measured: int, seed: int, how: Mapping[str, str]) -> Results:
        """Return reconstructions of held-out items, evenly spaced."""
        items = _held_out(data, measured or 1)
        back = self._back(codec, items)
        raw = torch.utils.data.default_collate([dict(item["cond"]) for item in items])
        pairs, shown = self._pairs(codec, data, -(-num // 2))
        rows = [
            {"index": i, "of": i // 2, "kind": ("data", "reconstruction")[i % 2], "caption": caption, **how}
            for i, caption in enumerate(_captions(shown))
        ]
        return Results(back, raw, pairs, rows)

    def describe(self) -> str:
        """Return how much smaller a latent is."""
        network, shape = self.model.network, self.model.facts.shape
        latent = (network.latent, *(-(-size // f) for size, f in zip(shape[1:], network.factor, strict=True)))
        ratio = torch.Size(shape).numel() / torch.Size(latent).numel()
        return f"latents {latent} of states {tuple(shape)}, {ratio:.3g} times fewer numbers"

    def hint(self, where: str) -> str:
        """Return how to train in its latents."""
        codec = own("codec", "latent", self.modality)
        return f"  use it       train modality={self.modality} codec={codec} codec.ckpt={where}"

    def compile(self) -> None:
        """Compile both halves."""
        self.model.network.encode = torch.compile(self.model.network.encode)
        self.model.network.decode = torch.compile(self.model.network.decode)

    def _pairs(self, codec: Any, data: Data, count: int) -> tuple[Any, list[Any]]:
        items = _held_out(data, count)
        x = codec.decode(codec.encode(_batch(items)))
        return map_state(lambda a, b: torch.stack([a, b.to(a)], 1).flatten(0, 1), x, self._back(codec, items)), items

    def _back(self, codec: Any, items: list[Any]) -> Any:
        device = self.model.device
        with torch.inference_mode():
            parts = []
            for first in range(0, len(items), 64):
                x0 = codec.encode(map_state(lambda leaf: leaf.to(device), _batch(items[first : first + 64])))
                parts.append(codec.decode(self.model.decode(self.model.encode(x0)).float()))
            return torch.cat([next(leaves(part)) for part in parts])


def _held_out(data: Data, count: int) -> list[Any]:
    return data.sample(count, held_out=True)


def _batch(items: list[Any]) -> Any:
    return torch.utils.data.default_collate([item["x"] for item in items])


def _captions(items: list[Any]) -> list[str]:
    return [text for item in items for text in (f"item {int(item['index'])}", "back")]
