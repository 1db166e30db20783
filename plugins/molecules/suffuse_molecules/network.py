r"""Network: a transformer on atoms and pairs that is equivariant to rotations, translations and the order of atoms.

With h_i the features of an atom, e_ij of a pair, and two sets of coordinates x^1 (noisy) and x^2 (the previous
estimate), one layer is

    m_ij = phi(h_i, h_j, e_ij, |x^c_i - x^c_j|)
    h_i += sum_j softmax_j(a(m_ij)) V h_j,   e_ij += U m_ij
    x^c_i += sum_j sum_c' w_cc'(m_ij) (x^c'_i - x^c'_j) / (1 + |x^c'_i - x^c'_j|)

followed by an MLP on the atoms, its norms modulated by noise level, size and condition. Coordinates enter through
distances and leave through differences, so the result turns with the input ("E(n) Equivariant Graph Neural Networks",
Satorras et al. 2021, eq. 3-6; pair features as in "SemlaFlow", Irwin et al. 2025, section 3). There is no index of
atoms, no scatter, and coordinates stay in float32 under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PairTransformer"]

LONGEST = 6.0
"""Largest distance that the radial features resolve, in units of the coordinates' standard deviation."""


def _full(x: Tensor) -> Tensor:
    """Return `x` in at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _Radial(nn.Module):
    """Gaussian bumps of a distance, narrow where bonds are, and its square."""

    narrow: Tensor
    shift: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        centers = LONGEST * torch.linspace(0, 1, count - 1) ** 1.5
        gaps = torch.diff(centers)
        narrow = 1 / (math.sqrt(2) * torch.cat([gaps, gaps[-1:]]))
        self.register_buffer("narrow", narrow, persistent=False)
        self.register_buffer("shift", -centers * narrow, persistent=False)

    def forward(self, r: Tensor) -> Tensor:
        """Return features (..., count) of distances (...)."""
        r = r[..., None]
        bumps = torch.exp(-torch.addcmul(self.shift, r, self.narrow).square())
        return torch.cat([bumps, r.clamp(max=LONGEST).square() / LONGEST**2], -1)


class _Layer(nn.Module):
    def __init__(self, dim: int, pair: int, heads: int, sets: int, radial: int, cond: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.sets = heads, sets
        self.norm, self.norm_out, self.norm_pair = (
            nn.LayerNorm(dim, elementwise_affine=False), nn.LayerNorm(dim, elementwise_affine=False),
            nn.LayerNorm(pair),
        )  # fmt: skip
        self.left, self.right = nn.Linear(dim, pair), nn.Linear(dim, pair, bias=False)
        self.edge, self.distance = nn.Linear(pair, pair, bias=False), nn.Linear(sets * radial, pair, bias=False)
        self.message = nn.Linear(pair, pair)
        # One product for what is made of a message: attention, the pair's update, the weights of the coordinates.
        self.out = nn.Linear(pair, heads + pair + sets * sets)
        self.value, self.merge = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))
        self.modulate = nn.Linear(cond, 6 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():
            self.out.weight[heads + pair :] *= 0.01
            self.out.bias[heads + pair :] = 0

    def forward(
        self, h: Tensor, e: Tensor, x: Tensor, radial: nn.Module, there: Tensor, moves: Tensor, cond: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the updated atoms (B, N, D), pairs (B, N, N, E) and coordinates (B, N, C, 3)."""
        rows, count, dim = h.shape
        shift, scale, gate, shift_out, scale_out, gate_out = self.modulate(cond)[:, None].chunk(6, -1)
        # Elementwise on purpose: autocast would round the operands of a matrix product.
        apart = x[:, :, None] - x[:, None]
        r = (apart.square().sum(-1) + 1e-8).sqrt()
        features = radial(r).flatten(-2)
        inner = self.norm(h) * (1 + scale) + shift
        m = self.left(inner)[:, :, None] + self.right(inner)[:, None] + self.edge(self.norm_pair(e))
        m = F.silu(self.message(F.silu(m + self.distance(features))))
        attention, update, w = self.out(m).split((self.heads, e.shape[-1], self.sets**2), -1)
        attention = torch.softmax(_full(attention).masked_fill(~there[:, None, :, None], -1e9), 2).to(h.dtype)
        value = self.value(inner).view(rows, count, self.heads, -1)
        found = torch.einsum("bijh,bjhc->bihc", attention, value).reshape(rows, count, dim)
        h = h + (1 + gate) * self.merge(found)
        h = h + (1 + gate_out) * self.mlp(self.norm_out(h) * (1 + scale_out) + shift_out)
        w = _full(w).view(rows, count, count, self.sets, self.sets, 1)
        unit = apart / (1 + r)[..., None] * there[:, None, :, None, None]
        return h, e + update, x + (w * unit[:, :, :, None]).sum((2, 4)) * moves


