"""Options: what the config group ``guidance`` builds, one class per option; each wraps the denoiser of a draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from suffuse.denoiser import Denoiser
from suffuse.errors import ConfigError
from suffuse.grid import Grid
from suffuse.guidance.guided import ClassifierFree
from suffuse.guidance.interval import Ends, Interval, check_scale
from suffuse.guidance.perturbed import Perturbed
from suffuse.guidance.rule import Linear, Optimal, Projected, Rescaled, Rule
from suffuse.guidance.steps import PlusPlus, Still
from suffuse.process import reference

__all__ = ["APG", "CFG", "PAG", "SLG", "CFGPlusPlus", "CFGZero", "Guidance", "Setting"]


@dataclass(frozen=True)
class Setting:
    """What a draw knows besides its denoiser.

    Arguments:
        grid: Times.
        null: The embedded absent (or negative) condition; None for an unconditional model.
        raw: The conditions before they were embedded.
        facts: What the data decided about the model.
    """

    grid: Grid
    null: Mapping[str, Tensor] | None = None
    raw: Mapping[str, Tensor] | None = None
    facts: Any = None


@dataclass(frozen=True)
class Guidance(ABC):
    """A kind of guidance.

    Arguments:
        scale: How hard it pulls; 1 is no guidance.
        interval: [lowest, highest] half log-SNR at which it acts, null for an open end.

    Raises:
        ConfigError: For a negative scale or an empty interval.
    """

    scale: float = 1.0
    interval: Ends = (None, None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_scale(self.scale))
        Interval.of(self.interval)

    @abstractmethod
    def __call__(self, denoiser: Denoiser, setting: Setting) -> Denoiser:
        """Return the guided denoiser of one draw."""


@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance.

    Arguments:
        scale: w; 0 ignores the condition.
        interval: Where it acts.
        rescale: Share phi by which the result is drawn back to the spread of the conditional prediction; 0 for not.
        quantity: The quantity whose spread that is: ``v`` (the paper's), ``x0``, ``eps`` or ``flow``.
        negative: Conditions to move away from, for example ``{label: 7}``, in the place of none; one value each.

    Raises:
        ConfigError: For a scale, interval, share or quantity out of range, or several values of a negative condition.
    """

    rescale: float = 0.0
    quantity: str = "v"
    negative: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        Rescaled(self.quantity, self.rescale)
        for name, value in (self.negative or {}).items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                raise ConfigError(f"guidance.negative.{name}={value} must be one value, the same for all samples")

    def __call__(self, denoiser: Denoiser, setting: Setting) -> Denoiser:
        """Return the guided denoiser; the denoiser itself without a condition."""
        if setting.null is None or self.scale == 1:
            return denoiser
        rule: Rule = Rescaled(self.quantity, self.rescale) if self.rescale else Linear()
        return ClassifierFree(denoiser, self.scale, setting.null, self.interval, rule)


@dataclass(frozen=True)
class APG(Guidance):
    """Adaptive projected guidance: high scales without oversaturation.

    Arguments:
        scale: w.
        interval: Where it acts.
        parallel: Share eta of the difference's part along the prediction.
        threshold: Largest norm r of a sample's difference; null for any.
        momentum: beta, the weight of the differences before; the paper's are negative.
        quantity: The quantity it acts on: ``x0`` (the paper's), ``eps``, ``v`` or ``flow``.

    Raises:
        ConfigError: For an argument out of range.
    """

    parallel: float = 0.0
    threshold: float | None = None
    momentum: float = -0.5
    quantity: str = "x0"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rule()

    def __call__(self, denoiser: Denoiser, setting: Setting) -> Denoiser:
        """Return the guided denoiser; the denoiser itself without a condition."""
        if setting.null is None or self.scale == 1:
            return denoiser
        return ClassifierFree(denoiser, self.scale, setting.null, self.interval, self._rule())

    def _rule(self) -> Rule:
        return Projected(self.quantity, self.parallel, self.threshold, self.momentum)


@dataclass(frozen=True)
class CFGPlusPlus(Guidance):
    """CFG++: the guided x0 with the unconditional noise. Its scale lambda is on another footing: 0 to 1."""

    def __call__(self, denoiser: Denoiser, setting: Setting) -> Denoiser:
        """Return the guided denoiser; the denoiser itself without a condition."""
        if setting.null is None:
            return denoiser
        return PlusPlus(denoiser, self.scale, setting.null, setting.grid, self.interval)


@dataclass(frozen=True)
class CFGZero(Guidance):
    """CFG-Zero*: the unconditional velocity at its best scale, and first steps that stand still.

    Arguments:
        scale: w.
        interval: Where it acts.
        still: How many of the first steps do not move.
        quantity: The quantity whose scale is optimised: ``flow`` (the paper's), ``x0``, ``eps`` or ``v``.

    Raises:
        ConfigError: For an argument out of range; in a draw, when no step would move.
    """

    still: int = 1
    quantity: str = "flow"

    def __post_init__(self) -> None:
        super().__post_init__()
        Optimal(self.quantity)
        if isinstance(self.still, bool) or not isinstance(self.still, int) or self.still < 0:
            raise ConfigError(f"guidance.still={self.still} must be a whole number of at least 0")

    def __call__(self, denoiser: Denoiser, setting: Setting) -> Denoiser:
        """Return the guided denoiser; the denoiser itself without a condition."""
        if setting.null is None or self.scale == 1:
            return denoiser
        guided = ClassifierFree(denoiser, self.scale, setting.null, self.interval, Optimal(self.quantity))
        if not self.still:
            return guided
        times, schedule = setting.grid.t, reference(denoiser.process).schedule
        if self.still >= setting.grid.steps:
            raise ConfigError(f"guidance.still={self.still} leaves none of the {setting.grid.steps} steps to move")
        if times.ndim != 1:
            raise ConfigError("guidance.still: steps of a grid with times per token cannot stand still; set it to 0")
        # Half way to the next node, so that a stage evaluated within the step stands still as well.
        below = float(schedule.lam(float(times[self.still - 1] + times[self.still]) / 2))
        return Still(guided, below)


@dataclass(frozen=True)
class PAG(Guidance):
    """Perturbed-attention guidance: away from the network with an attention map that is the identity.

    Arguments:
        scale: w; the paper's s is w - 1.
        interval: Where it acts.
        layers: Module paths of attention layers; null for the middle one.
        cfg: Scale of classifier-free guidance in the same step; 1 for none.

    Raises:
        ConfigError: For an argument out of range; in a draw, for a path that names nothing.
    """

    layers: Sequence[str] | None = None
    cfg: float = 1.0
    how = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale(self.cfg, "guidance.cfg")

    def __call__(self, denoiser: Denoiser, setting: Setting) -> Denoiser:
        """Return the guided denoiser."""
        if self.scale == 1 and (self.cfg == 1 or setting.null is None):
            return denoiser
        return Perturbed(denoiser, self.scale, self.layers, self.how, setting.null, self.cfg, self.interval)


@dataclass(frozen=True)
class SLG(PAG):
    """Skip-layer guidance: away from the network with blocks left out.

    Arguments:
        scale: w; 1 + the scale of the papers.
        interval: Where it acts.
        layers: Module paths of blocks that keep their input's shape; null for the middle one.
        cfg: Scale of classifier-free guidance in the same step; 1 for none.

    Raises:
        ConfigError: For an argument out of range; in a draw, for a path that names nothing.
    """

    how = "skip"
