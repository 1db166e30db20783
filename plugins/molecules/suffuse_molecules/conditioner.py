"""Conditioner: what a chemist asks for. Properties suggest; sizes, elements, charges and given parts are obeyed.

condition.logp=1.0 condition.qed=0.6    properties the model was trained with, any of them
condition.size=[5,7]                    atoms, as the model counts them; or one number
condition.elements=[C,N,O]              no others
condition.net_charge=0                  sum of the formal charges
condition.scaffold=core.sdf             complete this; condition.keep=SMARTS keeps only what matches
condition.conformer=mols.sdf            elements and bonds given, coordinates wanted; also a SMILES
condition.relabel=points.sdf            coordinates given, elements and bonds wanted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from suffuse.conditioner import Conditioner, Raw
from suffuse.denoiser import Condition, Denoiser, Prediction
from suffuse.errors import ConfigError, suggest
from suffuse.state import State
from torch import Tensor

from suffuse_molecules.codec import CHARGES
from suffuse_molecules.scaffold import given_parts

__all__ = ["Constrained", "MoleculeConditioner", "charge_marginals"]

NEVER = -1e4
"""Logit of what is not allowed: no probability in float32, and no NaN in a difference."""

PARTS = ("scaffold", "conformer", "relabel")
DEMANDS = ("size", "elements", "net_charge", "keep", *PARTS)


class MoleculeConditioner(Conditioner):
    """Properties as vectors, each of which may be absent, and demands.

    Arguments:
        scalars: Names of the properties.
        width: Size of the embedded vector.
        dropout: Share of training rows without any property.
        each: Share of training rows in which a property is left out for itself.
        moments: Mean and standard deviation of the properties.
        about: The data's facts, see `suffuse_molecules.data`.
    """

    def __init__(
        self, scalars: Sequence[str] = (), width: int = 64, dropout: float = 0.1, each: float = 0.15,
        moments: Mapping[str, tuple[float, float]] | None = None, about: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__((), scalars, width, dropout, each, moments)
        self.about = dict(about or {})

    def parse(self, given: Mapping[str, Any], num: int) -> dict[str, Tensor]:
        """Return raw conditions of `num` rows: properties, and the tensors of the demands.

        Raises:
            ConfigError: For an unknown name or element, a size or charge that is no number, or a part that cannot be
                read or does not fit the model.
        """
        known = [*self.scalars, *DEMANDS]
        for name in given:
            if name not in known:
                raise ConfigError(f"condition.{name}: this model knows no such condition{suggest(name, known)}")
        raw = super().parse({name: value for name, value in given.items() if name not in DEMANDS}, num)
        raw |= self._sizes(given.get("size"), num)
        raw |= self._elements(given.get("elements"), num)
        if given.get("net_charge") is not None:
            raw["net_charge"] = torch.full((num,), _whole("net_charge", given["net_charge"]))
        chosen = [name for name in PARTS if given.get(name) is not None]
        if len(chosen) > 1:
            raise ConfigError(f"condition.{chosen[0]} and condition.{chosen[1]}: give one of them")
        if given.get("keep") is not None and chosen != ["scaffold"]:
            raise ConfigError("condition.keep says what of condition.scaffold stays; give both")
        if chosen:
            raw |= given_parts(str(given[chosen[0]]), chosen[0], given.get("keep"), num, self.about)
        return raw

    def constrain(self, denoiser: Denoiser, raw: Raw) -> Denoiser:
        """Return a denoiser that never chooses other elements, and keeps the net charge."""
        if "allow_atom" not in raw and "net_charge" not in raw:
            return denoiser
        return Constrained(denoiser, raw.get("allow_atom"), raw.get("net_charge"))

    def _sizes(self, wanted: Any, num: int) -> dict[str, Tensor]:
        if wanted is None:
            return {}
        ends = list(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted, wanted]
        if len(ends) != 2:
            raise ConfigError(f"condition.size={wanted} must be one number or two, as [5,7]")
        low, high = (_whole("size", value) for value in ends)
        if not 1 <= low <= high:
            raise ConfigError(f"condition.size={wanted}: need 1 <= smallest <= largest")
        return {"size_min": torch.full((num,), low), "size_max": torch.full((num,), high)}

    def _elements(self, wanted: Any, num: int) -> dict[str, Tensor]:
        if wanted is None:
            return {}
        from rdkit import Chem

        table = Chem.GetPeriodicTable()
        known = {table.GetElementSymbol(z): i for i, z in enumerate(self.about["elements"])}
        allowed = torch.zeros(len(known), dtype=torch.bool)
        for symbol in [wanted] if isinstance(wanted, str) else list(wanted):
            if symbol not in known:
                hint = suggest(str(symbol), known, listing="the model's")
                raise ConfigError(f"condition.elements: the model knows no {symbol}{hint}")
            allowed[known[symbol]] = True
        if not allowed.any():
            raise ConfigError("condition.elements=[] allows none; name at least one")
        if "H" in known:  # a list of heavy atoms does not mean molecules without hydrogens
            allowed[known["H"]] = True
        return {"allow_atom": allowed.expand(num, -1).clone()}


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"condition.{name}={value} is not a whole number")
    return value


class Constrained(Denoiser):
    """A denoiser whose predicted tokens obey.

    Arguments:
        denoiser: The denoiser, guided or not.
        allow_atom: Boolean (B, K), elements that may be chosen, or None.
        net_charge: Whole numbers (B,), the sum of the formal charges, or None.
    """

    def __init__(self, denoiser: Denoiser, allow_atom: Tensor | None, net_charge: Tensor | None) -> None:
        super().__init__()
        self.denoiser, self.process = denoiser, denoiser.process
        self.allow_atom, self.net_charge = allow_atom, net_charge

    def forward(self, x: State, t: float | Tensor, cond: Condition = None) -> Prediction:
        """Return the prediction with the logits of elements and charges changed."""
        found = dict(self.denoiser(x, t, cond).x0)
        assert not isinstance(x, Tensor)  # the state of molecules
        if self.allow_atom is not None:
            allowed = self.allow_atom.to(found["atom"].device)[:, None]
            found["atom"] = torch.where(allowed, found["atom"], NEVER)
        if self.net_charge is not None:
            free, given = x["free_atom"], x["given_charge"]
            assert isinstance(free, Tensor) and isinstance(given, Tensor)
            there = x["exists"]
            assert isinstance(there, Tensor)
            fixed = ((given - 1) * (there & ~free)).sum(1)
            found["charge"] = charge_marginals(found["charge"], free, self.net_charge.to(given.device) - fixed)
        return Prediction(found)


def charge_marginals(logits: Tensor, free: Tensor, total: Tensor) -> Tensor:
    r"""Return the logits of p(c_i | sum_j c_j = Q), exactly, for independent charges.

    p(c_i | Q) is p(c_i) times the probability that the others make up Q - c_i; the others' sum is the convolution of
    those before i and those after.

    Arguments:
        logits: Of the charges `CHARGES`, shape (B, N, 3).
        free: Atoms that take part, boolean (B, N).
        total: Q, shape (B,). Where it cannot be reached the logits stay.
    """
    rows, count, _ = logits.shape
    p = torch.softmax(logits.double(), -1)
    still = torch.tensor([float(c == 0) for c in CHARGES], dtype=p.dtype, device=p.device)
    p = torch.where(free[..., None], p, still)
    width = 2 * count + 1
    before, after = [p.new_zeros(rows, width)], [p.new_zeros(rows, width)]
    before[0][:, count] = after[0][:, count] = 1
    for i in range(count):
        before.append(_added(before[-1], p[:, i]))
        after.append(_added(after[-1], p[:, count - 1 - i]))
    target = total.long()[:, None] - torch.tensor(CHARGES, device=p.device)
    out = []
    for i in range(count):
        left, right = before[i], after[count - 1 - i]
        # others[s] = sum_u left[u] right[s - u]
        index = target[:, :, None] - torch.arange(-count, count + 1, device=p.device) + count
        inside = (index >= 0) & (index < width)
        picked = torch.gather(right[:, None].expand(-1, 3, -1), 2, index.clamp(0, width - 1)) * inside
        out.append((left[:, None] * picked).sum(-1))
    others = torch.stack(out, 1)
    joint = p * others
    reachable = joint.sum(-1, keepdim=True) > 0
    found = joint.clamp(min=1e-300).log().clamp(min=NEVER).to(logits.dtype)
    return torch.where(reachable & free[..., None], found, logits)


def _added(distribution: Tensor, p: Tensor) -> Tensor:
    """Return the distribution of a sum with one more charge of probabilities `p`, (B, 3)."""
    pad = torch.nn.functional.pad(distribution, (1, 1))
    return p[:, :1] * pad[:, 2:] + p[:, 1:2] * pad[:, 1:-1] + p[:, 2:] * pad[:, :-2]
