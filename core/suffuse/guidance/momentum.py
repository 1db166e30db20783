r"""Momentum: a running sum of guidance differences, of one draw.

    s(t) = d(t) + beta s(t'),   t' the noisier time evaluated before.

"Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models", Sadat et al. 2024, section 4. It
is the only guidance that remembers anything, and a denoiser does not know where a draw begins. But within a draw time
falls: a time above the last one begins a new sum, and the same time again (the next row of one step) takes the place
of the last evaluation. So a wrapper may be used for draw after draw; a sampler that goes up (restart, churn) begins
the sum anew there. Rows are told apart where times are per row or token, without reading back from the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.process import Process
from suffuse.state import State, leaves, map_state

__all__ = ["Momentum"]


class Momentum:
    """The running sum.

    Arguments:
        beta: Weight of the sum so far; negative pushes away from what was done before.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self._t: float | Tensor | None = None
        self._before: Any = None
        self._sum: Any = None

    def add(self, t: float | Tensor, difference: State, process: Any) -> State:
        """Return the sum at t."""
        if isinstance(t, Tensor) and self._fits(t, difference):
            before = map_state(lambda s, b, p: self._chosen(t, s, b, p), self._sum, self._before, process)
        elif self._t is None or not self._fits(t, difference) or t > self._t:
            before = map_state(torch.zeros_like, difference)
        else:
            before = self._sum if t < self._t else self._before
        self._t, self._before = t, before
        self._sum = map_state(lambda d, b: d + self.beta * b, difference, before)
        found: State = self._sum
        return found

    def _chosen(self, t: Tensor, running: Tensor, before: Tensor, process: Process) -> Tensor:
        assert isinstance(self._t, Tensor)  # it fits
        falls, same = (process.space.expand(mask, running) for mask in (t < self._t, t.eq(self._t)))
        return torch.where(falls, running, torch.where(same, before, torch.zeros_like(running)))

    def _fits(self, t: float | Tensor, difference: State) -> bool:
        """Return whether the last call was of the same kind of time and the same shapes."""
        if self._t is None or isinstance(t, Tensor) != isinstance(self._t, Tensor):
            return False
        if isinstance(t, Tensor) and isinstance(self._t, Tensor) and t.shape != self._t.shape:
            return False
        pairs = zip(leaves(difference), leaves(self._sum), strict=True)
        return all(new.shape == old.shape and new.device == old.device for new, old in pairs)
