r"""Guided: denoisers that ask twice and move away from the weaker answer.

    x0 = x0_weak + w (x0_given - x0_weak),

or another `suffuse.guidance.rule`. What is weak: the denoiser without its condition, or with one to be avoided
(`ClassifierFree`), or a worse model with the same condition (`Weaker`). A scale w of 1 is no guidance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from suffuse.denoiser import Condition, Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse.guidance.interval import Ends, Interval, check_scale
from suffuse.guidance.momentum import Momentum
from suffuse.guidance.rule import Linear, Projected, Rule, coefficients
from suffuse.process import Gaussian, Process, bound
from suffuse.state import State, leaves, map_state

__all__ = ["ClassifierFree", "Composed", "Guided", "Weaker", "ask"]


class Guided(Denoiser):
    """Base: two predictions, put together by a rule where the noise level lies in an interval.

    Arguments:
        denoiser: The denoiser.
        scale: w, at least 0; 1 is the denoiser itself.
        interval: (lowest, highest) half log-SNR at which guidance acts; None leaves an end open.
        rule: How the predictions are put together. Fields that are not Gaussian take the linear one, on their logits.

    Raises:
        ConfigError: For a negative scale or an empty interval.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: Ends | Interval = (None, None), rule: Rule | None = None
    ) -> None:
        super().__init__()
        self.denoiser, self.scale, self.process = denoiser, check_scale(scale), denoiser.process
        self.interval, self.rule = Interval.of(interval), rule or Linear()
        beta = self.rule.momentum if isinstance(self.rule, Projected) else 0.0
        self.momentum = Momentum(beta) if beta else None
        self._known: dict[float, Any] = {}

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the guided prediction."""
        inside, scale = self._at(t)
        if inside is False or not self.acts(scale, cond):
            prediction: Prediction = self.denoiser(x, t, cond)
            return prediction
        given, weak = self.pair(x, t, cond)
        process = bound(self.process, x)
        if self.momentum is not None:
            difference = map_state(torch.sub, given, weak)
            weak = map_state(torch.sub, given, self.momentum.add(t, difference, process))
        levels = self._levels(t)

        def guide(leaf: Tensor, g: Tensor, u: Tensor, process: Process, level: Any, w: Any) -> Tensor:
            if not process.noised:  # its space need not know of tokens
                return g
            guided = self._guide(leaf, g, u, process, level, _spread(w, g, process))
            return guided if inside is True else torch.where(process.space.expand(inside, g), guided, g)

        return Prediction(map_state(guide, x, given, weak, process, levels, scale))

    def pair(self, x: State, t: float | Tensor, cond: Condition) -> tuple[State, State]:
        """Return the prediction that was asked for and the weaker one."""
        raise TypeError(f"{type(self).__name__} does not define pair")

    def acts(self, scale: Any, cond: Condition) -> bool:
        """Return whether guidance changes anything; asked once per call, of numbers on the host alone."""
        return not isinstance(scale, float) or scale != 1

    def scale_at(self, t: float | Tensor) -> Any:
        """Return w at a time: a float, or a tensor of the shape of t; or one per field."""
        return self.scale

    def _at(self, t: float | Tensor) -> tuple[bool | Tensor, Any]:
        if isinstance(t, Tensor):
            return self.interval(self.process, t), self.scale_at(t)
        inside, scale, _ = self._remembered(t)
        return inside, scale

    def _levels(self, t: float | Tensor) -> Any:
        """Return alpha and sigma per field: floats for a float."""
        if isinstance(t, Tensor):
            return map_state(lambda p: tuple(p.schedule(t)), self.process)
        return self._remembered(t)[2]

    def _remembered(self, t: float) -> Any:
        if t not in self._known:
            if len(self._known) > 4096:
                self._known.clear()
            levels = map_state(lambda p: tuple(float(value) for value in p.schedule(t)), self.process)
            self._known[t] = self.interval(self.process, t), self.scale_at(t), levels
        return self._known[t]

    def _guide(self, x: Tensor, given: Tensor, weak: Tensor, process: Process, level: Any, scale: Any) -> Tensor:
        if isinstance(self.rule, Linear) or not isinstance(process, Gaussian):
            found: Tensor = weak + scale * (given - weak)
            return found
        if self.rule.quantity == "x0":
            found = self.rule(given, weak, scale, process.space)
            return found
        alpha, sigma = (_spread(value, given, process) for value in level)
        if isinstance(alpha, float) and (sigma == 0 or (alpha == 0 and self.rule.quantity == "eps")):
            raise ConfigError(
                f"guidance.quantity={self.rule.quantity}: undefined without signal or without noise; choose v or x0"
            )
        p, r = coefficients(self.rule.quantity, alpha, sigma)
        found = (self.rule(p * x + r * given, p * x + r * weak, scale, process.space) - p * x) / r
        return found


class ClassifierFree(Guided):
    """Classifier-free guidance: the weaker answer is the same denoiser's without the condition.

    "Classifier-Free Diffusion Guidance", Ho and Salimans 2022, eq. 6. One call of the denoiser with twice the rows.

    Arguments:
        denoiser: The denoiser, trained with dropped conditions.
        scale: w, at least 0; 0 ignores the condition, 1 is the denoiser itself.
        null: The embedded absent condition, of one row or as many as the batch; a negative condition in its place is
            moved away from.
        interval: (lowest, highest) half log-SNR at which guidance acts; None leaves an end open.
        rule: How the predictions are put together.

    Raises:
        ConfigError: For a negative scale or an empty interval.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, null: Mapping[str, Tensor],
        interval: Ends | Interval = (None, None), rule: Rule | None = None,
    ) -> None:  # fmt: skip
        super().__init__(denoiser, scale, interval, rule)
        self.null = dict(null)

    def acts(self, scale: Any, cond: Condition) -> bool:
        """Return whether there is a condition, and a scale other than 1."""
        return cond is not None and super().acts(scale, cond)

    def pair(self, x: State, t: float | Tensor, cond: Condition) -> tuple[State, State]:
        """Return the predictions with the condition and without."""
        assert cond is not None  # else it does not act
        given, without = ask(self.denoiser, x, t, [cond, self.null])
        return given, without


