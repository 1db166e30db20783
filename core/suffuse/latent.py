"""Latent: the latents of an autoencoder that a run of ``task=autoencoder`` trained, standardised per channel.

z = (E[z | c(x)] - m) / s with c the autoencoder's own codec, and m and s measured on the data when a run starts ("High-
Resolution Image Synthesis with Latent Diffusion Models", Rombach et al. 2022, appendix G, per channel). The autoencoder
is frozen and no part of the model: a checkpoint holds its place, a hash of its weights, and what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse.autoencoder import Coder, Frozen
from suffuse.codec import opened
from suffuse.errors import CheckpointError, ConfigError, check_whole

__all__ = ["Given", "Latent", "checked", "moments"]


class Latent(nn.Module):
    """Latents (B, D, *spatial / factor).

    Arguments:
        ckpt: Run directory or checkpoint of the autoencoder.
        batch: Rows that are encoded or decoded at a time.
        about: Facts of the data, see `suffuse.data.Spec`.

    Raises:
        ConfigError: Without `ckpt`.
        CheckpointError: When there is no autoencoder, or another one than the model was trained on.
    """

    tolerance = float("inf")
    mean: Tensor
    scale: Tensor

    def __init__(self, ckpt: str | None = None, batch: int = 64, about: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.coder: Coder = Frozen(ckpt, about, batch)
        stats = (about or {}).get("codec") or {}
        checked(self.coder, stats, f"codec.ckpt={ckpt}")
        self.standardise(stats)

    def standardise(self, stats: Mapping[str, Any]) -> None:
        """Take over mean and deviation as `measure` returned them; without them latents stay as they are."""
        self.register_buffer("mean", torch.tensor(stats.get("mean", [0.0] * self.coder.latent)), persistent=False)
        self.register_buffer("scale", torch.tensor(stats.get("scale", [1.0] * self.coder.latent)), persistent=False)

    def measure(self, x: Any) -> Mapping[str, Any]:
        """Return mean and deviation of every latent channel, and the hash of the weights."""
        return moments(self.coder.encode(x)) | {"autoencoder": self.coder.digest()}

    def encode(self, x: Any) -> Tensor:
        """Return standardised latents."""
        z = self.coder.encode(x)
        return (z - self._along(self.mean, z)) / self._along(self.scale, z)

    def decode(self, state: Any) -> Any:
        """Return data."""
        if not isinstance(state, Tensor):
            raise TypeError(f"Latent decodes one tensor, not {type(state).__name__}")
        return self.coder.decode(state * self._along(self.scale, state) + self._along(self.mean, state))

    def open(self, init: str, mask: str | None) -> tuple[Tensor, Tensor | None]:
        """Return the latent of a file, and those of its entries that no part of a mask reaches.

        Raises:
            ConfigError: When there are none.
        """
        known, kept = opened(self.coder.codec, init, mask)
        assert isinstance(known, Tensor)
        with torch.no_grad():
            z = self.coder.model.encode(known)
        z = (z - self._along(self.mean, z)) / self._along(self.scale, z)
        if kept is None:
            return z, None
        assert isinstance(kept, Tensor)
        # An entry is kept when everything under it is: the pool of what is not is zero. Under the first of a causal
        # autoencoder there may be less.
        sizes = tuple(self.coder.factor)
        lost = (~kept).float().amax(1, keepdim=True)
        lost = F.pad(lost, (0, 0) * (len(sizes) - 1) + (-lost.shape[2] % sizes[0], 0))
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(sizes)]
        stays = pool(lost, sizes) == 0
        if not stays.any():
            raise ConfigError(f"mask={mask}: it reaches into every latent of {sizes} entries; keep more")
        return z, stays.expand(z.shape)

    @staticmethod
    def _along(values: Tensor, z: Tensor) -> Tensor:
        """Return a value per channel, shaped to go with z."""
        return values.to(z).reshape(-1, *[1] * (z.ndim - 2))


class Given(Latent):
    """Latents of an autoencoder that `suffuse` trained or of one of diffusers.

    Arguments:
        ckpt: Run directory or checkpoint of ``task=autoencoder``; or give `path`.
        path: Of an autoencoder of diffusers.
        batch: Rows that are encoded or decoded at a time.
        statistics: ``data`` for mean and deviation measured on the data, ``own`` for those that come with the
            autoencoder.
        facts: Facts of the data, see `suffuse.data.Spec`.
        pretrained: Returns the coder of a path; one with ``statistics()`` has some of its own.

    Raises:
        ConfigError: Without exactly one of `ckpt` and `path`, or an argument out of range.
        CheckpointError: When there is no autoencoder at `ckpt`, or another one than the model was trained on.
    """

    def __init__(
        self, ckpt: str | None, path: str | None, batch: int, statistics: str, facts: Mapping[str, Any],
        pretrained: Callable[[str], Coder],
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        if bool(ckpt) == bool(path):
            raise ConfigError(
                "codec: give either codec.ckpt, a run of task=autoencoder, or codec.path, an autoencoder of diffusers"
            )
        check_whole("codec.batch", batch)
        if statistics not in ("data", "own"):
            raise ConfigError(f"codec.statistics={statistics} is neither 'data' nor 'own'")
        self.coder: Coder = pretrained(str(path)) if path else Frozen(ckpt, facts, batch)
        self.named = f"codec.path={path}" if path else f"codec.ckpt={ckpt}"
        own = getattr(self.coder, "statistics", None) if statistics == "own" else None
        if statistics == "own" and own is None:
            raise ConfigError(f"codec.statistics=own: {self.named} has none; leave codec.statistics=data")
        self.own: Mapping[str, Any] | None = own and own()
        stats = facts.get("codec") or {}
        checked(self.coder, stats, self.named)
        self.standardise(stats)

    def measure(self, x: Any) -> Mapping[str, Any]:
        """Return mean and deviation of every latent channel, and a hash of the weights."""
        return {**(self.own or moments(self.coder.encode(x))), "autoencoder": self.coder.digest()}


def moments(z: Tensor) -> dict[str, Any]:
    """Return mean and deviation of every channel of latents (B, D, ...), as plain lists."""
    flat = z.double().transpose(0, 1).flatten(1)
    scale = flat.std(1).clamp(min=1e-6)
    return {"mean": [round(v, 6) for v in flat.mean(1).tolist()], "scale": [round(v, 6) for v in scale.tolist()]}


def checked(coder: Coder, stats: Mapping[str, Any], named: str) -> None:
    """Raise `CheckpointError` unless the autoencoder `named` is the one `stats` were measured with, if they were."""
    found = stats.get("autoencoder")
    if found is not None and found != coder.digest():
        raise CheckpointError(
            f"{named}: its weights are not those that this model was trained on (hash {coder.digest()}, then "
            f"{found}); put the old ones back in their place"
        )
