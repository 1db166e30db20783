r"""Self-conditioning: a network that sees its own previous estimate of x_0.

    x0_hat = D(x_t, t, x0_prev),    x0_prev = 0 or an earlier x0_hat

"Analog Bits: Generating Discrete Data Using Diffusion Models with Self-Conditioning", Chen et al. 2023, section 3.2. In
training the previous estimate is, half of the time, the network's own at the same x_t, without a gradient; in sampling
it is the last one of the draw. A solver asks for x0_hat as it always does: remembering is the denoiser's affair.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.denoiser import Denoiser, Preconditioned, Prediction
from suffuse.process import Process
from suffuse.state import State, leaves, map_state

__all__ = ["SelfConditioned"]


class SelfConditioned(Denoiser):
    """A denoiser that hands the network its last prediction; make a new one, or call `reset`, for every draw.

    Time only falls in a draw, so where it rises (a restart, a step repeated by an adaptive solver, another draw) the
    memory is dropped there, and the network sees zeros as in training. Within guidance the rows of the conditional and
    the unconditional branch remember for themselves; when guidance sets in or ends, the conditional rows go on.

    Arguments:
        denoiser: A denoiser whose network takes a previous estimate.
    """

    def __init__(self, denoiser: Preconditioned) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process
        self._last: tuple[float | Tensor, State] | None = None

    def reset(self) -> None:
        """Forget: what comes next is another draw."""
        self._last = None

    def forward(self, x: State, t: float | Tensor, cond: Any = None) -> Prediction:
        """Return the prediction, and remember it."""
        prediction = self.denoiser(x, t, cond, self._previous(x, t))
        assert isinstance(prediction, Prediction)
        self._last = (t, map_state(lambda leaf: leaf.detach(), prediction.x0))
        return prediction

    def _previous(self, x: State, t: float | Tensor) -> State | None:
        if self._last is None:
            return None
        then, x0 = self._last
        rows, had = next(leaves(x)).shape[0], next(leaves(x0)).shape[0]
        if rows != had:
            if rows % had and had % rows:
                return None
            # Guidance stacks its branches behind the conditional one.
            x0 = map_state(lambda leaf: torch.cat([leaf] * max(rows // had, 1))[:rows], x0)
            then = then.max() if isinstance(then, Tensor) and then.ndim else then
        if not isinstance(t, Tensor) and not isinstance(then, Tensor):
            return x0 if t <= then else None
        # Row by row, token by token, and without asking the device.
        falls = torch.as_tensor(t, device=next(leaves(x)).device) <= torch.as_tensor(then).to(next(leaves(x)).device)

        def kept(leaf: Tensor, process: Process) -> Tensor:
            return torch.where(process.space.expand(falls, leaf), leaf, torch.zeros_like(leaf))

        masked: State = map_state(kept, x0, self.process)
        return masked
