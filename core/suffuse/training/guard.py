"""Guard: gradients clipped by their global norm, and steps whose gradient is NaN or infinite skipped.

On a CPU the norm is read at once. On a GPU nothing is read back in a step: whether it is skipped is decided on the
device, by the flag ``found_inf`` of fused optimizers, which then leave weights, moments and their count of steps alone,
and the norm is copied to the host beside the work and looked at two steps later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Guard", "Later", "total_norm"]

LAG = 2
"""Steps after which a norm is waited for."""


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together, a scalar; of spread ones over all processes."""
    norm = nn.utils.get_total_norm(gradients)
    whole = getattr(norm, "full_tensor", None)
    found: Tensor = norm if whole is None else whole()
    return found


class Later:
    """Numbers that come from the device some steps after they were computed, so that nobody waits for them."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Tensor, Any]] = deque()

    def send(self, value: Tensor) -> None:
        """Copy a scalar to the host, beside the work."""
        if value.device.type != "cuda":
            self._waiting.append((value.detach().clone(), None))
            return
        host = torch.empty((), dtype=value.dtype, pin_memory=True)
        host.copy_(value.detach(), non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._waiting.append((host, event))

    def read(self, wait: bool = False) -> Iterator[float]:
        """Yield what was sent `LAG` steps ago, or with `wait` everything."""
        while self._waiting and (wait or len(self._waiting) > LAG):
            host, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            yield float(host)


class Guard:
    """Clips, and counts what is skipped.

    Arguments:
        clip: Largest global norm; 0 switches clipping off.
        deferred: Decide on the device, and read later; null for where the gradients are on a GPU and the optimizer can.
    """

    def __init__(self, clip: float, deferred: bool | None = None) -> None:
        self.clip, self.deferred = clip, deferred
        self.norm = math.nan
        self.in_a_row = 0
        self.last_skipped = False
        self.found: Tensor | None = None
        """1 where the device skips the step that is under way, else 0; None where the host decides."""
        self._later = Later()

    def __call__(self, optimizer: Any) -> None:
        """Clip the gradients of an optimizer that is about to step, or see to it that the step changes nothing."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = total_norm([p.grad for p in parameters])
        raw = getattr(optimizer, "_optimizer", optimizer)  # Lightning's wrapper hands on what it reads, not what is set
        if self._defers(raw, norm):
            self.found = (~torch.isfinite(norm)).float()
            raw.found_inf = self.found
            self._cut(parameters, norm)
            self._later.send(norm)
            return
        self.found = None
        value = float(norm)
        self._count(value)
        if self.last_skipped:
            # Without a gradient an optimizer leaves a parameter and its moments alone.
            for parameter in parameters:
                parameter.grad = None
        else:
            self._cut(parameters, norm)

    def _cut(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> None:
        if self.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)

    def _defers(self, optimizer: Any, norm: Tensor) -> bool:
        able = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        return able and (norm.device.type == "cuda" if self.deferred is None else self.deferred)

    def read(self, wait: bool = False) -> int:
        """Look at the norms that have arrived; return how many of their steps were skipped.

        Arguments:
            wait: For all of them, as before a checkpoint; else for those of `LAG` steps ago.
        """
        skipped = 0
        for norm in self._later.read(wait):
            self._count(norm)
            skipped += self.last_skipped
        return skipped

    def _count(self, norm: float) -> None:
        self.last_skipped = not math.isfinite(norm)
        if self.last_skipped:
            self.in_a_row += 1
        else:
            self.norm, self.in_a_row = norm, 0
