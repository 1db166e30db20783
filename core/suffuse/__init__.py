"""suffuse: modality-agnostic diffusion models.

Importing the package imports no torch; take the mathematics from its modules (`suffuse.schedule`, `suffuse.denoiser`,
`suffuse.sampler`, …).
"""

from suffuse.errors import SuffuseError
from suffuse.hookspecs import hookimpl
from suffuse.modality import Command, Modality

__all__ = ["Command", "Modality", "SuffuseError", "hookimpl"]
__version__ = "0.1.0"
