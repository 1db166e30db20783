"""Loss: the distance of pictures in the features of a network that sees as people do, for training autoencoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from suffuse.errors import ConfigError
from suffuse.reconstruction import Term
from torch import Tensor

__all__ = ["LPIPS"]

FEATURES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}


class LPIPS(Term):
    """Learned perceptual similarity ("The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", Zhang et
    al. 2018, eq. 1).

    Its linear weights come with torchmetrics; those of the features are a file of torchvision, which has to be on disk.

    Arguments:
        path: That file, as `FEATURES` names it, or the folder it is in.
        net: ``vgg`` or ``alex``.
        weight: See `suffuse.reconstruction.Term`.

    Raises:
        ConfigError: When there is no such file, or it holds something else.
    """

    def __init__(self, path: str | None = None, net: str = "vgg", weight: float = 1.0) -> None:
        super().__init__(weight)
        if net not in FEATURES:
            raise ConfigError(f"objective.terms: net={net} is neither 'vgg' nor 'alex'")
        if not path:
            raise ConfigError(f"objective.terms: LPIPS needs path=, the file {FEATURES[net]} of torchvision")
        where = Path(path).expanduser()
        where = where / FEATURES[net] if where.is_dir() else where
        if not where.is_file():
            raise ConfigError(
                f"objective.terms: LPIPS: {where} does not exist; put {FEATURES[net]} of torchvision there"
            )
        from torchmetrics.functional.image.lpips import _LPIPS

        # With its dropout, which evaluation switches off: without, its own weights have other names and stay random.
        kind: Any = net
        network = _LPIPS(pretrained=True, net=kind, pnet_rand=True, use_dropout=True)
        try:
            weights = torch.load(where, map_location="cpu", weights_only=True)
            own = network.net.state_dict()
            network.net.load_state_dict({name: weights[f"features.{name.partition('.')[2]}"] for name in own})
        except Exception as error:  # a file of anything else fails in as many ways
            text = " ".join(str(error).split())[:200]
            raise ConfigError(f"objective.terms: LPIPS: {where} does not hold the weights of {net} ({text})") from error
        # In a tuple, so that it is no submodule: it is frozen, and belongs in no checkpoint.
        self._frozen = (network.requires_grad_(False).eval(),)

    def forward(self, drawn: Tensor, x: Tensor) -> Tensor:
        """Return the distance of every row (B,) of pictures (B, 1 or 3, H, W), divided by `scale`, of [-1, 1]."""
        network = self._frozen[0].to(x.device)
        a, b = (y.float().expand(-1, 3, -1, -1) * self.scale for y in (drawn, x))
        found: Tensor = network(a.clamp(-1, 1), b.clamp(-1, 1)).flatten()
        return found
