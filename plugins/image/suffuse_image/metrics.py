"""Metrics: how close samples come to held-out pictures, how well they obey their class, whether they are copies.

All figures but those of Inception come from a network trained on the run's own training pictures (`features`), so they
compare runs on the same data and say nothing across data sets. Each comes with what real pictures score, since a
Fréchet distance between finite sets is not zero even when both are real.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from suffuse.data import Data
from suffuse.errors import ConfigError, DataError, check_whole
from suffuse.frechet import frechet
from torch import Tensor
from torch.nn import functional as F

from suffuse_image.features import FeatureNet, stack, train

__all__ = ["FeatureMetrics", "nearest"]

LIMIT = 20_000
"""Most pictures taken from a split, spread over it at random: enough for the figures, little enough to hold."""

_log = logging.getLogger(__name__)


class FeatureMetrics:
    """Figures of samples against the run's data.

    - ``frechet``: distance of the samples to the held-out pictures (`suffuse.frechet`), 0 at best.
    - ``frechet_real``: the same of as many training pictures; samples as good as real ones come near it.
    - ``agreement``: share of the samples that the classifier gives the class they were drawn for.
    - ``agreement_real``: its accuracy on held-out pictures, the most that ``agreement`` can be trusted to mean.
    - ``nn_train_ratio``: median distance of a sample to its nearest training picture, over that of a held-out picture
      (root mean square over pixels in [0, 1]); near 0 the samples are copies, near 1 they are as new as held-out ones.
    - ``fid``, ``kid``: with Inception features, against held-out pictures, when `inception` names the weights.

    The agreements are left out without classes, and their rows are those with a class asked for.

    Arguments:
        train_steps: Steps of the classifier.
        cache: Keep the network and what it read of the data for the next call with the same data.
        seed: Seed of the network and of what is taken from the splits.
        inception: Path of the weights that torch-fidelity reads (``pt_inception-2015-12-05-6726825d.pth``), or None.

    Raises:
        ConfigError: When `train_steps` is below 1, or `inception` cannot be used.
    """

    def __init__(self, train_steps: int = 300, cache: bool = True, seed: int = 0, inception: str | None = None) -> None:
        check_whole("metrics.train_steps", train_steps)
        self.train_steps, self.cache, self.seed = train_steps, cache, seed
        self.inception = None if inception is None else _weights(inception)
        self._kept: tuple[Data, _Real] | None = None

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures.

        Arguments:
            samples: Pictures in [0, 1], shape (N, C, H, W), N ≥ 2.
            cond: Conditions of the samples; ``label`` of shape (N,), -1 where none was asked for.
            data: The data of the run, set up.

        Raises:
            DataError: When there are fewer than two samples or held-out pictures, or their shapes differ.
        """
        real = self._real(data)
        fake = stack(lambda i: samples[i], len(samples)) if len(samples) > 1 else None
        if fake is None or len(real.val) < 2:
            raise DataError("metrics: fewer than two samples or held-out pictures; raise metrics_num or add data")
        if fake.shape[1:] != real.val.shape[1:]:
            shapes = f"samples are {tuple(fake.shape[1:])}, data {tuple(real.val.shape[1:])}"
            raise DataError(f"metrics: {shapes}; use one size")
        features, guess = real.net.read(fake)
        # As many as there are samples: the distance of finite sets falls with their size.
        like = real.train_features(len(fake))
        figures = {"frechet": frechet(features, real.val_features), "frechet_real": frechet(like, real.val_features)}
        asked = cond.get("label")
        if real.accuracy is not None and asked is not None:
            asked = asked.cpu()
            if (asked >= 0).any():
                figures["agreement"] = (guess == asked)[asked >= 0].double().mean().item()
            figures["agreement_real"] = real.accuracy
        figures["nn_train_ratio"] = nearest(fake, real.train) / max(real.val_nearest(), 1e-12)
        if self.inception is not None:
            figures |= _inception(fake, real.val, self.inception)
        return figures

    def _real(self, data: Data) -> _Real:
        if self._kept is not None and self._kept[0] is data:
            return self._kept[1]
        real = _Real(data, self.train_steps, self.seed)
        if self.cache:
            self._kept = (data, real)
        return real


