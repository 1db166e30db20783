r"""Uncertainty: a weight that is learned, so that every noise level contributes a loss of one.

    L = E_{lam ~ p} [ e^{-u(lam)} l(lam) + u(lam) ],    whose minimum over u is u = log E[l | lam]

for the weighted error l. "Analyzing and Improving the Training Dynamics of Diffusion Models", Karras et al. 2024, eq.
14-16 and 21. u is a small network on Fourier features of lam, one output per field. It is trained with the model and
saved with it, but only the training loss sees it: validation compares runs by l itself, and sampling has no loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suffuse.errors import ConfigError
from suffuse.nn.embed import fourier

__all__ = ["Uncertainty"]


class Uncertainty(nn.Module):
    """u(lam), zero before training.

    Arguments:
        width: Fourier features of the noise level.
        fields: Number of fields of the state; None, in a config, stands for those of the data.

    Raises:
        ConfigError: Unless width is an even number of at least 2 and fields at least 1.
    """

    def __init__(self, width: int = 128, fields: int | None = None) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ConfigError(f"objective.uncertainty.width={width} must be an even number of at least 2")
        if fields is not None and fields < 1:
            raise ConfigError(f"objective.uncertainty.fields={fields} must be at least 1")
        self.width, self.fields = width, fields or 1
        self.leave = nn.Linear(width, self.fields)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, lam: Tensor) -> Tensor:
        """Return u per field, float32, shape (fields, B), for the half log-SNR `lam` of shape (B,)."""
        with torch.autocast(lam.device.type, enabled=False):
            u: Tensor = self.leave(fourier(lam / 4, self.width))
        return u.T
