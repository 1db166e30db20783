"""Features: how close clips come to held-out ones, and whether they are what was asked for.

All figures come from a small network trained on the run's own training clips to tell what they were asked for: their
classes, or their captions where those are few. It sees single frames and how they differ from the one before, so both
looks and motion count. They compare runs on the same data; each stands beside what real held-out clips score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from suffuse.data import Data
from suffuse.errors import DataError, check_whole
from suffuse.frechet import frechet
from suffuse.text import captions_of
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse_video.ragged import together

__all__ = ["ClipNet", "Features", "train"]

SIDE, FRAMES, CAPTIONS = 32, 16, 400
"""Largest side and number of frames that the network sees, and the most captions that are told apart."""


class ClipNet(nn.Module):
    """Convolutions over frames and their differences, then over time: features, and a class.

    Arguments:
        classes: Number of classes.
        width: Channels of the first convolution.
    """

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 6
        for outputs in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = outputs
        self.looks = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.motion = nn.Sequential(nn.Conv1d(4 * inputs, 128, 3, padding=1), nn.BatchNorm1d(128), nn.ReLU())
        self.leave = nn.Sequential(nn.Dropout(0.2), nn.Linear(256, classes))

    def features(self, x: Tensor) -> Tensor:
        """Return features (B, 256) of clips (B, 3, T, H, W) in [0, 1]."""
        frames = x.transpose(1, 2)
        change = torch.diff(frames, dim=1, prepend=frames[:, :1])
        seen = torch.cat([2 * frames - 1, 4 * change], 2)
        looks = self.looks(seen.flatten(0, 1)).reshape(len(x), x.shape[2], -1)
        h = self.motion(looks.transpose(1, 2))
        return torch.cat([h.mean(-1), h.amax(-1)], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the classes."""
        logits: Tensor = self.leave(self.features(x))
        return logits

    @torch.no_grad()
    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and the most likely classes of uint8 clips."""
        features = torch.cat([self.features(part.float() / 255) for part in x.split(128)])
        return features, self.leave(features).argmax(1)


def train(x: Tensor, labels: Tensor, classes: int, steps: int = 400, seed: int = 0) -> ClipNet:
    """Return a network trained to tell classes; a function of its arguments.

    Arguments:
        x: uint8 clips (K, 3, T, H, W).
        labels: Class of each, shape (K,).
        classes: How many there are.
        steps: Batches of 48.
        seed: Seed of weights and batches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = ClipNet(classes)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(steps, 4))
        for _ in range(steps):
            rows = torch.randint(len(x), (48,))
            loss = F.cross_entropy(net(x[rows].float() / 255), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


class Features:
    """Figures of clips against the run's data.

    - ``agreement``: share of the samples that the classifier gives the class (or caption) they were drawn for.
    - ``agreement_real``: its accuracy on held-out clips, the most that ``agreement`` can be trusted to mean.
    - ``frechet``: distance of the samples to held-out clips in its features (`suffuse.frechet`), 0 at best;
      ``frechet_real`` of as many training clips.

    Arguments:
        train_steps: Batches of the classifier.
        seed: Seed of the network.

    Raises:
        ConfigError: When `train_steps` is below 1.
    """

    def __init__(self, train_steps: int = 400, seed: int = 0) -> None:
        check_whole("metrics.train_steps", train_steps)
        self.train_steps, self.seed = train_steps, seed
        self._kept: tuple[Data, _Real] | None = None

    def __call__(self, samples: Any, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures.

        Arguments:
            samples: Clips (K, 3, T, H, W) in [0, 1], or of lengths of their own, see `suffuse_video.ragged`: of all the
                last frame is then held until they are as long as in training.
            cond: Conditions of the samples, with ``label`` or ``text``.
            data: The data of the run.

        Raises:
            DataError: With fewer than two samples or classes, or too many captions to tell apart.
        """
        samples = together(samples, int(data.spec.about.get("frames", FRAMES)))
        if len(samples) < 2:
            raise DataError("metrics: fewer than two samples; raise metrics_num")
        if self._kept is None or self._kept[0] is not data:
            self._kept = (data, self._real(data))
        real = self._kept[1]
        features, guess = real.net.read(_small(samples))
        asked = [real.number.get(name, -1) for name in _asked(cond, len(samples))]
        figures = _agreement("agreement", guess, asked) | real.agreement
        of_train = real.of_train[: max(2, len(features))]
        return figures | {"frechet": frechet(features, real.of_val), "frechet_real": frechet(of_train, real.of_val)}

    def _real(self, data: Data) -> _Real:
        """Return the network and what it says of the data."""
        x, asked_train = _taken(data, 3000, False)
        val, asked_val = _taken(data, 1000, True)
        names = sorted(set(asked_train))
        if not 2 <= len(names) <= CAPTIONS:
            raise DataError(
                f"metrics=video/features tells 2 to {CAPTIONS} classes or captions apart; the data has {len(names)}"
            )
        number = {name: i for i, name in enumerate(names)}
        net = train(x, torch.tensor([number[name] for name in asked_train]), len(names), self.train_steps, self.seed)
        of_val, guess = net.read(val)
        agreement = _agreement("agreement_real", guess, [number.get(name, -1) for name in asked_val])
        return _Real(net, number, of_val, net.read(x[:1000])[0], agreement)


class _Real(NamedTuple):
    """What is known of the data: the network, its classes' numbers, features of both splits, and its accuracy."""

    net: ClipNet
    number: dict[Any, int]
    of_val: Tensor
    of_train: Tensor
    agreement: dict[str, float]


def _agreement(name: str, guess: Tensor, wanted: list[int]) -> dict[str, float]:
    asked = torch.tensor(wanted)
    known = asked >= 0
    return {name: float((guess == asked)[known].double().mean())} if known.any() else {}


def _asked(cond: Mapping[str, Tensor], rows: int) -> list[Any]:
    """Return what every row was asked for: its class, else its caption."""
    if "label" in cond and bool((cond["label"] >= 0).any()):
        return cond["label"].tolist()  # type: ignore[no-any-return]
    return captions_of(cond["text"]) if "text" in cond else [None] * rows


def _taken(data: Data, limit: int, held_out: bool) -> tuple[Tensor, list[Any]]:
    """Return at most `limit` clips, small, and what each was asked for."""
    items = data.sample(limit, held_out=held_out)
    conds: dict[str, Tensor] = torch.utils.data.default_collate([dict(item["cond"]) for item in items])
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    asked = _asked(conds, len(items))
    frames = int(data.spec.about.get("frames", FRAMES))

    def clip(x: Any) -> Tensor:
        return together({name: leaf[None] for name, leaf in x.items()}, frames) if isinstance(x, Mapping) else x[None]

    return torch.cat([_small(clip(items[i]["x"])) for i in order]), [asked[i] for i in order]


def _small(x: Tensor) -> Tensor:
    """Return clips as uint8, no side above 32 and no more than 16 frames: what they are once they are files."""
    frames, height, width = x.shape[2:]
    ratio = min(1.0, SIDE / max(height, width))
    size = (min(frames, FRAMES), max(1, round(height * ratio)), max(1, round(width * ratio)))
    x = x.detach().cpu().float().nan_to_num().clamp(0, 1)
    x = x if size == (frames, height, width) else F.interpolate(x, size, mode="area")
    return (x * 255).round().to(torch.uint8)
