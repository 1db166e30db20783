"""Features: how close samples come to held-out sounds, and whether they are what was asked for.

All figures come from a small convolutional network on log-mel spectrograms, trained on the run's own training sounds to
tell their classes, so they compare runs on the same data. Each stands beside what real held-out sounds score.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from suffuse.data import Data, spaced
from suffuse.errors import DataError, check_whole
from suffuse.frechet import frechet
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse_audio import dsp
from suffuse_audio.ragged import together

__all__ = ["Features", "LogMelNet", "train"]

_log = logging.getLogger(__name__)


class LogMelNet(nn.Module):
    """Log-mel spectrogram, four convolutions, mean and maximum over time: features, and a class.

    Arguments:
        rate: Samples per second.
        classes: Number of classes.
        width: Channels of the first convolution.
    """

    def __init__(self, rate: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.rate, self.size = rate, 2 ** round(torch.log2(torch.tensor(rate * 0.032)).item())
        layers: list[nn.Module] = []
        inputs = 1
        for outputs in (width, 2 * width, 4 * width, 6 * width):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.leave = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * inputs, classes))

    def pictures(self, x: Tensor) -> Tensor:
        """Return log-mel spectrograms (B, 1, 64, frames) of samples (B, C, N), mixed to mono."""
        mono = x.float().mean(1)
        hop = max(1, min(self.size // 2, mono.shape[-1] // 48))
        power = dsp.mel(self.rate, self.size, hop, 64).to(x.device)(mono)
        log = (power + 1e-7).log10()
        return ((log + 2.5) / 2)[:, None]

    def features(self, pictures: Tensor) -> Tensor:
        """Return features (B, 12 · width)."""
        h = self.layers(pictures).mean(2)
        return torch.cat([h.mean(-1), h.amax(-1)], 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits of the classes."""
        logits: Tensor = self.leave(self.features(pictures))
        return logits


def train(x: Tensor, labels: Tensor, classes: int, rate: int, steps: int = 600, seed: int = 0) -> LogMelNet:
    """Return a network trained to tell classes, with shifts and masked bands as augmentation.

    Arguments:
        x: Sounds (K, C, N).
        labels: Class of each, shape (K,).
        classes: How many there are.
        rate: Samples per second.
        steps: Batches of 64.
        seed: Seed of weights and batches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = LogMelNet(rate, classes)
        with torch.no_grad():
            pictures = torch.cat([net.pictures(part) for part in x.split(256)])
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (64,))
            loss = F.cross_entropy(net(_varied(pictures[rows])), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


def _varied(pictures: Tensor) -> Tensor:
    """Return spectrograms shifted in time and level, with one band and one stretch blanked."""
    rows, _, bins, frames = pictures.shape
    shift = torch.randint(-frames // 8, frames // 8 + 1, (rows, 1))
    at = (torch.arange(frames)[None] + shift).clamp(0, frames - 1)
    varied = pictures.gather(3, at[:, None, None].expand(-1, 1, bins, -1))
    varied = varied + 0.15 * torch.randn(rows, 1, 1, 1)
    quiet = varied.amin((2, 3), keepdim=True)
    band, place = torch.randint(bins, (rows, 1)), torch.randint(frames, (rows, 1))
    blank = ((torch.arange(bins) - band).abs() < bins // 12)[:, None, :, None]
    gap = ((torch.arange(frames) - place).abs() < frames // 12)[:, None, None]
    return torch.where(blank | gap, quiet, varied)


class Features:
    """Figures of samples against the run's data.

    - ``agreement``: share of the samples that the classifier gives the class they were drawn for.
    - ``agreement_real``: its accuracy on held-out sounds, the most that ``agreement`` can be trusted to mean.
    - ``frechet``: distance of the samples to held-out sounds in its features, 0 at best; ``frechet_real`` of as many
      training sounds.
    - ``agreement_worst``: the lowest agreement of a class.

    Arguments:
        train_steps: Batches of the classifier.
        seed: Seed of the network.

    Raises:
        ConfigError: When `train_steps` is below 1.
    """

    def __init__(self, train_steps: int = 600, seed: int = 0) -> None:
        check_whole("metrics.train_steps", train_steps)
        self.train_steps, self.seed = train_steps, seed
        self._kept: tuple[Data, LogMelNet, Tensor, Tensor, float] | None = None

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures.

        Arguments:
            samples: Sounds (K, C, N), or of lengths of their own, see `suffuse_audio.ragged`: real and drawn ones are
                then followed by silence to the longest of the data, so that lengths are compared too.
            cond: Conditions of the samples, with ``label``.
            data: The data of the run.

        Raises:
            DataError: Without classes, or with fewer than two samples.
        """
        if len(data.spec.labels) < 2:
            raise DataError("metrics=audio/features needs classes; use metrics=none")
        samples = together(samples, int(data.spec.about.get("samples", 8192)))
        if len(samples) < 2:
            raise DataError("metrics: fewer than two samples; raise metrics_num")
        net, of_val, of_train, accuracy = self._real(data)
        with torch.no_grad():
            pictures = torch.cat([net.pictures(part) for part in samples.cpu().nan_to_num().split(256)])
            features = torch.cat([net.features(part) for part in pictures.split(256)])
            guess = net.leave(features).argmax(1)
        asked = cond["label"].cpu()
        figures = {"agreement_real": accuracy}
        if (asked >= 0).any():
            right = (guess == asked).double()
            figures["agreement"] = right[asked >= 0].mean().item()
            figures["agreement_worst"] = min(right[asked == k].mean().item() for k in asked[asked >= 0].unique())
        figures["frechet"] = frechet(features, of_val)
        figures["frechet_real"] = frechet(of_train[: max(2, len(features))], of_val)
        return figures

    def _real(self, data: Data) -> tuple[LogMelNet, Tensor, Tensor, float]:
        """Return the classifier, features of held-out and training sounds, and its accuracy on the held-out ones."""
        if self._kept is None or self._kept[0] is not data:
            x, labels = _taken(data.train)
            val, of_val = _taken(data.val)
            rate = int(data.spec.about.get("rate", 8000))
            net = train(x, labels, len(data.spec.labels), rate, self.train_steps, self.seed)
            with torch.no_grad():
                read = [torch.cat([net.features(net.pictures(p)) for p in s.split(256)]) for s in (val, x[:2000])]
                guess = net.leave(read[0]).argmax(1)
            accuracy = (guess == of_val).double().mean().item()
            _log.info("metrics: the classifier is right on %.2f %% of held-out sounds", 100 * accuracy)
            self._kept = (data, net, read[0], read[1], accuracy)
        return self._kept[1], self._kept[2], self._kept[3], self._kept[4]


def _taken(split: Any, limit: int = 8000) -> tuple[Tensor, Tensor]:
    """Return sounds and classes of at most `limit` items with a class, in an order that mixes them."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist()
    items = [split[order[i]] for i in spaced(len(split), limit)]
    items = [item for item in items if int(item["cond"]["label"]) >= 0]
    if len(items) < 2:
        raise DataError("metrics: fewer than two items with a class")
    x = torch.utils.data.default_collate([item["x"] for item in items])
    width = x["x"].shape[-1] if isinstance(x, Mapping) else x.shape[-1]
    return together(x, width), torch.tensor([int(item["cond"]["label"]) for item in items])
