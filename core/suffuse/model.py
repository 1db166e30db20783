"""Model: the trained whole, a denoiser and the conditioner that feeds it, built from a config and the data's facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.build import build
from suffuse.conditioner import Conditioner
from suffuse.data import Data, spaced
from suffuse.denoiser import Denoiser, Preconditioned
from suffuse.errors import CheckpointError, ConfigError
from suffuse.guidance import ClassifierFree
from suffuse.noise import KeyedNoise
from suffuse.objective import Objective
from suffuse.process import Process
from suffuse.sampler import sample
from suffuse.state import State, leaves, map_state

__all__ = ["Facts", "Model", "Recipe"]

Shape = tuple[int, ...] | Mapping[str, "Shape"]


@dataclass(frozen=True)
class Facts:
    """What the data decides about a model.

    Arguments:
        shape: Shape of one state without the batch dimension; a mapping of shapes for named fields.
        labels: Names of the classes.
        scalars: Names of the float conditions.
        sigma_data: Standard deviation of the state, per field for named fields.
    """

    shape: Any
    labels: tuple[str, ...]
    scalars: tuple[str, ...]
    sigma_data: Any

    @classmethod
    def measure(cls, data: Data, codec: Any, limit: int = 1024) -> Facts:
        """Read the facts off `limit` training items, evenly spaced."""
        items = []
        for index in spaced(len(data.train), limit):  # type: ignore[arg-type]
            items.append(data.train[(0, index) if getattr(data.train, "epochs", False) else index])
        with torch.no_grad():
            state = codec.encode(torch.utils.data.default_collate([item["x"] for item in items]))
        if any(not torch.isfinite(leaf).all() for leaf in leaves(state)):
            raise ConfigError("data: NaN or infinite values in the training items; clean the data")
        shape = map_state(lambda leaf: torch.tensor(leaf.shape[1:]), state)
        spread = map_state(lambda leaf: leaf.double().std().clamp(min=1e-3), state)
        return cls(
            _plain(shape, lambda t: tuple(t.tolist())),
            tuple(data.spec.labels),
            tuple(data.spec.scalars),
            _plain(spread, lambda t: round(t.item(), 4)),
        )

    def record(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def restore(cls, record: Mapping[str, Any]) -> Facts:
        """Return the facts of `record`."""
        return cls(record["shape"], tuple(record["labels"]), tuple(record["scalars"]), record["sigma_data"])

    def like(self, batch: int, device: torch.device | str = "cpu") -> State:
        """Return an empty float32 state of `batch` rows."""
        return _like(self.shape, batch, device)


def _plain(state: Any, convert: Any) -> Any:
    if isinstance(state, Mapping):
        return {name: _plain(field, convert) for name, field in state.items()}
    return convert(state)


def _like(shape: Any, batch: int, device: torch.device | str) -> State:
    if isinstance(shape, Mapping):
        return {name: _like(field, batch, device) for name, field in shape.items()}
    return torch.empty(batch, *shape, device=device)


@dataclass(frozen=True)
class Recipe:
    """How samples are drawn: the solver, where it steps, and how hard the condition pulls."""

    sampler: Any
    grid: Any
    scale: float = 1.0
    interval: tuple[float | None, float | None] = (None, None)

    @classmethod
    def build(cls, cfg: Mapping[str, Any]) -> Recipe:
        """Build from the groups ``sampler``, ``grid`` and ``guidance`` of a config."""
        guidance = dict(cfg.get("guidance") or {})
        scale = guidance.get("scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < float("inf"):
            raise ConfigError(f"guidance.scale={scale} must be a number of at least 0 (1 = no guidance)")
        low, high = guidance.get("interval") or (None, None)
        return cls(build(cfg["sampler"], "sampler"), build(cfg["grid"], "grid"), float(scale), (low, high))


class Model(nn.Module):
    """A denoiser and its conditioner.

    Arguments:
        cfg: Config with the groups ``model``, ``conditioner``, ``process`` and ``objective``.
        facts: Facts of the data.
    """

    def __init__(self, cfg: Mapping[str, Any], facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.objective: Objective = build(_fill(cfg["objective"], facts.sigma_data), "objective")
        self.process: Process | Mapping[str, Process] = build(cfg["process"], "process")
        self.conditioner: Conditioner = build(
            cfg["conditioner"], "conditioner", labels=list(facts.labels), scalars=list(facts.scalars)
        )
        network = build(cfg["model"], "model", shape=facts.shape, cond_dim=self.conditioner.width)
        self.denoiser = Preconditioned(network, self.process, self.objective.parameterization)

    @classmethod
    def load(cls, saved: Mapping[str, Any], weights: str = "ema") -> Model:
        """Build the model of a checkpoint with its averaged (``ema``) or its last (``raw``) weights."""
        record = saved["suffuse"]
        model = cls(record["config"], Facts.restore(record["facts"]))
        if weights not in ("ema", "raw"):
            raise ConfigError(f"weights={weights} is neither 'ema' nor 'raw'")
        state = saved["state_dict"] if weights == "ema" else saved.get("current_model_state", saved["state_dict"])
        try:
            model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
        except RuntimeError as error:
            raise CheckpointError(f"the weights do not fit the checkpoint's own config: {error}") from error
        return model.eval()

    def draw(self, recipe: Recipe, seeds: Tensor, raw: Mapping[str, Tensor]) -> State:
        """Return one sample per seed, shape (B, ...), for the conditions `raw` of B rows each.

        Arguments:
            recipe: Sampler, grid and guidance.
            seeds: Shape (B,), int64; a sample's noise depends on its seed alone.
            raw: Conditions as `Conditioner.parse` returns them.
        """
        device = next(self.parameters()).device
        with torch.inference_mode():
            cond = self.conditioner({name: value.to(device) for name, value in raw.items()})
            denoiser: Denoiser = self.denoiser
            if recipe.scale != 1 and self.conditioner.width:
                null = self.conditioner.null(len(seeds), device)
                denoiser = ClassifierFree(self.denoiser, recipe.scale, null, recipe.interval)
            schedule = next(iter(self.process.values())) if isinstance(self.process, Mapping) else self.process
            grid = recipe.grid(schedule.schedule, recipe.sampler.steps)
            like = self.facts.like(len(seeds), device)
            return sample(denoiser, self.process, recipe.sampler, grid, KeyedNoise(seeds.to(device)), like, cond)


def _fill(node: Any, sigma_data: Any) -> Any:
    """Return `node` with every ``sigma_data: null`` replaced by what was measured."""
    if isinstance(node, Mapping):
        return {
            key: sigma_data if key == "sigma_data" and value is None else _fill(value, sigma_data)
            for key, value in node.items()
        }
    return node
