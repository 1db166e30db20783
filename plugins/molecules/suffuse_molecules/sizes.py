r"""Sizes: how many atoms a molecule to be drawn has.

    p(n | c) ∝ p(n) prod_k N(c_k; mu_{nk}, s_{nk}^2)

with p(n) the data's histogram and mu, s the mean and spread of condition k among molecules of n atoms: a small
molecule cannot have a large weight, so a size that ignored what is asked for would make it unreachable. All of it is
stored in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from torch import Tensor

__all__ = ["draw_sizes", "size_facts"]

SIZE_STREAM = 90
"""Noise stream of the sizes; fields use those below."""


def size_facts(sizes: NDArray[Any], props: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return ``sizes``: the number of molecules of every size, and of every condition its mean and spread per size.

    Arguments:
        sizes: Atoms of each molecule, shape (M,).
        props: Values of each condition, shape (M,), NaN where missing.
    """
    values, counts = np.unique(sizes, return_counts=True)
    moments: dict[str, list[list[float]]] = {}
    for name, column in props.items():
        spread = float(np.nanstd(column)) or 1.0
        moments[name] = []
        for n in values:
            here = column[sizes == n]
            here = here[~np.isnan(here)]
            mean = float(here.mean()) if len(here) else float(np.nanmean(column))
            # Few molecules say little of the spread: never narrower than a tenth of the whole.
            moments[name].append(
                [round(mean, 6), round(max(float(here.std()) if len(here) > 1 else spread, spread / 10), 6)]
            )
    return {"values": values.tolist(), "counts": counts.tolist(), "moments": moments}


def draw_sizes(about: Mapping[str, Any], seeds: Tensor, raw: Mapping[str, Tensor]) -> Tensor:
    """Return one size per seed, int64, shape (B,).

    Arguments:
        about: The data's facts with ``sizes``.
        seeds: Shape (B,).
        raw: Conditions; scalars where the data's sizes know them, ``size_min`` and ``size_max``, and the atoms of
            ``given_z``, than which a molecule is never smaller.

    Raises:
        ConfigError: When no size of the data is allowed.
    """
    facts = about["sizes"]
    values = torch.tensor(facts["values"])
    log_p = torch.tensor(facts["counts"], dtype=torch.float64).log().expand(len(seeds), -1).clone()
    for name, pairs in facts["moments"].items():
        if name in raw:
            mean, spread = torch.tensor(pairs, dtype=torch.float64).T
            asked = raw[name].double()[:, None]
            term = -0.5 * ((asked - mean) / spread) ** 2 - spread.log()
            log_p += torch.where(asked.isnan(), torch.zeros(()).double(), term)
    low = raw["size_min"][:, None] if "size_min" in raw else torch.zeros(len(seeds), 1)
    high = raw["size_max"][:, None] if "size_max" in raw else torch.full((len(seeds), 1), 1e9)
    if "given_z" in raw:
        given = (raw["given_z"] > 0).sum(1, keepdim=True)
        whole = raw["given_whole"][:, None] > 0
        low = torch.maximum(low, given)
        high = torch.where(whole, given, high)
        low = torch.where(whole, given, low)
    allowed = (values >= low) & (values <= high)
    if not allowed.any(1).all():
        row = int((~allowed.any(1)).nonzero()[0, 0])
        raise ConfigError(
            f"condition: no size from {int(low[row])} to {_limit(float(high[row]))} atoms is among those the model "
            f"knows ({facts['values'][0]} to {facts['values'][-1]})"
        )
    log_p = log_p.masked_fill(~allowed, -math.inf)
    p = torch.softmax(log_p, 1).cumsum(1)
    u = KeyedNoise(seeds.cpu()).uniform(torch.empty(len(seeds)), 0, SIZE_STREAM).double()
    return values[(p < u[:, None] * p[:, -1:]).sum(1).clamp(max=len(values) - 1)]


def _limit(high: float) -> str:
    return "any number" if high >= 1e9 else str(int(high))
