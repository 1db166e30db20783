r"""Self-conditioning: a network that sees its own previous estimate of x_0.

    x0_hat = D(x_t, t, x0_prev),    x0_prev = 0 or an earlier x0_hat

"Analog Bits: Generating Discrete Data Using Diffusion Models with Self-Conditioning", Chen et al. 2023, section 3.2. In
training the previous estimate is, half of the time, the network's own at the same x_t, without a gradient; in sampling
it is the last one of the draw. A solver asks for x0_hat as it always does: remembering is the denoiser's affair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from suffuse.denoiser import Denoiser, Preconditioned, Prediction
from suffuse.process import Process
from suffuse.state import State, leaves, map_state

__all__ = ["SelfConditioned"]


class _Memory(NamedTuple):
    """The last time, the first estimate there, and what the network was given there; per row or token where t is."""

    t: float | Tensor
    x0: State
    given: State | None


class SelfConditioned(Denoiser):
    """A denoiser that hands the network its estimate at the last higher time; make a new one, or `reset`, per draw.

    Several calls at one time (stages of a solver, branches of guidance one after the other) see the same estimate, and
    the first of them is remembered. Time only falls in a draw, so where it rises (a restart, a step that an adaptive
    solver repeats, another draw) the memory is dropped, and the network sees zeros as in training. Branches of guidance
    in one batch remember row by row; when guidance sets in or ends, the conditional rows go on.

    Arguments:
        denoiser: A denoiser whose network takes a previous estimate.
    """

    def __init__(self, denoiser: Preconditioned) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process
        self._memory: _Memory | None = None

    def reset(self) -> None:
        """Forget: what comes next is another draw."""
        self._memory = None

    def forward(self, x: State, t: float | Tensor, cond: Any = None) -> Prediction:
        """Return the prediction, and remember it."""
        memory = self._fitting(next(leaves(x)).shape[0])
        given = self._previous(memory, x, t)
        prediction = self.denoiser(x, t, cond, given)
        assert isinstance(prediction, Prediction)
        x0 = map_state(lambda leaf: leaf.detach(), prediction.x0)
        if memory is not None:
            # The first estimate at a time is the one that counts.
            x0 = self._where(_compare(torch.eq, t, memory.t, x), memory.x0, x0)
        self._memory = _Memory(t, x0, given)
        return prediction

    def _previous(self, memory: _Memory | None, x: State, t: float | Tensor) -> State | None:
        if memory is None:
            return None
        same = self._where(_compare(torch.eq, t, memory.t, x), memory.given, None)
        return self._where(_compare(torch.lt, t, memory.t, x), memory.x0, same)

    def _fitting(self, rows: int) -> _Memory | None:
        """Return the memory for so many rows: guidance stacks its branches behind the conditional one."""
        if self._memory is None:
            return None
        had = next(leaves(self._memory.x0)).shape[0]
        if rows == had:
            return self._memory
        if rows % had and had % rows:
            return None

        def fit(leaf: Tensor) -> Tensor:
            return torch.cat([leaf] * max(rows // had, 1))[:rows]

        t, x0, given = self._memory
        per_row = isinstance(t, Tensor) and t.ndim > 0
        return _Memory(fit(t) if per_row else t, map_state(fit, x0), None if given is None else map_state(fit, given))  # type: ignore[arg-type]

    def _where(self, chosen: bool | Tensor, one: State | None, other: State | None) -> State | None:
        """Return `one` where `chosen`, else `other`; None stands for zeros."""
        if not isinstance(chosen, Tensor):
            return one if chosen else other
        if one is None and other is None:
            return None
        one = map_state(torch.zeros_like, other) if one is None else one
        other = map_state(torch.zeros_like, one) if other is None else other

        def pick(a: Tensor, b: Tensor, p: Process) -> Tensor:
            return torch.where(p.space.expand(chosen, a), a, b)

        picked: State = map_state(pick, one, other, self.process)
        return picked


def _compare(how: Any, t: float | Tensor, then: float | Tensor, x: State) -> bool | Tensor:
    """Return the comparison of two times; on the device, without asking it, where one of them is there."""
    if not isinstance(t, Tensor) and not isinstance(then, Tensor):
        return bool(t == then if how is torch.eq else t < then)
    device = next(leaves(x)).device
    compared: Tensor = how(torch.as_tensor(t, device=device), torch.as_tensor(then, device=device))
    return compared
