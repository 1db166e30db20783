r"""Latent: latents of an autoencoder of clips or of pictures, standardised per channel.

It is one that ``task=autoencoder`` trained, or one of diffusers, from a folder or the hub (safetensors only): of clips,
as ``AutoencoderKLWan``, ``AutoencoderKLLTXVideo``, ``AutoencoderKLHunyuanVideo`` and ``AutoencoderKLCogVideoX``, or of
pictures, as ``AutoencoderKL``, ``AutoencoderTiny`` and ``AutoencoderDC``, which encodes every frame by itself.
z = (E[z | 2 x - 1] - m) / s, see `suffuse.latent`. The autoencoder is frozen and no part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from suffuse.errors import ConfigError
from suffuse.latent import Given
from suffuse.state import State
from torch import Tensor

from suffuse_video.codec.pixels import asked
from suffuse_video.codec.pretrained import Pretrained
from suffuse_video.codec.sizes import Sizes
from suffuse_video.codec.tiles import tile_in
from suffuse_video.ragged import Spans, drawn, together

__all__ = ["Latent"]


class Latent(Given):
    """Latents (B, D, T', H', W').

    Arguments:
        ckpt: Run directory or checkpoint of ``task=autoencoder``; or give `path`.
        path: Folder of an autoencoder of diffusers, its pipeline (with a folder ``vae``), or a name on the hub.
        download: Allow the hub; else only what is on disk.
        batch: Clips that are encoded or decoded at a time.
        tile: Side in pixels of the overlapping squares that larger frames are encoded and decoded in; None for whole
            frames.
        statistics: ``data`` for m and s measured on the data, ``own`` for those that come with the autoencoder.
        about: Facts of the data: ``frames``, ``height``, ``width``.
        frames: Frames of the samples that are drawn; see `Pixels`.

    Raises:
        ConfigError: Without exactly one of `ckpt` and `path`, without diffusers for the latter, when clips of the data
            or of `frames` do not come back from the autoencoder in their size, or an argument is out of range.
        CheckpointError: When there is no autoencoder at `ckpt`, or another one than the model was trained on.
    """

    def __init__(
        self, ckpt: str | None = None, path: str | None = None, download: bool = False, batch: int = 8,
        tile: int | None = None, statistics: str = "data", about: Mapping[str, Any] | None = None,
        frames: int | Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        facts = dict(about or {})
        wanted = asked(frames, facts)
        lengths, trained, longest = facts.get("lengths"), facts.get("frames"), max(wanted) if wanted else None
        if longest and facts and not lengths:
            facts["frames"] = longest
        super().__init__(
            ckpt, path, batch, statistics, facts, lambda name: Pretrained(name, download, facts, batch)
        )  # fmt: skip
        self.asked, self.lengths, self.trained, self.frames = wanted, lengths, trained, longest
        self.sizes = Sizes(self.coder, self.named)
        self.shape = self.sizes.latent([int(facts[k]) for k in ("frames", "height", "width")]) if facts else ()
        self.size = tuple(int(facts[k]) for k in ("height", "width")) if facts else ()
        self.spans = Spans(super().encode, super().decode, self._span)
        self.implied = getattr(self.coder.codec, "implied", {})
        if tile is not None:
            tile_in(self.coder, tile)
        self.eval()

    def _span(self, frames: int) -> tuple[int, int]:
        """Return the frames of the least clip of at least so many that comes back whole, and those of its latent."""
        for t in range(frames, frames + 65):
            found = self.sizes.find(t, *self.size)
            if found is not None:
                return t, found[1]
        return frames, self.sizes.latent((frames, *self.size))[1]  # raises, and says what would do

    def measure(self, x: Any) -> Mapping[str, Any]:
        """Return mean and deviation of every latent channel, and a hash of the weights."""
        if isinstance(x, Mapping):
            x = together(x, int(self.trained or 1))
        return super().measure(x)

    def encode(self, x: Any) -> Any:
        """Return standardised latents (B, D, T', H', W').

        Arguments:
            x: Clips in [0, 1], shape (B, 3, T, H, W), or of lengths of their own, see `suffuse_video.ragged`.
        """
        if isinstance(x, Mapping):
            return self.spans.encode(x)
        self.sizes.latent(x.shape[2:])
        return super().encode(x)

    def decode(self, state: Any) -> Any:
        """Return clips."""
        if isinstance(state, Mapping) and "length" in state:
            return self.spans.decode(state, int(self.trained or 1))
        return super().decode(state)

    def like(self, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> State:
        """Return an empty state of the wanted length, one row per seed; of several, their masks and lengths."""
        if not self.lengths:
            return torch.empty(len(seeds), *self.shape, device=device)
        return self.spans.empty(drawn(seeds, self.asked, self.lengths), int(self.trained or 1), self.shape, device)

    def open(self, init: str, mask: str | None) -> Any:
        """Return the latent of a file, see `suffuse.latent.Latent.open`.

        Raises:
            ConfigError: Where clips have lengths of their own.
        """
        if self.lengths:
            raise ConfigError(f"init={init}: latents of lengths of their own are not edited; use codec=video/pixels")
        return super().open(init, mask)
