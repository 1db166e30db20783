"""Fad: Fréchet audio distance in the features of a pretrained model.

The distance of two Gaussians fitted to features of sounds ("Fréchet Audio Distance: A Metric for Evaluating Music
Enhancement Algorithms", Kilgour et al. 2019, eq. 1), here those of CLAP's audio tower ("Large-scale Contrastive
Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption Augmentation", Wu et al. 2023), projected and
of unit length, whose distances follow listeners better than those of VGGish ("Adapting Frechet Audio Distance for
Generative Music Evaluation", Gui et al. 2024). Unlike `Features` it compares runs on different data.

It reads a folder of transformers. Of the libraries for this, fadtk, kadtk and frechet-audio-distance compare folders of
files with weights that they download by name, are untyped, and bring laion-clap and NumPy below 2.
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

from suffuse_audio import dsp
from suffuse_audio.ragged import alone, each

__all__ = ["Clap", "Fad"]


class Clap:
    """The audio tower of a CLAP model.

    Arguments:
        path: See `suffuse.transformers_model.load`, as for `download`.
        download: See there.
        batch: Sounds at a time.

    Raises:
        ConfigError: Without `path`, without transformers, or when there is no such model.
    """

    def __init__(self, path: str | None, download: bool = False, batch: int = 16) -> None:
        self.batch = check_whole("metrics.batch", batch)
        self.extractor, self.model = load(
            path, download, "ClapFeatureExtractor", "ClapModel", "CLAP", "metrics=audio/fad"
        )  # fmt: skip
        self.rate = int(self.extractor.sampling_rate)

    @torch.no_grad()
    def __call__(self, x: Tensor | Sequence[Tensor], rate: int) -> Tensor:
        """Return features (K, D) of sounds (C, N), mixed to mono; of long ones the first ten seconds count."""
        mono = [dsp.resample(row.float().mean(0), rate, self.rate) for row in x]
        self.model.to(mono[0].device)
        return torch.cat([self._features(mono[i : i + self.batch]) for i in range(0, len(mono), self.batch)]).cpu()

    def _features(self, mono: Sequence[Tensor]) -> Tensor:
        # Whatever is longer would be cropped at random, or fused from random crops.
        rows = [row[: self.extractor.nb_max_samples].cpu().numpy() for row in mono]
        read = self.extractor(rows, sampling_rate=self.rate, return_tensors="pt")
        longer = torch.zeros(len(rows), 1, dtype=torch.bool, device=mono[0].device)
        out = self.model.get_audio_features(
            input_features=read["input_features"].to(mono[0].device, torch.float32), is_longer=longer
        )
        features: Tensor = out if isinstance(out, Tensor) else out.pooler_output
        return features.float()


class Fad:
    """Fréchet audio distance of samples to training sounds, beside that of held-out sounds.

    - ``fad``: distance of the samples to `reference` training sounds, 0 at best.
    - ``fad_real``: distance of held-out sounds to them. It is what a perfect model would score.
    - ``fad_num``: how many sounds either is of: as many held-out ones as samples, for few sounds are further away.

    Arguments:
        path: See `Clap`.
        download: See `Clap`.
        batch: See `Clap`.
        reference: Training sounds that are looked at, evenly spaced.

    Raises:
        ConfigError: As `Clap`, and when `reference` is below 2.
    """

    def __init__(self, path: str | None = None, download: bool = False, batch: int = 16, reference: int = 1000) -> None:
        self.reference = check_whole("metrics.reference", reference, 2)
        self.clap = Clap(path, download, batch)

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of samples (K, C, N), or of lengths of their own, see `suffuse_audio.ragged`.

        Raises:
            DataError: With fewer than two samples or held-out sounds.
        """
        rate = int(data.spec.about.get("rate", 8000))
        return beside_real(
            "fad", lambda part: self.clap(part, rate), [x.nan_to_num() for x in each(samples)], data, alone,
            self.reference, self.clap.batch, "sounds",
        )  # fmt: skip
