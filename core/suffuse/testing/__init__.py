"""The conformance kit: what every modality package, and every sampler, must pass.

A package's own tests subclass `ModalityContract` and name the modality, or `SamplerContract` and say how the sampler is
made; pytest then runs every check on it. A check that needs more has an attribute or a method to override. `command`
runs a command line inside the test's process, where torch is loaded already.
"""

from suffuse.testing.command import Done, command
from suffuse.testing.modality import ModalityContract
from suffuse.testing.sampler import SamplerContract

__all__ = ["Done", "ModalityContract", "SamplerContract", "command"]
