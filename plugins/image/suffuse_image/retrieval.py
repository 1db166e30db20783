"""Retrieval: whether a caption finds the picture that was drawn for it among others.

A small matcher of pictures and captions is trained on the run's own data: a convolutional network and a bag of hashed
words, whose embeddings of a pair agree and of others do not ("Learning Transferable Visual Models From Natural Language
Supervision", Radford et al. 2021, section 2.3, in small). Of every sample it ranks the caption it was drawn for among
all distinct captions asked for. It compares runs on the same data; what it makes of held-out pictures says how far to
trust it.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch
from suffuse.data import Data
from suffuse.errors import DataError
from suffuse.text import captions_of, words
from torch import Tensor, nn
from torch.nn import functional as F

from suffuse_image.features import FeatureNet, stack
from suffuse_image.metrics import FeatureMetrics

__all__ = ["Matcher", "Retrieval", "rank"]

BUCKETS = 4096


class Matcher(nn.Module):
    """Embeddings of pictures and of captions, unit vectors.

    Arguments:
        channels: Channels of the pictures.
        size: Their height and width.
        width: Size of an embedding.
    """

    def __init__(self, channels: int, size: tuple[int, int], width: int = 64) -> None:
        super().__init__()
        self.net = FeatureNet(channels, size, width, features=2 * width)
        self.words = nn.EmbeddingBag(BUCKETS, width, mode="mean")
        self.text = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.heat = nn.Parameter(torch.tensor(2.0))

    def pictures(self, x: Tensor) -> Tensor:
        """Return embeddings (B, width) of uint8 pictures (B, C, H, W)."""
        return F.normalize(self.net(x), dim=1)

    def captions(self, texts: list[str]) -> Tensor:
        """Return embeddings (B, width) of captions."""
        rows = [[_bucket(word) for word in words(text)] or [0] for text in texts]
        starts = torch.tensor([0, *(len(row) for row in rows[:-1])]).cumsum(0)
        flat = torch.tensor([bucket for row in rows for bucket in row])
        device = self.heat.device
        return F.normalize(self.text(self.words(flat.to(device), starts.to(device))), dim=1)


class Retrieval(FeatureMetrics):
    """Figures of samples drawn for captions, and those of `suffuse_image.metrics.FeatureMetrics`.

    - ``top1``, ``top5``: share of the samples whose caption is the first, or among the first five, of all captions
      asked for, in the order of how well they fit the picture.
    - ``top5_swapped``: the same when captions are dealt out anew; chance.
    - ``top1_real``, ``top5_real``: the same of held-out pictures among as many captions.
    - ``captions``: how many captions that are.

    Arguments:
        steps: Steps of the matcher, of 128 pairs each.
        options: Arguments of `FeatureMetrics`.
    """

    def __init__(self, steps: int = 600, **options: Any) -> None:
        super().__init__(**options)
        self.steps = steps
        self._matcher: tuple[Data, Matcher] | None = None

    def __call__(self, samples: Tensor, cond: Mapping[str, Tensor], data: Data) -> dict[str, float]:
        """Return the figures of pictures (N, C, H, W) in [0, 1]; ``cond`` has ``text``.

        Raises:
            DataError: When nothing has captions.
        """
        if "text" not in cond:
            raise DataError("metrics=image/retrieval needs captions; this data has none")
        if self._matcher is None or self._matcher[0] is not data:
            self._matcher = (data, self._trained(data))
        matcher = self._matcher[1]
        texts = captions_of(cond["text"])
        found = {f"top{k}": rank(matcher, samples, texts, k) for k in (1, 5)}
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(self.seed)).tolist()
        found["top5_swapped"] = rank(matcher, samples, [texts[i] for i in order], 5)
        items = data.sample(len(dict.fromkeys(texts)), held_out=True)
        real = [captions_of(item["cond"]["text"][None])[0] for item in items]
        pictures = torch.stack([item["x"] for item in items])
        found |= {f"top{k}_real": rank(matcher, pictures, real, k) for k in (1, 5)}
        return found | {"captions": float(len(set(texts)))} | super().__call__(samples, cond, data)

    def _trained(self, data: Data) -> Matcher:
        """Return a matcher of the training pictures; a function of data and seed."""
        items = data.sample(20_000)
        pictures = stack(lambda i: items[i]["x"], len(items))
        texts = [captions_of(item["cond"]["text"][None])[0] for item in items]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            matcher = Matcher(pictures.shape[1], (pictures.shape[2], pictures.shape[3])).to(device)
        optimizer = torch.optim.AdamW(matcher.parameters(), lr=2e-3, weight_decay=0.05)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=max(self.steps, 4))
        order = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            rows = torch.randint(len(pictures), (min(128, len(pictures)),), generator=order).tolist()
            a = matcher.pictures(pictures[rows].to(device))
            b = matcher.captions([texts[i] for i in rows])
            score = matcher.heat.exp() * a @ b.T
            # Captions that are the same are all right.
            same = torch.tensor([[texts[i] == texts[j] for j in rows] for i in rows], device=device).float()
            goal = same / same.sum(1, keepdim=True)
            loss = F.cross_entropy(score, goal) + F.cross_entropy(score.T, goal)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            cycle.step()
        return matcher.eval()


@torch.no_grad()
def rank(matcher: Matcher, samples: Tensor, texts: list[str], top: int) -> float:
    """Return the share of pictures whose caption is among the `top` that fit best, of all distinct ones.

    Arguments:
        matcher: The matcher.
        samples: Pictures (N, C, H, W) in [0, 1].
        texts: Their captions.
        top: See above.
    """
    device = matcher.heat.device
    known = list(dict.fromkeys(texts))
    pictures = stack(lambda i: samples[i].cpu(), len(samples))
    a = torch.cat([matcher.pictures(part.to(device)) for part in torch.split(pictures, 256)])
    score = a @ matcher.captions(known).T
    place = {text: number for number, text in enumerate(known)}
    asked = torch.tensor([place[text] for text in texts], device=device)
    return float(((score > score.gather(1, asked[:, None])).sum(1) < top).double().mean())


def _bucket(word: str) -> int:
    return 1 + int.from_bytes(blake2b(word.encode(), digest_size=4).digest(), "big") % (BUCKETS - 1)
