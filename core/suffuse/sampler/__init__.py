"""Samplers: one engine and the methods that fill its tables."""

from suffuse.sampler.adaptive import Adaptive
from suffuse.sampler.discrete import AncestralTokens, CachedAncestral, Confidence, TauLeaping, Tokens
from suffuse.sampler.engine import Leg, Plan, Route, Row, Sampler, Stage, sample
from suffuse.sampler.invert import invert
from suffuse.sampler.multistep import DDIM, Ancestral, Consistency, Euler, Multistep, PredictorCorrector
from suffuse.sampler.polish import Polished
from suffuse.sampler.singlestep import Churn, Heun, Langevin, Resample, Restart, SingleStep

__all__ = [
    "DDIM", "Adaptive", "Ancestral", "AncestralTokens", "CachedAncestral", "Churn", "Confidence", "Consistency",
    "Euler", "Heun", "Langevin", "Leg", "Multistep", "Plan", "Polished", "PredictorCorrector", "Resample", "Restart",
    "Route", "Row", "Sampler", "SingleStep", "Stage", "TauLeaping", "Tokens", "invert", "sample",
]  # fmt: skip