class PairTransformer(nn.Module):
    """Predicts clean coordinates, and the logits of elements, charges and bonds.

    Arguments:
        shape: Shapes of the state's fields; not used, the network takes any size.
        cond_dim: Width of the condition's vector; 0 for none.
        about: The data's facts: ``classes`` of the fields, ``sizes``.
        dim: Features of an atom.
        pair: Features of a pair.
        layers: Number of layers.
        heads: Heads of the attention.
        radial: Radial features per distance.
        mlp: Width of the hidden layer of an atom's MLP, in units of `dim`.
        self_condition: Takes its previous estimate.
    """

    def __init__(
        self, shape: Any = None, cond_dim: int = 0, about: Mapping[str, Any] | None = None, dim: int = 96,
        pair: int = 32, layers: int = 4, heads: int = 4, radial: int = 16, mlp: float = 4.0,
        self_condition: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        classes = (about or {})["classes"]
        self.classes = {name: int(classes[name]) for name in ("atom", "charge", "bond")}
        self.self_condition = self_condition
        self.sets = 2 if self_condition else 1
        twice = 2 if self_condition else 1
        tokens = self.classes["atom"] + self.classes["charge"]
        # Noisy tokens may be the mask, one more than the classes; flags say what is given.
        self.atom_in = nn.Linear(tokens + 2 + (twice - 1) * tokens + 2, dim)
        self.pair_in = nn.Linear(self.classes["bond"] + 1 + (twice - 1) * self.classes["bond"] + 1, pair)
        self.radial = _Radial(radial)
        self.level = nn.Sequential(nn.Linear(32 + 2 + cond_dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.layers = nn.ModuleList(
            _Layer(dim, pair, heads, self.sets, radial, dim, round(mlp * dim)) for _ in range(layers)
        )
        self.norm, self.norm_pair = nn.LayerNorm(dim), nn.LayerNorm(pair)
        self.atom_out = nn.Linear(dim, tokens)
        self.bond_out = nn.Sequential(nn.Linear(pair + dim, pair), nn.SiLU(), nn.Linear(pair, self.classes["bond"]))
        self.near = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Mapping[str, Tensor], noise: Tensor, cond: Mapping[str, Tensor] | None = None,
        previous: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return x0 of the coordinates (B, N, 3) and logits (B, N, K) and (B, N, N, K).

        Arguments:
            x: State; see `suffuse_molecules.codec`.
            noise: A quarter of the log-SNR, shape (B,).
            cond: Holds ``vector`` (B, cond_dim) where there is a condition.
            previous: The previous estimate: coordinates and logits, or zeros.
        """
        there, count = x["exists"], x["exists"].sum(1)
        atoms, pairs, points = self._inputs(x, previous if self.self_condition else None)
        level = self._level(noise, count, cond)
        h, e = self.atom_in(atoms) * there[..., None], self.pair_in(pairs)
        # What is given does not move, of the first set; the second is a sketch that may.
        moves = there[:, :, None, None].to(points.dtype).expand(-1, -1, self.sets, 1).clone()
        moves[:, :, 0] *= x["free_pos"][..., None]
        moves = moves / count.clamp(min=1).to(points.dtype).sqrt()[:, None, None, None]
        for layer in self.layers:
            h, e, points = layer(h, e, points, self.radial, there, moves, level)
        h, e = self.norm(h), self.norm_pair(e + e.transpose(1, 2))
        atom, charge = self.atom_out(h).split((self.classes["atom"], self.classes["charge"]), -1)
        near = self.near(h)
        bond = self.bond_out(torch.cat([e, near[:, :, None] + near[:, None]], -1))
        return {"pos": points[:, :, 0], "atom": atom, "charge": charge, "bond": bond}

    def _level(self, noise: Tensor, count: Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        """Return the features of noise level, size and condition, (B, D)."""
        frequencies = torch.exp(torch.linspace(math.log(0.25), math.log(16.0), 16, device=noise.device))
        noise = noise.to(self.norm.weight.dtype)
        angles = noise[:, None] * frequencies
        size = count.to(noise.dtype)[:, None]
        parts = [angles.sin(), angles.cos(), size / 16, (1 + size).log()]
        if cond and "vector" in cond:
            parts.append(cond["vector"])
        level: Tensor = self.level(torch.cat(parts, -1))
        return level

    def _inputs(self, x: Mapping[str, Tensor], previous: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of atoms and pairs, and the sets of coordinates (B, N, C, 3): what is given in its place."""
        k = self.classes
        atom = torch.where(x["free_atom"], x["atom"], x["given_atom"])
        charge = torch.where(x["free_atom"], x["charge"], x["given_charge"])
        bond = torch.where(x["free_bond"], x["bond"], x["given_bond"])
        pos = torch.where(x["free_pos"][..., None], x["pos"], x["given_pos"])
        atoms = [
            F.one_hot(atom, k["atom"] + 1), F.one_hot(charge, k["charge"] + 1), x["free_pos"][..., None],
            x["free_atom"][..., None],
        ]  # fmt: skip
        pairs, points = [F.one_hot(bond, k["bond"] + 1), x["free_bond"][..., None]], [pos]
        if self.self_condition:
            atoms += [self._seen(previous, name, x["exists"].shape) for name in ("atom", "charge")]
            pairs.append(self._seen(previous, "bond", bond.shape))
            points.append(torch.zeros_like(pos) if previous is None else self._sketch(previous["pos"], x))
        return (
            torch.cat([part.to(pos.dtype) for part in atoms], -1),
            torch.cat([part.to(pos.dtype) for part in pairs], -1),
            torch.stack(points, 2),
        )

    def _seen(self, previous: Mapping[str, Tensor] | None, name: str, shape: Any) -> Tensor:
        """Return the previous probabilities less an even share: zeros where there was no estimate."""
        k = self.classes[name]
        if previous is None or not previous[name].is_floating_point():
            return next(self.parameters()).new_zeros(*shape, k)
        return torch.softmax(_full(previous[name]), -1) - 1 / k

    def _sketch(self, pos: Tensor, x: Mapping[str, Tensor]) -> Tensor:
        """Return previous coordinates with the given ones in place; none of them when there was no estimate."""
        given = torch.where(x["free_pos"][..., None], pos, x["given_pos"])
        known = (pos != 0).flatten(1).any(1)[:, None, None]
        return torch.where(known, given, torch.zeros_like(given))
