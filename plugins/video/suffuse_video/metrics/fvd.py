"""Fvd: Fréchet video distance in the features of a pretrained model.

The distance of two Gaussians fitted to features of clips ("Towards Accurate Generative Models of Video: A New Metric &
Challenges", Unterthiner et al. 2018, section 3), here the mean of VideoMAE's last hidden states: features of a model
that was trained without labels count motion as well as looks, those of the action classifier I3D mostly single frames
("On the Content Bias in Fréchet Video Distance", Ge et al. 2024, section 4). Unlike `Features` it compares runs on
different data.

It reads a folder of transformers. I3D itself goes about as a TorchScript file, which is a program that runs when it is
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from suffuse.data import Data
from suffuse.errors import check_whole
from suffuse.frechet import beside_real
from suffuse.transformers_model import load
from torch import Tensor
from torch.nn import functional as F

from suffuse_video.ragged import alone, each

__all__ = ["Fvd", "VideoMae"]


class VideoMae:
    """A VideoMAE encoder.

    Arguments:
        path: See `suffuse.transformers_model.load`, as for `download`.
        download: See there.
        batch: Clips at a time.

    Raises:
        ConfigError: Without `path`, without transformers, or when there is no such model.
    """

    def __init__(self, path: str | None, download: bool = False, batch: int = 8) -> None:
        self.batch = check_whole("metrics.batch", batch)
        processor, self.model = load(
            path, download, "VideoMAEImageProcessor", "VideoMAEModel", "VideoMAE", "metrics=video/fvd"
        )  # fmt: skip
        self.frames, self.side = int(self.model.config.num_frames), int(self.model.config.image_size)
        self.mean, self.std = (torch.tensor(v).view(1, 1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))

    @torch.no_grad()
    def __call__(self, clips: Sequence[Tensor]) -> Tensor:
        """Return features (K, D) of clips (3, T, H, W) in [0, 1].

        The frames that the model sees are spread evenly over the clip, repeated where it has fewer; the whole frame is
        brought to the model's square.
        """
        self.model.to(clips[0].device)
        parts = [clips[i : i + self.batch] for i in range(0, len(clips), self.batch)]
        return torch.cat([self._features(torch.stack([self._seen(x) for x in part])) for part in parts]).cpu()

    def _seen(self, clip: Tensor) -> Tensor:
        """Return what the model sees of a clip, (frames, 3, side, side)."""
        chosen = torch.linspace(0, clip.shape[1] - 1, self.frames).round().long()
        frames = clip.float()[:, chosen].transpose(0, 1)
        return F.interpolate(frames, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)

    def _features(self, x: Tensor) -> Tensor:
        out = self.model(pixel_values=(x - self.mean.to(x)) / self.std.to(x)).last_hidden_state
        features: Tensor = out.float().mean(1)
        return features


class Fvd:
    """Fréchet video distance of samples to training clips, beside that of held-out clips.

    - ``fvd``: distance of the samples to `reference` training clips, 0 at best.
    - ``fvd_real``: distance of held-out clips to them. It is what a perfect model would score.
    - ``fvd_num``: how many clips either is of: as many held-out ones as samples, for few clips are further away.

    Arguments:
        path: See `VideoMae`.
        download: See `VideoMae`.
        batch: See `VideoMae`.
        reference: Training clips that are looked at, evenly spaced.

    Raises:
        ConfigError: As `VideoMae`, and when `reference` is below 2.
    """

    def __init__(self, path: str | None = None, download: bool = False, batch: int = 8, reference: int = 1000) -> None:
        self.reference = check_whole("metrics.reference", reference, 2)
        self.model = VideoMae(path, download, batch)

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of samples (K, 3, T, H, W), or of lengths of their own, see `suffuse_video.ragged`.

        Raises:
            DataError: With fewer than two samples or held-out clips.
        """
        return beside_real(
            "fvd", self.model, [x.nan_to_num().clamp(0, 1) for x in each(samples)], data, alone, self.reference,
            self.model.batch, "clips",
        )  # fmt: skip
