r"""Post-hoc EMA: an average of any width, combined after training from stored averages of two.

An average tracked with the width std until update t weighs the weights at update tau by the power profile

    p(tau; gamma, t) = (gamma + 1) tau^gamma / t^(gamma + 1),    0 <= tau <= t.

Stored averages i and the wanted profile q = p(.; gamma_q, T) give the coefficients of the combination

    x = argmin | sum_i x_i p_i - q |^2    with  sum_i x_i = 1,

from inner products in closed form. "Analyzing and Improving the Training Dynamics of Diffusion Models", Karras et al.
2024, section 3.2 and appendix C.2; the constraint, which keeps weights that never moved as they are, is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from suffuse import checkpoint as files
from suffuse.ema import WIDEST, exponent
from suffuse.errors import CheckpointError, ConfigError

__all__ = ["FOLDER", "Combination", "combine", "inner", "reconstruct", "store"]

FOLDER = "ema"
"""Where the snapshots are, beside the checkpoints."""

WORST = 0.1
"""Largest relative error of a combined profile that is still handed out as the wanted one."""

Array = NDArray[np.float64]


def inner(gamma_a: Array, t_a: Array, gamma_b: Array, t_b: Array) -> Array:
    """Return the inner products of power profiles, the integral of p_a p_b; broadcasts.

    With t_a <= t_b it is (gamma_a + 1) (gamma_b + 1) / ((gamma_a + gamma_b + 1) t_b) (t_a / t_b)^gamma_b.
    """
    later = np.where(t_a <= t_b, gamma_b, gamma_a)
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    product: Array = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * last) * (first / last) ** later
    return product


@dataclass(frozen=True)
class Combination:
    """How stored averages are combined.

    Arguments:
        coefficients: One per stored average, summing to 1.
        error: Distance of the combined profile from the wanted one, over the wanted one's norm.
    """

    coefficients: Array
    error: float


def combine(stds: Sequence[float], times: Sequence[float], std: float, time: float) -> Combination:
    """Return the best combination of averages of the widths `stds` at `times` for the width `std` at `time`.

    Arguments:
        stds: Width of each stored average, a share of its time.
        times: Number of updates of each.
        std: Wanted width.
        time: Number of updates at which it is wanted; averages stored later take no part in it.
    """
    known = {width: exponent(width) for width in {*stds, std}}
    gamma, t = np.array([known[width] for width in stds]), np.array(times, dtype=np.float64)
    products = inner(gamma[:, None], t[:, None], gamma[None], t[None])
    wanted, whole = np.array(known[std]), np.array(float(time))
    against, norm = inner(gamma, t, wanted, whole), float(inner(wanted, whole, wanted, whole))
    # Profiles of unit norm: early ones are narrow and high, and would otherwise decide how the sums round.
    scale = 1 / np.sqrt(np.diag(products))
    count = len(gamma)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = products * scale * scale[:, None]
    system[count, :count] = system[:count, count] = scale / scale.max()
    right = np.append(against * scale / math.sqrt(norm), 1 / (scale.max() * math.sqrt(norm)))
    # Dense snapshots are nearly dependent, so directions below the rounding of the products are left out.
    solution = np.linalg.lstsq(system, right, rcond=1e-13)[0][:count]
    x = solution * scale * math.sqrt(norm)
    square = x @ products @ x - 2 * x @ against + norm
    return Combination(x, math.sqrt(max(float(square), 0.0) / norm))


def store(folder: Path, step: int, ema: Any, names: Sequence[str], stds: Sequence[float], dtype: str) -> None:
    """Write the averages of an `suffuse.ema.EMA` as ``folder/step-*.pt``, whole or not at all.

    Arguments:
        folder: Directory of the snapshots.
        step: Optimizer step, for the name.
        ema: The averages.
        names: Names of the parameters, as in a checkpoint's ``state_dict``.
        stds: Width of each average.
        dtype: ``float32`` or ``float16``.
    """
    kept = [[average.to("cpu", getattr(torch, dtype)) for average in track] for track in ema.tracks]
    snapshot = {"updates": ema.updates, "stds": list(stds), "names": list(names), "tracks": kept}
    files.write(snapshot, folder / f"step-{step:06d}.pt")


def reconstruct(path: Path, std: float, out: Path | None = None) -> str:
    """Write a copy of a checkpoint whose averaged weights have the width `std`; return what was done.

    Arguments:
        path: A checkpoint of a run with ``ema=posthoc``; its snapshots are beside it.
        std: Wanted width, as a share of the run up to that checkpoint.
        out: The file; by default ``ema-STD.ckpt`` beside `path`.

    Raises:
        ConfigError: For a width that is no width, or that the snapshots cannot give.
        CheckpointError: When the checkpoint has no snapshots, or they are damaged.
    """
    if not 0 < std < WIDEST:
        raise ConfigError(f"std={std:g} must be in (0, {WIDEST:.3f}), the width of the average as a share of the run")
    saved = files.read(path)
    now = saved["training"]["ema"]
    snapshots = _snapshots(path, saved)
    names = snapshots[0]["names"]
    # The checkpoint's own averages count too: they are the only ones of its very step.
    stds = tuple(snapshots[0]["stds"])
    own = {"updates": now["updates"], "stds": list(stds), "tracks": [now["averages"], *now["others"]]}
    snapshots = [*(one for one in snapshots if one["updates"] < now["updates"]), own]
    widths = [width for one in snapshots for width in one["stds"]]
    times = [one["updates"] for one in snapshots for _ in one["stds"]]
    found = combine(widths, times, std, now["updates"])
    if found.error > WORST:
        good = [w for w in np.geomspace(1e-3, 0.285, 60) if combine(widths, times, w, now["updates"]).error <= WORST]
        raise ConfigError(
            f"std={std:g}: from {len(snapshots)} stored steps its window would be off by {found.error:.0%}; from "
            f"{min(good):.3f} to {max(good):.3f} they are within {WORST:.0%}, more with a smaller ema.every in training"
        )
    averages = _sum(snapshots, found.coefficients)
    state = dict(saved["state_dict"])
    for name, average in zip(names, averages, strict=True):
        state[name] = average.to(state[name].dtype)
    saved["state_dict"] = state
    saved["suffuse"] = {**saved["suffuse"], "ema": {"std": std, "error": found.error, "steps": len(snapshots)}}
    target = path.with_name(f"ema-{std:g}.ckpt") if out is None else out
    files.write(saved, target)
    return f"wrote {target}: std {std:g} at step {saved['suffuse']['step']}, window within {found.error:.2g}"


def _snapshots(path: Path, saved: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the snapshots beside a checkpoint up to its step, oldest first, their tensors still on the disk."""
    how = saved["suffuse"]["config"]["ema"]
    if "stds" not in how:
        raise CheckpointError(
            f"{path}: its run kept one average only; train with ema=posthoc to choose the width later"
        )
    folder, updates = path.parent / FOLDER, saved["training"]["ema"]["updates"]
    found = []
    for file in sorted(folder.glob("step-*.pt")):
        try:
            one = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            fits = one["stds"] == list(how["stds"])
        except Exception as error:  # torch raises whatever the damage leads to
            raise CheckpointError(
                f"{file}: not a readable snapshot ({type(error).__name__}); remove it, the others may do"
            ) from error
        if fits and one["updates"] <= updates:
            found.append(one)
    found.sort(key=lambda one: int(one["updates"]))
    if not found:
        raise CheckpointError(
            f"{path}: no snapshots in {folder} up to its step; they are written every ema.every={how['every']} steps, "
            "so take a later checkpoint or train with a smaller ema.every"
        )
    return found


def _sum(snapshots: Sequence[dict[str, Any]], coefficients: Array) -> list[torch.Tensor]:
    """Return the combination in float64: with coefficients of both signs the terms nearly cancel."""
    tracks = [track for one in snapshots for track in one["tracks"]]
    total = [torch.zeros_like(average, dtype=torch.float64) for average in tracks[-1]]
    for c, track in zip(coefficients.tolist(), tracks, strict=True):
        for held, average in zip(total, track, strict=True):
            held.add_(average.to(torch.float64), alpha=c)
    return total
