"""Multistep: methods that use the predictions of earlier steps again, one evaluation per step.

Order 1 is DDIM (Song et al. 2021) and, with eta = 1, ancestral sampling. In x0 order 2 is DPM-Solver++(2M) in its exact
form (Lu et al. 2022, eq. 4.2) and, with eta = 1, its SDE form; in eps DEIS (Zhang and Chen 2023, eq. 15); in sigma
k-diffusion's LMS; in flow Adams-Bashforth on the straight line. With a corrector that uses the prediction at the end of
a step too, in place of the one it was made with, it is UniPC (Zhao et al. 2023, algorithm 1) and, with eta > 0,
SA-Solver (Xue et al. 2023, eq. 14 and 17).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from suffuse.errors import ConfigError
from suffuse.sampler.engine import Leg, Sampler, Stage
from suffuse.solver import BASES, FORMS, Node, Step, Used, first_order, interpolated, transition, usable

__all__ = ["DDIM", "Ancestral", "Consistency", "Euler", "Multistep", "PredictorCorrector"]


@dataclass(frozen=True)
class Multistep(Sampler):
    """Exponential multistep method of order 1, 2 or 3.

    Arguments:
        steps: Intervals of the grid.
        order: Number of interpolated predictions. It is lower where there are fewer: on a grid of fewer steps, and at
            an end where a basis has no place for a node.
        eta: Scale of the reverse SDE's diffusion; needs basis x0.
        basis: What is interpolated: ``x0``, ``eps``, ``sigma`` (eps in sigma/alpha) or ``flow``, see `suffuse.solver`.
        form: ``exact``, ``midpoint`` (order 2) or ``uniform``, see `suffuse.solver.interpolated`.
        start: ``corrected``: order 3 spends one more evaluation at the start, so that its global order really is 3;
            where tokens or fields start apart it cannot. ``plain``: it begins with order 1, as peers do.

    Raises:
        ConfigError: For an order outside 1 to 3, a negative eta, eta outside basis x0, and unknown words.
    """

    order: int = 2
    eta: float = 0.0
    basis: str = "x0"
    form: str = "exact"
    start: str = "corrected"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.order, self.eta, self.basis)
        if self.form not in FORMS:
            raise ConfigError(f"sampler.form={self.form} is none of {', '.join(FORMS)}")
        if self.form == "midpoint" and self.order > 2:
            raise ConfigError(f"sampler.form=midpoint is of order 2, not {self.order}; set sampler.order=2")
        if self.start not in ("corrected", "plain"):
            raise ConfigError(f"sampler.start={self.start} is neither 'corrected' nor 'plain'")

    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Return one row per leg, two in the one where order 3 starts."""
        rows: list[list[Stage]] = []
        corrected = self.order == 3 and whole and self.eta == 0 and self.start == "corrected" and self.form == "exact"
        past: list[Node] = []
        fresh = corrected
        for nodes, leg in legs:
            t, s = nodes[0], nodes[-1]
            if leg.up:
                rows.append([_up(t, s, leg)])
                past, fresh = [], corrected
                continue
            if fresh and t != s and usable(self.basis, t, s, s):
                predictor = self._step(t, s, [(t, None)])
                corrector = interpolated(t, s, [(s, None), (t, 0)], self.basis, at=s, moved=True)
                rows.append(
                    [Stage(self._deep(predictor), 0, False, True), Stage(self._deep(corrector), len(nodes) - 1)]
                )
                fresh = False
            else:
                step = self._step(t, s, [(t, None), *((node, j) for j, node in enumerate(past))])
                rows.append([Stage(self._deep(step), push=self.order > 1, draws=(0,) if step.c else ())])
            past = [t, *past][: self.order - 1]
        return rows

    def _step(self, t: Node, s: Node, used: Sequence[Used]) -> Step:
        return interpolated(t, s, used, self.basis, self.eta, self.form)

    def _deep(self, step: Step) -> Step:
        return replace(step, depth=self.order - 1)


@dataclass(frozen=True)
class Euler(Multistep):
    """First order: DDIM, and Euler's method on every schedule."""

    order: int = 1


