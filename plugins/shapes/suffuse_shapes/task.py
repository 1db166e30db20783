"""Task: ``task=shapes/surface`` trains a decoder of surfaces, which turns clouds into meshes.

It minimises the mean absolute error of the signed distance, both cut at the decoder's reach ("DeepSDF", Park et al.
2019, eq. 4), at places near the surface and elsewhere, of which the embedded set knows the exact one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from suffuse.build import build
from suffuse.checkpoint import read
from suffuse.data import Data
from suffuse.errors import CheckpointError, ConfigError
from suffuse.finding import find_checkpoint
from suffuse.model import Facts
from suffuse.noise import KeyedNoise
from suffuse.objective import Loss
from suffuse.task import Results, Task
from torch import Tensor, nn

from suffuse_shapes.nn import SurfaceNet

__all__ = ["Surface", "SurfaceModel", "load"]


class SurfaceModel(nn.Module):
    """A decoder and what it minimises.

    Arguments:
        cfg: Config with the group ``model``.
        facts: Facts of the data.

    Raises:
        ConfigError: When the network is no decoder of surfaces.
    """

    def __init__(self, cfg: Mapping[str, Any], facts: Facts) -> None:
        super().__init__()
        self.network = build(cfg["model"], "model", shape=facts.shape)
        if not isinstance(self.network, SurfaceNet):
            raise ConfigError(f"model={cfg['model']['_target_']} is no decoder of surfaces; take model=shapes/surface")
        self.position = float((facts.about.get("codec") or {}).get("position", 1.0))

    def prepare(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is known of the items."""
        return dict(raw)

    def loss(
        self, x0: Tensor, raw: Mapping[str, Tensor], noise: KeyedNoise, step: int, positions: Tensor, total: int
    ) -> Loss:
        """Return the error of the distances at the places that items come with."""
        if "query" not in raw:
            text = "task=shapes/surface needs places with a known distance: data=shapes/solids data.queries=256"
            raise ConfigError(text)
        xyz = (x0[:, :3] * self.position).transpose(1, 2)
        reach = self.network.reach
        error = (self.network(xyz, raw["query"]) - raw["signed"].clamp(-reach, reach)).abs().mean(1)
        return Loss(error.mean(), error, torch.zeros_like(error))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


class Surface(Task):
    """A decoder of surfaces; it shows held-out clouds, whose meshes the preview writes.

    Arguments:
        cfg: The job's config.
        facts: Facts of the data.
    """

    model: SurfaceModel
    draws = False

    def __init__(self, cfg: Mapping[str, Any], facts: Facts) -> None:
        self.model = SurfaceModel(cfg, facts)

    def show(self, codec: Any, data: Data, num: int) -> tuple[Any, list[str]]:
        """Return held-out clouds."""
        items = data.sample(num, held_out=True)
        return torch.stack([item["x"] for item in items]), [f"item {int(item['index'])}" for item in items]

    def results(self, codec: Any, data: Data, num: int, measured: int, seed: int, how: Mapping[str, str]) -> Results:
        """Return held-out clouds, and for the metrics distances beside the true ones, (K, 2, Q)."""
        items = data.sample(max(num, measured, 1), held_out=True)
        xyz = torch.stack([item["x"][:3].T for item in items]).to(self.model.device)
        raw = torch.utils.data.default_collate([dict(item["cond"]) for item in items])
        with torch.inference_mode():
            found = self.model.network(xyz, raw["query"].to(self.model.device)).cpu()
        shown, captions = self.show(codec, data, num)
        rows = [{"index": i, "caption": text, "kind": "data", **how} for i, text in enumerate(captions)]
        return Results(torch.stack([found, raw["signed"]], 1), raw, shown, rows)

    def hint(self, where: str) -> str:
        """Return how to use it."""
        return f"  use it       suffuse mesh CLOUD.ply decoder={where}"


class SurfaceError:
    """``distance``: mean absolute error within the reach; ``side``: share of the places that are on the right side."""

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of pairs of distances (K, 2, Q), the decoder's and the true ones."""
        found, true = samples.unbind(1)
        reach = float(found.abs().max().clamp(min=1e-6))
        error = (found - true.clamp(-reach, reach)).abs().mean()
        return {"distance": float(error), "side": float(((found < 0) == (true < 0)).double().mean())}


def load(where: str, key: str = "decoder") -> SurfaceNet:
    """Return the decoder of a run directory or checkpoint file.

    Arguments:
        where: The run or the file.
        key: Config key, for messages.

    Raises:
        CheckpointError: When there is none, or it is of something else.
    """
    path = find_checkpoint(where)
    saved = read(path)
    record = saved["suffuse"]
    if not str((record["config"].get("task") or {}).get("_target_", "")).endswith("task.Surface"):
        raise CheckpointError(f"{key}={where}: holds no decoder of surfaces; train one with task=shapes/surface")
    network: SurfaceNet = build(record["config"]["model"], "model")
    weights = {k.removeprefix("model.network."): v for k, v in saved["state_dict"].items()}
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)
