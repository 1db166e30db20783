"""Spaces of a molecule: points without a place, pairs without an order, and what of them is free to change.

A state may hold parts that are given (a scaffold, the elements of a conformer search). They are no part of what is
diffused: the masks here leave them out of noise, loss and degrees of freedom, and frozen fields hold their values, so
whatever the sampler does, they come out as they went in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from suffuse.errors import ConfigError
from suffuse.space import Padded, Symmetric
from suffuse.state import Space, State
from torch import Tensor

__all__ = ["FreePairs", "FreePoints"]


def _field(what: str | Tensor, state: State) -> Tensor:
    if not isinstance(what, str):
        return what
    found = state[what] if not isinstance(state, Tensor) and what in state else None
    if not isinstance(found, Tensor):
        raise ConfigError(f"space: the state has no field {what!r} that holds a mask")
    return found


@dataclass(frozen=True, eq=False)
class FreePoints(Padded):
    """Points (B, N, 3) of which a mask says which are free; where all of a molecule are, their mean is zero.

    A molecule as a whole has no place: "Equivariant Diffusion for Molecule Generation in 3D", Hoogeboom et al. 2022,
    section 3.1. With points given it has one, and the free ones are anywhere.

    Arguments:
        mask: Boolean (B, N) of the free points, or the name of the field that holds it.
        exists: Boolean (B, N) of all points, or its name.
    """

    mask: str | Tensor = "free_pos"
    exists: str | Tensor = "exists"

    def bind(self, state: State) -> Space:
        """Return the space with the masks of a batch."""
        return replace(self, mask=_field(self.mask, state), exists=_field(self.exists, state))

    def _floating(self) -> Tensor:
        """Return which molecules have no given point, boolean (B,)."""
        assert isinstance(self.mask, Tensor) and isinstance(self.exists, Tensor)
        return (self.mask == self.exists).all(1)

    def project(self, x: Tensor) -> Tensor:
        """Return zeros where nothing is free, and what is free without its mean where the molecule floats."""
        x = super().project(x)
        assert isinstance(self.mask, Tensor)
        over = self.mask[..., None].to(x.dtype)
        mean = x.sum(1, keepdim=True) / over.sum(1, keepdim=True).clamp(min=1)
        return x - mean * over * self._floating()[:, None, None].to(x.dtype)

    def dof(self, like: Tensor) -> Tensor:
        """Return 3 per free point, less 3 where the molecule floats."""
        floats = self._floating().to(torch.get_default_dtype())
        return (super().dof(like) - like.shape[-1] * floats).clamp(min=0)


@dataclass(frozen=True, eq=False)
class FreePairs(Symmetric):
    """Pairs (B, N, N) of which a mask says which are free; the two orders of a pair are one.

    Arguments:
        pairs: Boolean (B, N, N), symmetric, false on the diagonal, or the name of the field that holds it.
    """

    pairs: str | Tensor = "free_bond"

    def bind(self, state: State) -> Space:
        """Return the space with the mask of a batch."""
        return replace(self, pairs=_field(self.pairs, state))

    def _pairs(self, like: Tensor) -> Tensor:
        if isinstance(self.pairs, str):
            raise ConfigError(f"space: FreePairs is not bound to a batch: the field {self.pairs!r} is missing")
        return self.pairs
