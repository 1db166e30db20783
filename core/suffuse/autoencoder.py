"""Autoencoder: the trained whole of ``task=autoencoder``, and the frozen map to its latents that codecs use.

It encodes the states of a codec (pixels, samples of a sound) and so serves every modality. A run with
``codec=latent codec.ckpt=RUN`` diffuses its latents: first the codec, then the encoder's mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.build import build
from suffuse.checkpoint import is_autoencoder, read
from suffuse.errors import CheckpointError, ConfigError
from suffuse.finding import find_checkpoint
from suffuse.model import Facts
from suffuse.noise import KeyedNoise
from suffuse.objective import Loss
from suffuse.reconstruction import Reconstruction
from suffuse.trust import check

__all__ = ["Autoencoder", "Coder", "Frozen"]


class Autoencoder(nn.Module):
    """A network of two halves and what it minimises.

    Arguments:
        cfg: Config with the groups ``model`` and ``objective``.
        facts: Facts of the data; states are divided by their deviation before they are encoded.

    Raises:
        ConfigError: For a state of named fields, or groups that do not fit.
    """

    def __init__(self, cfg: Mapping[str, Any], facts: Facts) -> None:
        super().__init__()
        if isinstance(facts.shape, Mapping):
            raise ConfigError(f"task=autoencoder encodes one tensor; this data's states are {sorted(facts.shape)}")
        self.facts = facts
        self.scale = float(facts.sigma_data)
        self.network = build(cfg["model"], "model", shape=facts.shape, about=facts.about)
        if not hasattr(self.network, "encode"):
            raise ConfigError(f"model={cfg['model']['_target_']} has no encoder; take model=autoencoder")
        self.objective: Reconstruction = build(cfg["objective"], "objective", shape=facts.shape, about=facts.about)
        if not isinstance(self.objective, Reconstruction):
            raise ConfigError(f"objective={cfg['objective']['_target_']} does not train autoencoders")
        term: Any
        for term in self.objective.terms.values():
            term.scale = self.scale

    @classmethod
    def load(cls, saved: Mapping[str, Any], weights: str = "ema") -> Autoencoder:
        """Build the autoencoder of a checkpoint.

        Raises:
            CheckpointError: When the checkpoint is of something else.
        """
        record = saved["suffuse"]
        if not is_autoencoder(saved):
            raise CheckpointError("holds no autoencoder; train one with task=autoencoder")
        check(record["config"], "the checkpoint of the autoencoder")
        model = cls(record["config"], Facts.restore(record["facts"]))
        state = saved["state_dict"] if weights == "ema" else saved.get("current_model_state", saved["state_dict"])
        model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
        return model.eval()

    def prepare(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return conditions as they are: they are not used."""
        return dict(raw)

    def loss(
        self, x0: Tensor, raw: Mapping[str, Tensor], noise: KeyedNoise, step: int, positions: Tensor, total: int
    ) -> Loss:
        """Return the loss of a batch of states (B, C, ...); latents are drawn in training, means are taken else."""
        x = x0 / self.scale
        mean, log_var = self.network.encode(x)
        z = mean
        if self.training:
            z = mean + (0.5 * log_var).exp() * noise.normal(mean.detach(), step)
        per_sample, more = self.objective(self.network.decode(z), x, mean, log_var, step)
        return Loss((per_sample + more).mean(), per_sample, torch.zeros_like(per_sample))

    def encode(self, x0: Tensor) -> Tensor:
        """Return the mean latent (B, D, *spatial / factor) of states (B, C, *spatial)."""
        mean: Tensor = self.network.encode(x0 / self.scale)[0]
        return mean

    def decode(self, z: Tensor) -> Tensor:
        """Return the states of latents."""
        out: Tensor = self.network.decode(z) * self.scale
        return out

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


class Coder(nn.Module):
    """A frozen autoencoder behind a codec: data to latents and back, without gradients.

    Arguments:
        model: Encodes states (B, C, *spatial) to latents (B, D, *spatial / factor) and decodes them; its ``network``
            holds the weights.
        codec: Encodes data to states.
        batch: Rows that are encoded or decoded at a time.
        factor: Entries of a state to one of a latent, per axis.
        latent: Channels D of a latent.
    """

    def __init__(self, model: nn.Module, codec: Any, batch: int, factor: Sequence[int], latent: int) -> None:
        super().__init__()
        self.model: Any = model
        self._codec = (codec,)  # in a tuple, so that its weights become no part of this one's
        self.batch, self.factor, self.latent = batch, tuple(factor), latent
        self.requires_grad_(False).eval()

    @property
    def codec(self) -> Any:
        """The codec whose states are encoded."""
        return self._codec[0]

    def encode(self, x: Any) -> Tensor:
        """Return the latents of a batch of data."""
        state = self.codec.encode(x)
        with torch.no_grad():
            return torch.cat([self.model.encode(part) for part in torch.split(state, self.batch)])

    def decode(self, z: Tensor) -> Any:
        """Return the data of latents."""
        with torch.no_grad():
            return self.codec.decode(
                torch.cat([self.model.decode(part) for part in torch.split(z.float(), self.batch)])
            )

    def digest(self) -> str:
        """Return a short hash of the weights."""
        found = hashlib.blake2b(digest_size=8)
        for name, value in sorted(self.model.network.state_dict().items()):
            found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


class Frozen(Coder):
    """A trained autoencoder behind its own codec.

    Arguments:
        ckpt: Run directory or checkpoint file.
        about: Facts of the data it is used on.
        batch: Rows that are encoded or decoded at a time.

    Raises:
        ConfigError: Without `ckpt`.
        CheckpointError: When there is none, or it holds no autoencoder.
    """

    def __init__(self, ckpt: str | None, about: Mapping[str, Any] | None = None, batch: int = 64) -> None:
        if not ckpt:
            raise ConfigError("codec.ckpt is not set; give the run of an autoencoder, trained with task=autoencoder")
        path = find_checkpoint(str(ckpt))
        saved = read(path)
        try:
            model = Autoencoder.load(saved)
        except CheckpointError as error:
            raise CheckpointError(f"codec.ckpt={ckpt}: {error}") from error
        # The codec of the autoencoder keeps what was measured for it; length and the like are the new data's.
        trained = model.facts.about
        facts = {**(trained if about is None else about), "codec": trained.get("codec")}
        codec = build(saved["suffuse"]["config"]["codec"], "codec", about=facts)
        super().__init__(model, codec, batch, model.network.factor, model.network.latent)