@dataclass(frozen=True)
class Ancestral(Multistep):
    """First order with the noise of the reverse SDE: ancestral (DDPM) sampling."""

    order: int = 1
    eta: float = 1.0


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A multistep predictor whose steps are done again, from the same base, once the prediction at their end is known.

    One evaluation per step: the one at the predicted state serves the corrector and the next predictor. The last step
    is not corrected.

    Arguments:
        steps: Intervals of the grid.
        order: Number of predictions the predictor interpolates.
        corrector: Number of predictions the corrector interpolates besides the one at the end; 0 for no corrector. By
            default as many as the predictor, which raises the order by one.
        eta: Scale of the reverse SDE's diffusion; needs basis x0. Predictor and corrector use the same noise.
        basis: What is interpolated, see `suffuse.solver`.

    Raises:
        ConfigError: For an order outside 1 to 3, a negative eta, and eta outside basis x0.
    """

    order: int = 2
    corrector: int | None = None
    eta: float = 0.0
    basis: str = "x0"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.order, self.eta, self.basis)
        if self.corrector not in (None, 0, 1, 2, 3):
            raise ConfigError(f"sampler.corrector={self.corrector} must be 0 to 3, or null for that of the predictor")

    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Return one row per leg."""
        again = self.order if self.corrector is None else self.corrector
        depth = max(self.order - 1, again)
        rows: list[list[Stage]] = []
        past: list[Node] = []
        for nodes, leg in legs:
            t, s = nodes[0], nodes[-1]
            if leg.up:
                raise ConfigError(f"sampler: {type(self).__name__} takes no way up; choose a single-step method")
            known: list[Used] = [(t, None), *((node, j) for j, node in enumerate(past))]
            step = interpolated(t, s, known[: self.order], self.basis, self.eta, moved=True)
            fix = Step(a=0.0, e=1.0)
            if past and again and (past[0] == t or usable(self.basis, past[0], t, t)):
                fix = interpolated(past[0], t, known[: again + 1], self.basis, self.eta, at=t, moved=True)
            draws: tuple[int, ...] = ()
            if self.eta:
                # The corrector repeats the noise of the step it corrects.
                spread = step.c[0] if step.c else 0.0
                draws = (-1, 0) if past else (0,)
                step = replace(step, c=(0.0, spread) if past else (spread,))
                fix = replace(fix, c=fix.c or (0.0,))
            stage = Stage(replace(step, depth=depth), 0, False, depth > 0, draws, fix)
            rows.append([stage])
            past = [t, *past][:depth]
        return rows


@dataclass(frozen=True)
class DDIM(Sampler):
    """First order with a share of the posterior's noise.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - v^2) eps + v z,    v = eta sigma_s sqrt(1 - e^{-2h})

    "Denoising Diffusion Implicit Models", Song et al. 2021, eq. 12 and 16: here eta is the paper's, a factor of the
    posterior's standard deviation; 0 is Euler's method, 1 ancestral sampling.

    Arguments:
        steps: Intervals of the grid.
        eta: Factor in [0, 1].

    Raises:
        ConfigError: For an eta outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"sampler.eta={self.eta} must be in [0, 1]")

    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Return one row per leg."""
        rows: list[list[Stage]] = []
        for nodes, leg in legs:
            t, s = nodes[0], nodes[-1]
            if leg.up:
                rows.append([_up(t, s, leg)])
            elif t == s or s.sigma == 0 or self.eta == 0:
                rows.append([Stage(first_order(t, s))])
            else:
                spread = self.eta * s.sigma * math.sqrt(-math.expm1(-2 * (s.lam - t.lam)))
                ratio = math.sqrt(s.sigma**2 - spread**2) / t.sigma
                rows.append([Stage(Step(a=ratio, b=s.alpha - t.alpha * ratio, c=(spread,)), draws=(0,))])
        return rows


@dataclass(frozen=True)
class Consistency(Sampler):
    """Predict x0, noise it again to the next level: the loop of consistency models and LCM, for few steps.

    "Consistency Models", Song et al. 2023, algorithm 1; "Latent Consistency Models", Luo et al. 2023, algorithm 3.
    """

    def column(self, legs: Sequence[tuple[list[Node], Leg]], whole: bool) -> list[list[Stage]]:
        """Return one row per leg."""
        rows: list[list[Stage]] = []
        for nodes, leg in legs:
            t, s = nodes[0], nodes[-1]
            if leg.up:
                rows.append([_up(t, s, leg)])
            elif t == s or s.sigma == 0:
                rows.append([Stage(first_order(t, s))])
            else:
                rows.append([Stage(Step(a=0.0, b=s.alpha, c=(s.sigma,)), draws=(0,))])
        return rows


def _up(s: Node, t: Node, leg: Leg) -> Stage:
    return Stage(transition(s, t, leg.spread), None, draws=(0,))


def _check(order: int, eta: float, basis: str) -> None:
    if isinstance(order, bool) or order not in (1, 2, 3):
        raise ConfigError(f"sampler.order={order} must be 1, 2 or 3")
    if not 0 <= eta < math.inf:
        raise ConfigError(f"sampler.eta={eta} must be at least 0")
    if basis not in BASES:
        raise ConfigError(f"sampler.basis={basis} is none of {', '.join(BASES)}")
    if basis != "x0" and eta:
        raise ConfigError(f"sampler.eta={eta} needs sampler.basis=x0; with {basis} there is only the ODE (eta=0)")
