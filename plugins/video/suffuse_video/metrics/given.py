"""Given: how true given frames come back, and how far what follows them is from the real clip.

Held-out clips are begun with their own first frames (image to video for one frame), drawn for their own captions or
classes, and compared with what they really go on as. A model that was told the frames as clean ones gives them back
exactly, up to rounding; one that only ends there by inpainting does too, but what follows may not fit them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from suffuse.data import Data
from suffuse.edit import Edit
from suffuse.errors import DataError, check_whole
from torch import Tensor

from suffuse_video.metrics.reconstruction import ssim
from suffuse_video.ragged import each

__all__ = ["Given", "compared"]


class Given:
    """Figures of clips that were begun with the first frames of held-out ones.

    - ``given_psnr``, ``given_ssim``: peak signal-to-noise ratio in decibels (at most 100) and structural similarity of
      the given frames with what was given, the mean over clips; ``given_psnr_least`` of the worst clip.
    - ``after_psnr``, ``after_ssim``: the same of the frames that were drawn, against those of the real clip. There is
      more than one way to go on, so of a good model they are high, not perfect.

    Arguments:
        frames: How many frames are given.
        count: Clips that are drawn, at most.

    Raises:
        ConfigError: When an argument is below 1.
    """

    def __init__(self, frames: int = 1, count: int = 64) -> None:
        for name, value in (("frames", frames), ("count", count)):
            check_whole(f"metrics.{name}", value)
        self.frames, self.count = frames, count

    def begin(self, codec: Any, data: Data) -> tuple[dict[str, Tensor], Edit]:
        """Return the conditions of held-out clips, one row each, and what is known of them.

        Raises:
            DataError: When clips are no longer than what is given, or the states are no frames.
        """
        items = data.sample(self.count, held_out=True)
        x = torch.utils.data.default_collate([item["x"] for item in items])
        raw = torch.utils.data.default_collate([dict(item["cond"]) for item in items])
        if min(clip.shape[1] for clip in each(x)) <= self.frames:
            raise DataError(f"metrics.frames={self.frames}: some held-out clips have no more; give fewer")
        with torch.no_grad():
            known = codec.encode(x)
        fields = known if isinstance(known, Mapping) else {"x": known}
        frames = (x["x"] if isinstance(x, Mapping) else x).shape[2]
        if fields["x"].shape[2] != frames:
            raise DataError("metrics=video/given: frames are given to models of pixels; latents hold several at once")
        stays = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in fields.items()}
        stays["x"][:, :, self.frames :] = False
        return raw, Edit(known, stays if isinstance(known, Mapping) else stays["x"])

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of clips that were drawn for `begin`, in its order."""
        count = len(each(samples))
        items = data.sample(self.count, held_out=True)[:count]
        x = torch.utils.data.default_collate([item["x"] for item in items])
        return compared(each(samples), each(x), self.frames)


def compared(drawn: list[Tensor], real: list[Tensor], frames: int) -> dict[str, float]:
    """Return the figures of clips (3, T, H, W) in [0, 1] whose first `frames` frames were given."""
    rows = []
    for y, x in zip(drawn, real, strict=True):
        # What a file holds is what is compared.
        y, x = ((clip.detach().cpu().double().clamp(0, 1) * 255).round() / 255 for clip in (y, x))
        parts = ((y[:, :frames], x[:, :frames]), (y[:, frames:], x[:, frames:]))
        rows.append([value for a, b in parts for value in (_psnr(a, b), float(ssim(*_pictures(a, b)).mean()))])
    table = torch.tensor(rows, dtype=torch.float64)
    names = ("given_psnr", "given_ssim", "after_psnr", "after_ssim")
    means = dict(zip(names, table.mean(0).tolist(), strict=True))
    return means | {"given_psnr_least": float(table[:, 0].min())}


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a - b).square().mean().clamp(min=1e-10).log10())


def _pictures(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.transpose(0, 1), b.transpose(0, 1)