class _Real:
    """What is known of the real pictures: the network trained on them and what it reads in them."""

    def __init__(self, data: Data, steps: int, seed: int) -> None:
        classes = len(data.spec.labels)
        self.train, labels = _taken(data.train, seed, classes > 0)
        self.val, val_labels = _taken(data.val, seed, classes > 0)
        self.net: FeatureNet = train(self.train, labels, classes, steps, seed)
        self.val_features, guess = self.net.read(self.val)
        self.accuracy: float | None = None
        if val_labels is not None and (val_labels >= 0).any():
            self.accuracy = (guess == val_labels)[val_labels >= 0].double().mean().item()
            _log.info("metrics: the classifier is right on %.2f %% of held-out pictures", 100 * self.accuracy)
        self._val_nearest: float | None = None

    def train_features(self, count: int) -> Tensor:
        """Return the features of `count` training pictures, or of all when there are fewer."""
        return self.net.read(self.train[: max(count, 2)])[0]

    def val_nearest(self) -> float:
        """Return the distance of a typical held-out picture to its nearest training picture."""
        if self._val_nearest is None:
            self._val_nearest = nearest(self.val[:1000], self.train)
        return self._val_nearest


def nearest(x: Tensor, among: Tensor) -> float:
    """Return the median over `x` of the root mean square difference to the nearest picture of `among`.

    Arguments:
        x: uint8, shape (N, C, H, W).
        among: uint8, shape (M, C, H, W).
    """
    queries, keys = _flat(x), _flat(among)
    # The expansion of |a - b|² loses the small distances this is about: only candidates come from it.
    closest = []
    for part in torch.split(queries, 256):
        score = keys.square().sum(1)[None] - 2 * part @ keys.T
        rows = score.topk(min(4, len(keys)), largest=False).indices
        closest.append((keys[rows] - part[:, None]).square().mean(2).amin(1))
    return torch.cat(closest).sqrt().median().item()


def _flat(x: Tensor) -> Tensor:
    """Return pictures in [0, 1] as rows, at most 32 pixels to a side."""
    x = x.float() / 255
    if max(x.shape[-2:]) > 32:
        ratio = 32 / max(x.shape[-2:])
        x = F.interpolate(x, [max(1, round(side * ratio)) for side in x.shape[-2:]], mode="area")
    return x.flatten(1)


def _taken(split: Any, seed: int, labelled: bool) -> tuple[Tensor, Tensor | None]:
    """Return up to `LIMIT` pictures of a split in random order, unaugmented, with their labels."""
    # Of pictures of several shapes, those of the shape that is drawn.
    among = getattr(split, "main", range(len(split)))
    drawn = torch.randperm(len(among), generator=torch.Generator().manual_seed(seed))[:LIMIT].tolist()
    order = [among[i] for i in drawn]
    labels = []

    def picture(i: int) -> Tensor:
        item = split[order[i]]
        labels.append(int(item["cond"].get("label", -1)))
        x: Tensor = item["x"]
        return x

    pictures = stack(picture, len(order))
    found = torch.tensor(labels)
    return pictures, found if labelled and bool((found >= 0).any()) else None


def _weights(inception: str) -> Path:
    """Return the path of the Inception weights when they can be used."""
    path = Path(inception)
    if not path.is_file():
        raise ConfigError(f"metrics.inception={inception}: no such file; name the weights of torch-fidelity, or null")
    try:
        import torch_fidelity  # type: ignore[import-not-found, import-untyped]  # noqa: F401
    except ImportError as error:
        raise ConfigError("metrics.inception needs torch-fidelity; pip install it, or set the key to null") from error
    return path


def _inception(fake: Tensor, real: Tensor, weights: Path) -> dict[str, float]:
    """Return FID and KID of torchmetrics between uint8 pictures."""
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
    from torchmetrics.image.kid import KernelInceptionDistance

    net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
    fid = FrechetInceptionDistance(feature=net).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=net, subset_size=min(len(fake), len(real), 1000))
    for pictures, is_real in ((fake, False), (real, True)):
        for part in torch.split(pictures, 64):
            colour = part.expand(-1, 3, -1, -1) if part.shape[1] == 1 else part
            fid.update(colour, real=is_real)
            kid.update(colour, real=is_real)
    return {"fid": fid.compute().item(), "kid": kid.compute()[0].item()}
