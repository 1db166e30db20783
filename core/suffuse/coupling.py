r"""Coupling: which noise is paired with which data when a batch is corrupted.

Independent pairs cross, and the flow learns their average. Minibatch optimal transport pairs each x_0 of a batch with
the noise of another row so that the paths are short, by the permutation

    pi = argmin over permutations of  sum_i |x_0^i - eps^{pi(i)}|^2,

summed over the fields: "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport", Tong
et al. 2024, section 3.2.2; "Multisample Flow Matching", Pooladian et al. 2023, section 3. The same assignment for
diffusion is "Immiscible Diffusion", Li et al. 2024, algorithm 1. It is exact and without replacement: every noise is
used once, so the batch's noise is as a set what it was, and a denoiser trained with it still starts from the prior.

The assignment depends on the rows of one rank's micro-batch, so a row's noise is not a function of its own seed alone:
another batch size or number of ranks pairs differently, though the same run repeats bit for bit. In a conditional model
the noise that a class sees depends on the other rows, while sampling starts every class from all of the prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suffuse.errors import ConfigError, suggest
from suffuse.process import Gaussian
from suffuse.state import State, leaves, map_state

__all__ = ["Independent", "OptimalTransport", "assignment", "coupling"]


@dataclass(frozen=True)
class Independent:
    """Every row keeps its own noise."""

    def __call__(self, x0: State, eps: State, process: Any) -> State:
        """Return `eps`."""
        return eps


@dataclass(frozen=True)
class OptimalTransport:
    """Noise rows are exchanged within the batch so that the paths are shortest.

    The host solves the assignment, so a training step waits for the device once.

    Arguments:
        rows: A larger batch is coupled in groups of so many rows, since the time grows with their cube.

    Raises:
        ConfigError: Unless rows is a whole number of at least 2; when called, for fields that cannot exchange noise.
    """

    rows: int = 512

    def __post_init__(self) -> None:
        if isinstance(self.rows, bool) or not isinstance(self.rows, int) or self.rows < 2:
            raise ConfigError(f"objective.coupling.rows={self.rows} must be a whole number of at least 2")

    def __call__(self, x0: State, eps: State, process: Any) -> State:
        """Return `eps` with its rows permuted, the same way in every Gaussian field.

        Arguments:
            x0: Clean state, shape (B, ...).
            eps: What the process drew.
            process: Forward process, or one per field; fields of other kinds keep their draws.
        """
        order = self.order(x0, eps, process)

        def exchange(x: Tensor, e: Tensor, p: Any) -> Tensor:
            if not isinstance(p, Gaussian):
                return e
            moved = e[order]
            if not torch.equal(p.space.project(moved), moved):
                raise ConfigError(
                    "objective.coupling: rows of different masks or sizes cannot exchange their noise; use independent"
                )
            return moved

        exchanged: State = map_state(exchange, x0, eps, process)
        return exchanged

    def order(self, x0: State, eps: State, process: Any) -> Tensor:
        """Return the row of the noise that each row of the data gets, shape (B,)."""
        fields = map_state(lambda x, e, p: (x, e) if isinstance(p, Gaussian) else None, x0, eps, process)
        pairs = [pair for pair in leaves(fields) if pair is not None]
        if not pairs:
            raise ConfigError("objective.coupling: no Gaussian field whose noise could be exchanged; use independent")
        count, device = pairs[0][0].shape[0], pairs[0][0].device
        order = []
        for start in range(0, count, self.rows):
            part = slice(start, start + self.rows)
            # |x|^2 and |eps|^2 are the same for every permutation; what is left is an inner product.
            cost = sum(-(x[part].flatten(1).double() @ e[part].flatten(1).double().T) for x, e in pairs)
            assert isinstance(cost, Tensor)  # there is at least one pair
            if not torch.isfinite(cost).all():
                return torch.arange(count, device=device)  # the loss reports it, with the items that did it
            order.append(start + torch.from_numpy(assignment(cost.cpu().numpy())))
        return torch.cat(order).to(device)


def coupling(what: Any) -> Any:
    """Return the coupling that a name stands for, or what is one already.

    Raises:
        ConfigError: For an unknown name.
    """
    known: Mapping[str, Any] = {
        "independent": Independent, "ot": OptimalTransport, "immiscible": OptimalTransport,
    }  # fmt: skip
    if callable(what):
        return what
    if what not in known:
        raise ConfigError(f"objective.coupling={what}: no such coupling{suggest(str(what), known)}")
    return known[what]()


def assignment(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the column of each row in the cheapest assignment, exactly.

    Shortest augmenting paths with dual prices: "A Shortest Augmenting Path Algorithm for Dense and Sparse Linear
    Assignment Problems", Jonker and Volgenant 1987. Cubic in the size; ties go to the lowest index.

    Arguments:
        cost: Shape (n, n), finite.
    """
    count = len(cost)
    price = cost.min(0)  # a feasible dual: every column's cheapest row
    column_of, row_of = np.full(count, -1), np.full(count, -1)
    for column in range(count - 1, -1, -1):
        row = int(cost[:, column].argmin())
        if column_of[row] < 0:
            column_of[row], row_of[column] = column, row
    for free in np.flatnonzero(column_of < 0):
        _augment(cost, price, column_of, row_of, int(free))
    return column_of


def _augment(
    cost: NDArray[np.float64],
    price: NDArray[np.float64],
    column_of: NDArray[np.int64],
    row_of: NDArray[np.int64],
    free: int,
) -> None:
    """Find the shortest path of reduced costs from a free row to a free column, and flip the assignment along it."""
    reach = cost[free] - price
    before = np.full(len(cost), free)
    done = np.zeros(len(cost), dtype=bool)
    while True:
        column = int(np.where(done, np.inf, reach).argmin())
        shortest = reach[column]
        done[column] = True
        row = int(row_of[column])
        if row < 0:
            break
        # Along the assigned edge the reduced cost is zero: go on from its row.
        through = shortest + (cost[row] - price) - (cost[row, column] - price[column])
        shorter = ~done & (through < reach)
        reach[shorter], before[shorter] = through[shorter], row
    price[done] += reach[done] - shortest
    while True:
        row = int(before[column])
        row_of[column], column_of[row], column = row, column, column_of[row]
        if row == free:
            return
