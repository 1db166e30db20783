"""Codec: batches of molecules in Angstrom and atomic numbers to the state that is diffused, and back.

The state has four fields that are diffused,

    pos (B, N, 3)   atom (B, N)   charge (B, N)   bond (B, N, N),

of which the last three are tokens, and frozen ones: which atoms exist, which entries are free, and the values of those
that are not. Coordinates are in units of the data's standard deviation; the origin is the centre of the atoms, or of
the given ones where there are any, and kept, so that a scaffold comes back where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from suffuse.errors import ConfigError
from suffuse.state import State
from torch import Tensor

from suffuse_molecules.sizes import draw_sizes

__all__ = ["CHARGES", "FIELDS", "Molecules"]

CHARGES = (-1, 0, 1)
"""Formal charge of each token."""

FIELDS = ("pos", "z", "charge", "bond", "fixed_pos", "fixed_atom", "fixed_bond")
"""Keys of a batch of molecules."""


class Molecules:
    """Tokens for elements and charges, units of length for coordinates.

    A batch is a mapping of tensors: ``pos`` in Angstrom (B, N, 3), ``z`` atomic numbers (B, N), 0 for no atom,
    ``charge`` (B, N), ``bond`` orders 0 to 3 (B, N, N), and booleans ``fixed_pos``, ``fixed_atom`` (B, N) and
    ``fixed_bond`` (B, N, N) of what is given rather than generated.

    Arguments:
        about: The data's facts: ``elements``, the atomic number of each token; ``scale`` in Angstrom; ``sizes``.

    Raises:
        ConfigError: Without them: the data is of another modality.
    """

    tolerance = 1e-4

    def __init__(self, about: Mapping[str, Any]) -> None:
        if "elements" not in about:
            raise ConfigError("the data says nothing of elements; the molecule codec needs data=molecules/…")
        self.about = about
        self.elements = torch.tensor(about["elements"])
        self.scale = float(about["scale"])
        self._token = torch.zeros(120, dtype=torch.long)
        self._token[self.elements] = torch.arange(len(self.elements))

    def encode(self, x: Mapping[str, Tensor]) -> State:
        """Return the state of a batch."""
        z, pos = x["z"].long().clamp(0, len(self._token) - 1), x["pos"].float()
        exists = z > 0
        fixed = {name: x[f"fixed_{name}"].bool() for name in ("pos", "atom", "bond")}
        free_pos, free_atom = exists & ~fixed["pos"], exists & ~fixed["atom"]
        eye = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
        pairs = exists[:, :, None] & exists[:, None] & ~eye
        free_bond = pairs & ~fixed["bond"]
        given = exists & fixed["pos"]
        center = torch.where(given.any(1, keepdim=True), given, exists)[..., None].to(pos)
        origin = (pos * center).sum(1) / center.sum(1).clamp(min=1)
        local = (pos - origin[:, None]) / self.scale * exists[..., None]
        atom = self._token.to(z.device)[z]
        charge, bond = x["charge"].long() + 1, x["bond"].long()
        return {
            "pos": local * free_pos[..., None], "atom": atom * free_atom, "charge": charge * free_atom,
            "bond": bond * free_bond, "exists": exists, "free_pos": free_pos, "free_atom": free_atom,
            "free_bond": free_bond, "given_pos": local * ~free_pos[..., None], "given_atom": atom * ~free_atom * exists,
            "given_charge": charge * ~free_atom * exists, "given_bond": bond * (pairs & ~free_bond), "origin": origin,
        }  # fmt: skip

    def decode(self, state: State) -> dict[str, Tensor]:
        """Return the batch of a state."""
        assert not isinstance(state, Tensor)  # what encode and like make
        s: dict[str, Tensor] = {name: leaf for name, leaf in state.items() if isinstance(leaf, Tensor)}
        exists, pairs = s["exists"], s["exists"][:, :, None] & s["exists"][:, None]
        pos = torch.where(s["free_pos"][..., None], s["pos"], s["given_pos"]) * self.scale + s["origin"][:, None]
        atom = torch.where(s["free_atom"], s["atom"], s["given_atom"])
        charge = torch.where(s["free_atom"], s["charge"], s["given_charge"])
        eye = torch.eye(exists.shape[1], dtype=torch.bool, device=exists.device)
        return {
            "pos": pos * exists[..., None],
            "z": self.elements.to(atom.device)[atom] * exists,
            "charge": (charge - 1) * exists,
            "bond": torch.where(s["free_bond"], s["bond"], s["given_bond"]),
            "fixed_pos": exists & ~s["free_pos"],
            "fixed_atom": exists & ~s["free_atom"],
            "fixed_bond": pairs & ~eye & ~s["free_bond"],
        }

    def like(self, seeds: Tensor, raw: Mapping[str, Tensor], device: torch.device | str) -> State:
        """Return the state that a draw starts from: its sizes, and the given parts of `raw`.

        Arguments:
            seeds: Shape (B,); a molecule's size depends on its own alone, and on its conditions.
            raw: Conditions; ``given_*``, see `suffuse_molecules.conditioner`.
            device: Where the state is wanted.

        Raises:
            ConfigError: For a scaffold that is larger than the sizes the model knows.
        """
        sizes = draw_sizes(self.about, seeds, raw)
        rows, width = len(seeds), int(sizes.max())
        x = empty_batch(rows, width)
        x["z"] = (torch.arange(width) < sizes[:, None]).long() * int(self.elements[0])
        if "given_z" in raw:
            _give(x, raw)
        state = self.encode(x)
        assert not isinstance(state, Tensor)  # of named fields
        return {name: leaf.to(device) for name, leaf in state.items() if isinstance(leaf, Tensor)}


def _give(x: dict[str, Tensor], raw: Mapping[str, Tensor]) -> None:
    """Put the given parts of `raw` into a batch, first atoms first."""
    size = raw["given_z"].shape[1]
    there = raw["given_z"] > 0
    for name in FIELDS:
        part, into = raw[f"given_{name}"], x[name]
        if name in ("bond", "fixed_bond"):
            into[:, :size, :size] = part[:, : into.shape[1], : into.shape[1]]
        else:
            part = part[:, : into.shape[1]]
            over = there[:, : into.shape[1]].reshape(*part.shape[:2], *[1] * (part.ndim - 2))
            into[:, :size] = torch.where(over, part, into[:, :size])
    # What is closed is not bonded to anything that is not given.
    closed = torch.zeros_like(x["fixed_pos"])
    closed[:, :size] = raw["given_closed"][:, : closed.shape[1]]
    exists = x["z"] > 0
    x["fixed_bond"] |= (closed[:, :, None] | closed[:, None]) & exists[:, :, None] & exists[:, None]


def empty_batch(rows: int, width: int) -> dict[str, Tensor]:
    """Return a batch of molecules without atoms."""
    return {
        "pos": torch.zeros(rows, width, 3),
        "z": torch.zeros(rows, width, dtype=torch.long),
        "charge": torch.zeros(rows, width, dtype=torch.long),
        "bond": torch.zeros(rows, width, width, dtype=torch.long),
        "fixed_pos": torch.zeros(rows, width, dtype=torch.bool),
        "fixed_atom": torch.zeros(rows, width, dtype=torch.bool),
        "fixed_bond": torch.zeros(rows, width, width, dtype=torch.bool),
    }
