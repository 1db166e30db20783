"""Observation: denoisers that know a part of the sample, or a measurement of it, and draws that start from one."""

from suffuse.observation.inpaint import Inpaint
from suffuse.observation.posterior import DPS, MMPS, Observation, PiGDM, conjugate_gradient
from suffuse.observation.sdedit import from_time, noised, sdedit

__all__ = ["DPS", "MMPS", "Inpaint", "Observation", "PiGDM", "conjugate_gradient", "from_time", "noised", "sdedit"]
