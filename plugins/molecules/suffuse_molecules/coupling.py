r"""Coupling: within each molecule, noise is given to the atoms, and turned, so that the paths are short.

Atoms have no order and a molecule no orientation, so noise that is permuted and rotated is as likely as it was, and

    pi, R = argmin sum_i |x_i - R eps_pi(i)|^2

is found by the assignment at R = 1, then the rotation of Kabsch for it: "Equivariant Flow Matching", Klein et al. 2023,
section 4. Molecules of which points are given keep their noise: they have an orientation and a place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from suffuse.errors import ConfigError
from suffuse.state import State
from torch import Tensor

__all__ = ["EquivariantTransport", "kabsch"]


@dataclass(frozen=True)
class EquivariantTransport:
    """Noise of the field ``pos`` is permuted and rotated onto each molecule.

    The host solves the assignments: a training step on another device waits for it once.

    Arguments:
        rotate: Also turn the noise; without it only the atoms are exchanged.
    """

    rotate: bool = True

    def __call__(self, x0: State, eps: State, process: Any) -> State:
        """Return `eps` with the noise of ``pos`` moved.

        Raises:
            ConfigError: For a state without the fields ``pos``, ``exists`` and ``free_pos``.
        """
        if isinstance(x0, Tensor) or isinstance(eps, Tensor) or not {"pos", "exists", "free_pos"} <= set(x0):
            raise ConfigError("objective.coupling: EquivariantTransport is for the state of molecules")
        pos, noise, free, exists = x0["pos"], eps["pos"], x0["free_pos"], x0["exists"]
        assert all(isinstance(leaf, Tensor) for leaf in (pos, noise, free, exists))  # fields of molecules
        return {**eps, "pos": self._moved(pos, noise, free, exists)}  # type: ignore[arg-type]

    def _moved(self, pos: Tensor, noise: Tensor, free: Tensor, exists: Tensor) -> Tensor:
        whole = (free == exists).all(1)
        cost = -(pos.float() @ noise.float().transpose(1, 2))
        order = _assign(cost.cpu().numpy(), exists.sum(1).cpu().numpy(), exists)
        moved = torch.gather(noise, 1, order[..., None].expand_as(noise))
        if self.rotate:
            moved = kabsch(moved, pos)
        return torch.where(whole[:, None, None], moved, noise)


def _assign(cost: NDArray[np.float32], sizes: NDArray[np.int64], like: Tensor) -> Tensor:
    """Return the noise of each atom; atoms that do not exist, which come last, keep theirs."""
    order = np.tile(np.arange(cost.shape[1]), (len(cost), 1))
    for row, n in enumerate(sizes.tolist()):
        part = cost[row, :n, :n]
        if np.isfinite(part).all():  # else the loss reports the item
            order[row, :n] = linear_sum_assignment(part)[1]
    return torch.from_numpy(order).to(like.device)


def kabsch(a: Tensor, b: Tensor) -> Tensor:
    """Return `a`, (B, N, 3), turned onto `b` by the best proper rotation of each.

    "A solution for the best rotation to relate two sets of vectors", Kabsch 1976.
    """
    covariance = (a.transpose(1, 2) @ b).float()
    covariance = torch.where(torch.isfinite(covariance).all(-1).all(-1)[:, None, None], covariance, 0.0)
    u, _, vt = torch.linalg.svd(covariance)
    flip = torch.ones(len(a), 3, device=a.device)
    flip[:, 2] = torch.sign(torch.det(u @ vt))
    turned: Tensor = a @ ((u * flip[:, None]) @ vt).to(a.dtype)
    return turned
