"""Features: a small network whose penultimate layer says how alike two sets of pictures are.

With classes the network is a classifier trained on the run's own training pictures, so its features keep what tells
the classes apart, need no foreign weights, and its accuracy on held-out pictures says how far to trust it. Without
classes it keeps its random initial weights: random convolutional features respond to edges and textures at several
scales, which is coarse, yet the same for every run that has the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["FeatureNet", "stack", "train"]

SIDE = 64
"""Largest side the network sees; larger pictures are averaged down."""


def stack(item: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
    """Return `count` pictures as uint8, shape (count, C, H, W), no side above 64.

    Eight bits, because that is what a sample is once it is a file; samples and data are to be seen alike.

    Arguments:
        item: Gives picture i, float in [0, 1], shape (C, H, W).
        count: How many.
    """
    return torch.stack([_small(item(i)) for i in range(count)])


def _small(x: torch.Tensor) -> torch.Tensor:
    if max(x.shape[-2:]) > SIDE:
        ratio = SIDE / max(x.shape[-2:])
        size = [max(1, round(side * ratio)) for side in x.shape[-2:]]
        x = F.interpolate(x[None].float(), size, mode="area")[0]
    return (x.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)


class FeatureNet(nn.Module):
    """Convolutions at falling resolution, a layer of features, and a linear head.

    Arguments:
        channels: Channels C of the pictures.
        size: Their height and width.
        classes: Outputs of the head.
        width: Channels of the first convolution.
        features: Number of features D.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int = 32, features: int = 64) -> None:
        super().__init__()
        # Halve until a 4 x 4 map is left. The first layer halves what is large, or it would cost more than the rest.
        large = max(size) > SIDE // 2
        layers: list[nn.Module] = _block(channels, width, stride=2 if large else 1)
        for _ in range(max(0, math.ceil(math.log2(max(size) / 4)) - large)):
            last, width = width, min(2 * width, 128)
            layers += [nn.MaxPool2d(2, ceil_mode=True), *_block(last, width)]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.feature = nn.Sequential(nn.Linear(4 * width, features), nn.ReLU())
        self.head = nn.Linear(features, max(classes, 1))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the penultimate layer, shape (B, D), of uint8 pictures (B, C, H, W)."""
        found: torch.Tensor = self.feature(self.body(x.float() / 127.5 - 1))
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape (B, classes), of uint8 pictures (B, C, H, W)."""
        logits: torch.Tensor = self.head(self.features(x))
        return logits

    @torch.no_grad()
    def read(self, x: torch.Tensor, batch: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (N, D) and the most likely classes (N,) of uint8 pictures, on the CPU."""
        self.eval()
        device = self.head.weight.device
        features = torch.cat([self.features(part.to(device)) for part in torch.split(x, batch)])
        return features.cpu(), self.head(features).argmax(1).cpu()


def train(x: torch.Tensor, labels: torch.Tensor | None, classes: int, steps: int, seed: int) -> FeatureNet:
    """Return a network for pictures `x`, trained when there are labels; a function of its arguments.

    Arguments:
        x: uint8, shape (N, C, H, W).
        labels: int64, shape (N,), -1 where none is known; None without classes.
        classes: Number of classes.
        steps: Optimizer steps of 128 pictures each.
        seed: Seed of the weights, of the order and of the shifts.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FeatureNet(x.shape[1], (x.shape[2], x.shape[3]), classes)
    net = net.to(device)
    order = torch.Generator().manual_seed(seed)
    if labels is not None:
        known = labels >= 0
        _fit(net, x[known], labels[known], steps, order)
    else:
        _calibrate(net, x, order)
    return net.eval()


def _fit(net: FeatureNet, x: torch.Tensor, labels: torch.Tensor, steps: int, order: torch.Generator) -> None:
    """Train with AdamW on one cycle of the learning rate; each batch is shifted a little, as a whole."""
    device = net.head.weight.device
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=max(steps, 4))
    reach = max(1, min(x.shape[-2:]) // 12)
    net.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=order)
        batch = _shifted(x[rows], reach, order).to(device)
        loss = F.cross_entropy(net(batch), labels[rows].to(device), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cycle.step()


def _shifted(x: torch.Tensor, reach: int, order: torch.Generator) -> torch.Tensor:
    """Return the quarters of a batch, each moved by up to `reach` pixels; the border repeats."""
    height, width = x.shape[-2:]
    parts = []
    for part in x.chunk(4):
        top, left = torch.randint(2 * reach + 1, (2,), generator=order).tolist()
        wide = F.pad(part.float(), (reach,) * 4, mode="replicate")
        parts.append(wide[..., top : top + height, left : left + width].to(x.dtype))
    return torch.cat(parts)


@torch.no_grad()
def _calibrate(net: FeatureNet, x: torch.Tensor, order: torch.Generator) -> None:
    """Give an untrained network's normalisation the statistics of the data."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average, right after the first batch
    for _ in range(4):
        net(x[torch.randint(len(x), (128,), generator=order)].to(net.head.weight.device))


def _block(channels: int, width: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
