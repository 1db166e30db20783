"""Waves: a made-up data set to start from; item i is a function of i alone."""

import math

import torch
from torch.utils.data import Dataset

from suffuse.data import Data, Spec


class Waves(Dataset):
    def __init__(self, first: int, count: int, length: int) -> None:
        self.first, self.count, self.length = first, count, length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        random = torch.Generator().manual_seed(self.first + index)
        cycles, phase = 1 + 3 * torch.rand(1, generator=random), torch.rand(1, generator=random)
        label = index % 2
        wave = torch.sin(2 * math.pi * (cycles * torch.linspace(0, 1, self.length) + phase))
        return {"x": (wave.sign() if label else wave)[None], "cond": {"label": label}, "index": index}


class WaveData(Data):
    def __init__(self, count: int = 2000, length: int = 64, **options: int) -> None:
        super().__init__(**options)
        self.count, self.length = count, length

    def setup(self) -> None:
        self.spec = Spec(labels=("sine", "square"))
        self.train, self.val = Waves(0, self.count, self.length), Waves(10**6, 200, self.length)