class Composed(ClassifierFree):
    r"""Several conditions at once: x0 = x0_null + sum_i w_i (x0_i - x0_null).

    "Compositional Visual Generation with Composable Diffusion Models", Liu et al. 2022, eq. 11; a negative weight is
    their negation. One call of the denoiser with a row for each condition and sample. Outside the interval the first
    condition is followed alone.

    Arguments:
        denoiser: The denoiser, trained with dropped conditions.
        scale: Weight of the condition the denoiser is called with.
        others: Further embedded conditions, of one row or as many as the batch, and their weights.
        null: The embedded absent condition.
        interval: (lowest, highest) half log-SNR at which guidance acts.

    Raises:
        ConfigError: For a negative scale, an empty interval, or a weight that is not finite.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, others: Sequence[tuple[Mapping[str, Tensor], float]],
        null: Mapping[str, Tensor], interval: Ends | Interval = (None, None),
    ) -> None:  # fmt: skip
        super().__init__(denoiser, scale, null, interval)
        self.others = [(dict(cond), float(weight)) for cond, weight in others]
        if any(not math.isfinite(weight) for _, weight in self.others):
            raise ConfigError(f"guidance: weights {[w for _, w in self.others]} must be finite numbers")

    def acts(self, scale: Any, cond: Condition) -> bool:
        """Return whether there is a condition, and a weight that changes something."""
        return cond is not None and (scale != 1 or any(weight for _, weight in self.others))

    def pair(self, x: State, t: float | Tensor, cond: Condition) -> tuple[State, State]:
        """Return a pair whose linear combination is the sum: both carry what the other conditions add."""
        assert cond is not None  # else it does not act
        given, *more, without = ask(self.denoiser, x, t, [cond, *(c for c, _ in self.others), self.null])
        inside = self._at(t)[0]

        def total(u: Tensor, process: Process, *found: Tensor) -> Tensor:
            terms = [weight * (x0 - u) for (_, weight), x0 in zip(self.others, found, strict=True)]
            added = sum(terms, torch.zeros_like(u))
            return added if isinstance(inside, bool) else added * process.space.expand(inside, u)

        added = map_state(total, without, bound(self.process, x), *more)
        return map_state(torch.add, given, added), map_state(torch.add, without, added)


class Weaker(Guided):
    """Autoguidance: the weaker answer is a worse model's, with the same condition.

    "Guiding a Diffusion Model with a Bad Version of Itself", Karras et al. 2024, eq. 3. Two calls.

    Arguments:
        denoiser: The denoiser.
        scale: w, at least 0; 1 is the denoiser itself.
        weaker: The worse denoiser: fewer weights, less training. Of the same process.
        cond: The condition as the worse model embeds it; None for the same tensors.
        interval: (lowest, highest) half log-SNR at which guidance acts; None leaves an end open.
        rule: How the predictions are put together.

    Raises:
        ConfigError: For a negative scale, an empty interval, or another process.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, weaker: Denoiser, cond: Condition = None,
        interval: Ends | Interval = (None, None), rule: Rule | None = None,
    ) -> None:  # fmt: skip
        super().__init__(denoiser, scale, interval, rule)
        if weaker.process != denoiser.process:
            raise ConfigError(
                f"guidance: the weaker model's process {weaker.process} is not the model's {denoiser.process}; "
                "choose a checkpoint trained with the same process and schedule"
            )
        self.weaker, self.cond = weaker, cond

    def pair(self, x: State, t: float | Tensor, cond: Condition) -> tuple[State, State]:
        """Return the predictions of both models."""
        return self.denoiser(x, t, cond).x0, self.weaker(x, t, cond if self.cond is None else self.cond).x0


def ask(denoiser: Denoiser, x: State, t: float | Tensor, conds: Sequence[Mapping[str, Tensor]]) -> list[State]:
    """Return the prediction for each condition, in one call of the denoiser.

    Arguments:
        denoiser: The denoiser.
        x: State of B rows.
        t: Time.
        conds: Embedded conditions with the names of the first, of B rows or one.
    """
    count, rows = len(conds), _rows(x)
    many = map_state(lambda leaf: torch.cat([leaf] * count), x)
    names = conds[0]
    joint = {name: torch.cat([_fit(cond[name], names[name], rows) for cond in conds]) for name in names}
    times = torch.cat([t] * count) if isinstance(t, Tensor) and t.ndim else t
    out = denoiser(many, times, joint).x0
    return [map_state(lambda leaf, i=i: leaf.chunk(count)[i], out) for i in range(count)]


def _rows(x: State) -> int:
    return int(next(leaves(x)).shape[0])


def _fit(value: Tensor, like: Tensor, rows: int) -> Tensor:
    value = value.to(like)
    return value if len(value) == rows else value[:1].expand(rows, *value.shape[1:])


def _spread(value: Any, like: Tensor, process: Process) -> Any:
    """Return a level or scale as a float, or so that it broadcasts against `like`."""
    if not isinstance(value, Tensor):
        return value
    return process.space.expand(value.to(like.device, like.dtype), like)
