"""Guidance: denoisers around denoisers that pull towards a condition, or away from a worse answer.

Each acts on x0, so each composes with every sampler, and only where the noise level lies in an interval of half
log-SNR.
"""

from suffuse.guidance.energy import Classifier, Energy
from suffuse.guidance.guided import ClassifierFree, Composed, Guided, Weaker
from suffuse.guidance.interval import Interval
from suffuse.guidance.options import APG, CFG, PAG, SLG, CFGPlusPlus, CFGZero, Guidance, Setting
from suffuse.guidance.perturbed import Perturbed
from suffuse.guidance.rule import Linear, Optimal, Projected, Rescaled, Rule
from suffuse.guidance.steps import PlusPlus, Still

__all__ = [
    "APG", "CFG", "PAG", "SLG", "CFGPlusPlus", "CFGZero", "Classifier", "ClassifierFree", "Composed", "Energy",
    "Guidance", "Guided", "Interval", "Linear", "Optimal", "Perturbed", "PlusPlus", "Projected", "Rescaled", "Rule",
    "Setting", "Still", "Weaker",
]  # fmt: skip
