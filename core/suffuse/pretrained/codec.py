"""Codec: the latents of a published autoencoder, scaled as its denoiser was trained.

z = (E[z | x] - shift) scale with the folder's own ``shift_factor`` and ``scaling_factor`` (or mean and deviation per
channel); back again x = D(z / scale + shift). Between the data and the autoencoder stands the modality's own codec of
plain numbers, pixels or waveforms, which also reads files for editing. A model without an autoencoder has that alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse.build import build
from suffuse.codec import opened as read
from suffuse.errors import ConfigError, check_whole
from suffuse.pretrained.folder import opened

__all__ = ["Published"]


class Published(nn.Module):
    """States of a published model.

    Arguments:
        path: The folder.
        inner: Config of the modality's codec of plain numbers.
        batch: Rows that are encoded or decoded at a time.
        tiled: Decode in overlapping tiles, which takes less memory.
        height: Of the pictures that are drawn; by default the model's.
        width: See `height`.
        seconds: Length of the sounds that are drawn; by default the longest.
        place: Where a picture that is extended lies, as the modality says it.
        about: Facts of the data.

    Raises:
        ConfigError: For a size that the model cannot draw, data that are not the autoencoder's, and as
            `suffuse.pretrained.folder`.
    """

    tolerance = float("inf")
    measured = 16
    """Items that the spread of the state is measured on: it plays no part here."""

    def __init__(
        self, path: str, inner: Mapping[str, Any] | None = None, batch: int = 4, tiled: bool = False,
        height: int | None = None, width: int | None = None, seconds: float | None = None, place: str = "middle",
        about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if inner is None:
            raise ConfigError("codec.inner is not set; choose the model with pretrained=FOLDER, which fills it in")
        check_whole("codec.batch", batch)
        self.folder = folder = opened(path)
        about = dict(about or {})
        self.audio = folder.family.modality == "audio"
        self.vae: Any = None
        if folder.family.vae:
            self.vae = folder.load("vae").requires_grad_(False)
        self.rate = int(folder.config("vae").get("sampling_rate", 44100)) if self.audio else 0
        self._check_data(about)
        sides = {} if self.audio else {"height": height, "width": width, "place": place}
        self.inner = build(inner, "codec.inner", about=self._known() | about, **sides)
        self.batch = batch
        if tiled:
            if not hasattr(self.vae, "enable_tiling"):
                raise ConfigError("tiled=true: this model's autoencoder cannot decode in tiles")
            self.vae.enable_tiling()
        self.seconds = seconds
        if seconds is not None:
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
                raise ConfigError(f"seconds={seconds} must be a number above 0")
            self.implied = {"seconds": float(seconds)}
        # What a run was trained on is drawn by default, not what the folder was.
        self.own = tuple((about.get("codec") or {}).get("size") or folder.size)
        self.wanted = self._size(height, width)

    def _known(self) -> dict[str, Any]:
        """Return the facts of data of the model's own size."""
        sides = [side * self.folder.factor for side in self.folder.size]
        if self.audio:
            return {"rate": self.rate, "channels": self.channels, "samples": sides[0]}
        return {"size": sides, "channels": self.channels}

    @property
    def channels(self) -> int:
        """Channels of the numbers that the autoencoder takes."""
        if self.vae is None:
            return self.folder.latent
        return int(self.vae.config.audio_channels if self.audio else self.vae.config.in_channels)

    def _check_data(self, about: Mapping[str, Any]) -> None:
        if not self.audio or not about.get("rate"):
            return
        for name, own in (("rate", self.rate), ("channels", self.channels)):
            if int(about.get(name, own)) != own:
                raise ConfigError(
                    f"codec: the model's sounds have {name} {own}, the data's {about[name]}; set data.{name}={own}"
                )

    def _size(self, height: int | None, width: int | None) -> tuple[int, ...] | None:
        """Return the size of a state that was asked for; None for none."""
        for name, side in (("height", height), ("width", width)):
            if side is None:
                continue
            if isinstance(side, bool) or not isinstance(side, int) or side < 1 or side % self.folder.multiple:
                raise ConfigError(
                    f"{name}={side} must be a multiple of {self.folder.multiple}, as this model draws them"
                )
        if height is None and width is None:
            return None
        own, factor = self.own, self.folder.factor
        return (own[0] if height is None else height // factor, own[-1] if width is None else width // factor)

    def like(self, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> Tensor:
        """Return an empty state of the size that is drawn, one row per seed."""
        return torch.empty(len(seeds), self.folder.latent, *(self.wanted or self.own), device=device)

    def measure(self, x: Any) -> Mapping[str, Any]:
        """Return the size of a state of the data."""
        return {"size": [side // self.folder.factor for side in self.inner.encode(x).shape[2:]]}

    def encode(self, x: Any) -> Tensor:
        """Return states (B, C, ...) of data."""
        signal = self.inner.encode(x)
        self._check_sides(signal)
        return signal if self.vae is None else self._latents(signal)

    def _check_sides(self, signal: Tensor) -> None:
        sides = signal.shape[2:]
        if any(side % self.folder.multiple for side in sides):
            shown = " x ".join(map(str, sides))
            step = self.folder.multiple
            raise ConfigError(f"codec: items of {shown} do not fill whole latents; sides must be multiples of {step}")
        if signal.shape[1] != self.channels:
            raise ConfigError(
                f"codec: items have {signal.shape[1]} channels, the model takes {self.channels}; set "
                f"data.channels={self.channels}"
            )

    @torch.no_grad()
    def _latents(self, signal: Tensor) -> Tensor:
        self._move(signal.device)
        found = []
        for part in torch.split(signal, self.batch):
            out = self.vae.encode(part)
            found.append(out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents)
        shift, scale = self._scaling(found[0])
        return (torch.cat(found) - shift) * scale

    @torch.no_grad()
    def decode(self, state: Any) -> Any:
        """Return data of states."""
        if not isinstance(state, Tensor):
            raise TypeError(f"a published model decodes one tensor, not {type(state).__name__}")
        if self.vae is None:
            return self.inner.decode(state)
        self._move(state.device)
        shift, scale = self._scaling(state)
        z = state.float() / scale + shift
        signal = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in torch.split(z, self.batch)])
        if self.seconds is not None:
            signal = signal[..., : int(self.seconds * self.rate)]
        return self.inner.decode(signal)

    def _scaling(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and scale, broadcasting against z."""
        config = self.vae.config
        scale, shift = getattr(config, "scaling_factor", None), getattr(config, "shift_factor", None)
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if self.audio:
            scale = shift = mean = std = None

        def along(values: Any, default: float) -> Tensor:
            found = torch.as_tensor(default if values is None else values, dtype=torch.float32, device=z.device)
            return found.reshape(1, -1, *[1] * (z.ndim - 2))

        if mean is not None and std is not None and self.folder.family.name == "Stable Diffusion XL":
            return along(mean, 0.0), along(scale, 1.0) / along(std, 1.0)
        return along(shift, 0.0), along(scale, 1.0)

    def _move(self, device: torch.device) -> None:
        if next(self.vae.parameters()).device != device:
            self.vae.to(device)

    def open(self, init: str, mask: str | None) -> tuple[Tensor, Tensor | None]:
        """Return the state of a file, one row, and which of its entries stay: those with nothing of a mask above them.

        How the file comes to the size that is drawn is the modality's to say.

        Raises:
            ConfigError: For a file or a mask that cannot be used.
        """
        signal, kept = read(self.inner, init, mask)
        assert isinstance(signal, Tensor) and (kept is None or isinstance(kept, Tensor))
        signal = signal.float()
        self._check_sides(signal)
        if not self.audio:
            self.wanted = tuple(side // self.folder.factor for side in signal.shape[2:])
        z = signal if self.vae is None else self._latents(signal)
        if kept is None:
            return z, None
        factor = self.folder.factor
        lost = (~kept).float().amax(1, keepdim=True)
        stays = (F.max_pool1d if self.audio else F.max_pool2d)(lost, factor) == 0
        if not stays.any():
            raise ConfigError(f"mask={mask}: it reaches into every latent of {factor} entries; keep more")
        return z, stays.expand(z.shape)
