"""Conditioner: labels, captions, and a cloud that the sample is to agree with.

A given cloud is the raw condition ``cloud`` (B, C, M) in the units of the data, zeros where none is given. It becomes
part of the ``vector`` (a mean and a maximum over its points, "PointNet", Qi et al. 2017, eq. 1) and goes on to the
network as it is, whose latents read its points beside those of the sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from suffuse.conditioner import listed, turns
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.text import WordText
from torch import Tensor, nn

from suffuse_shapes.files import SUFFIXES, Cloud, FileError, resampled

__all__ = ["GivenCloud", "opened", "paths"]

GIVEN_STREAM = 190
"""Noise stream of given clouds that are dropped for themselves."""


class GivenCloud(WordText):
    """`suffuse.text.WordText`, and a given cloud where the data has them.

    Arguments:
        about: Facts of the data; ``given`` says how many points are given.
        width: Size of the embedded vector and of the words.
        given_dropout: Share of training rows that lose the cloud alone.
        options: Arguments of `suffuse.text.WordText`.

    Raises:
        ConfigError: As `suffuse.text.WordText`; unless 0 <= given_dropout < 1.
    """

    def __init__(
        self, about: Mapping[str, Any] | None = None, width: int = 128, given_dropout: float = 0.0, **options: Any
    ) -> None:
        super().__init__(about=about, width=width, **options)
        if not 0 <= given_dropout < 1:
            raise ConfigError(f"conditioner.given_dropout={given_dropout} must be in [0, 1)")
        about = about or {}
        self.given, self.given_dropout = dict(about.get("given") or {}), given_dropout
        self.channels = 9 if about.get("normals") else 6
        if self.given:
            self.width = width
            self.point = nn.Sequential(nn.Linear(self.channels, width), nn.SiLU(), nn.Linear(width, width))
            self.whole_cloud = nn.Linear(2 * width, width)

    def forward(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what `WordText` returns, and ``cloud`` (B, C, M) with ``there`` (B,) where one is given."""
        found = super().forward(raw)
        if not self.given:
            return found
        cloud = raw["cloud"].float()
        there = cloud.abs().flatten(1).sum(1) > 0
        h = self.point(cloud.transpose(1, 2))
        whole = self.whole_cloud(torch.cat([h.mean(1), h.amax(1)], -1)) * there[:, None]
        vector = found["vector"] + whole if "vector" in found else whole
        return {**found, "vector": vector, "cloud": cloud, "there": there}

    def nothing(self, batch: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the raw absent condition of `batch` rows."""
        raw = super().nothing(batch, device)
        if not self.given:
            return raw
        return raw | {"cloud": torch.zeros(batch, self.channels, int(self.given["points"]), device=device)}

    def dropped(self, noise: KeyedNoise, step: int, like: Tensor) -> dict[str, Tensor]:
        """Return which rows of each condition a training step drops; a cloud may go alone."""
        masks = super().dropped(noise, step, like)
        if self.given:
            alone = noise.uniform(like, step, GIVEN_STREAM) < self.given_dropout
            masks["cloud"] = self.whole(noise, step, like) | alone
        return masks

    def parse(self, given: Mapping[str, Any], num: int) -> dict[str, Tensor]:
        """Return raw conditions of `num` rows; ``cloud`` is a file, a folder of files, or several, in turns.

        Raises:
            ConfigError: For a file that cannot be read, or a model that takes none.
        """
        given = dict(given)
        wanted = given.pop("cloud", None)
        if wanted is not None and not self.given:
            raise ConfigError("condition.cloud: this model was trained without given clouds; see data.given")
        raw = super().parse(given, num)
        if not self.given:
            return raw
        if not super().known():
            raw = {}
        if wanted is None:
            return raw | {"cloud": self.nothing(num)["cloud"]}
        files = [path for value in listed(wanted) for path in paths(str(value))]
        return raw | {"cloud": turns(torch.stack([self._cloud(path) for path in files[:num]]), num)}

    def known(self) -> list[str]:
        """Return the names of the conditions."""
        return super().known() + ["cloud"] * bool(self.given)

    def captions(self, raw: Mapping[str, Tensor]) -> list[str]:
        """Return one short text per row."""
        if self.given and not super().known():
            return ["from a cloud" if bool(row.abs().sum() > 0) else "" for row in raw["cloud"]]
        return super().captions(raw)

    def _cloud(self, path: Path) -> Tensor:
        return opened(path, "condition.cloud", int(self.given["points"]), self.channels)


def paths(value: str, key: str = "condition.cloud") -> list[Path]:
    """Return a file, or the clouds of a folder: of PLY and GLB of the same name the first.

    Raises:
        ConfigError: For a folder without any.
    """
    path = Path(value).expanduser()
    if not path.is_dir():
        return [path]
    files = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.stem.endswith("_mesh"))
    found = {p.stem: p for p in sorted(files, key=lambda p: (p.stem, p.suffix.lower() == ".ply"))}
    if not found:
        raise ConfigError(f"{key}={value}: no clouds in this folder; it needs files like .ply")
    return list(found.values())


def opened(path: Path, key: str, points: int, channels: int, fit: bool = False, exact: bool = True) -> Tensor:
    """Return a cloud of a file, float32 (channels, points), the same one every time.

    Arguments:
        path: The file.
        key: Config key, for messages.
        points: Number of points.
        channels: 6, or 9 with normals.
        fit: Bring it into the frame of the model's clouds; else it is taken to be in it.
        exact: Repeat points of a smaller cloud, so that there are as many.

    Raises:
        ConfigError: When the file cannot be read or lies far outside [-1, 1].
    """
    if not path.is_file():
        raise ConfigError(f"{key}={path}: no such file")
    try:
        cloud = Cloud.read(path, path.name, points, normalise=fit)
        if exact:
            cloud = resampled(cloud, points, np.random.default_rng(0))
    except FileError as error:
        raise ConfigError(f"{key}={path}: {error}") from error
    far = float(np.abs(cloud.xyz).max())
    if far > 2:
        raise ConfigError(f"{key}={path}: coordinates up to {far:.3g}, but the model's lie in [-1, 1]; add frame=fit")
    parts = [cloud.xyz, cloud.rgb, *([cloud.normals] if channels == 9 else [])]
    return torch.from_numpy(np.concatenate(parts, 1).T.copy())
