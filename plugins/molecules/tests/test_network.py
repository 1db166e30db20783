"""The network: symmetries in float64, padding, and what is given."""

from __future__ import annotations

import pytest
import torch
from suffuse_molecules.codec import Molecules, empty_batch
from suffuse_molecules.network import PairTransformer

f64 = torch.float64
ABOUT = {
    "elements": [6, 7, 8, 9], "scale": 1.1, "classes": {"atom": 4, "charge": 3, "bond": 4}, "hydrogens": "implicit",
    "sizes": {"values": [3, 5, 7], "counts": [1, 2, 3], "moments": {}}, "conditions": [],
}  # fmt: skip


def batch(sizes=(5, 3, 7), width=7, seed=0, given=False):
    """Random molecules, with a fixed part where asked for."""
    random = torch.Generator().manual_seed(seed)
    x = empty_batch(len(sizes), width)
    for row, size in enumerate(sizes):
        x["pos"][row, :size] = torch.randn(size, 3, generator=random)
        x["z"][row, :size] = torch.tensor(ABOUT["elements"])[torch.randint(4, (size,), generator=random)]
        x["charge"][row, :size] = torch.randint(-1, 2, (size,), generator=random)
        bond = torch.randint(0, 4, (size, size), generator=random).triu(1)
        x["bond"][row, :size, :size] = bond + bond.T
        if given:
            x["fixed_pos"][row, : size // 2] = True
            x["fixed_atom"][row, : size // 2] = True
            part = torch.arange(width) < size // 2
            x["fixed_bond"][row] = part[:, None] & part & ~torch.eye(width, dtype=torch.bool)
    return x


def state(**how):
    return {
        name: leaf.to(f64) if leaf.is_floating_point() else leaf
        for name, leaf in Molecules(ABOUT).encode(batch(**how)).items()
    }


@pytest.fixture
def network():
    torch.manual_seed(1)
    made = PairTransformer(about=ABOUT, cond_dim=5, dim=32, pair=16, layers=3).double()
    for parameter in made.parameters():  # the zeros it starts from would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3 / max(parameter.shape[-1], 4) ** 0.5)
    return made


def asked(network, x, previous=True, rows=None):
    count = len(x["exists"])
    random = torch.Generator().manual_seed(3)
    noise, vector = torch.randn(count, generator=random, dtype=f64), torch.randn(count, 5, generator=random, dtype=f64)
    found = network(x, noise, {"vector": vector}, None)
    return network(x, noise, {"vector": vector}, found) if previous else found


def rotation(seed=0):
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=f64, generator=torch.Generator().manual_seed(seed)))
    q = q * torch.sign(torch.diagonal(r))
    return q * torch.sign(torch.det(q))


@pytest.mark.parametrize("given", [False, True])
def test_rotation_turns_coordinates_and_leaves_logits(network, given):
    x, turn = state(given=given), rotation()
    assert torch.det(turn) == pytest.approx(1.0)
    turned = {**x, "pos": x["pos"] @ turn, "given_pos": x["given_pos"] @ turn}
    one, other = asked(network, x), asked(network, turned)
    assert (one["pos"] @ turn - other["pos"]).abs().max() < 1e-10
    assert all((one[name] - other[name]).abs().max() < 1e-10 for name in ("atom", "charge", "bond"))
    assert (one["pos"] - x["pos"]).abs().max() > 1e-3  # something moved at all


def test_translation_moves_coordinates_and_leaves_logits(network):
    x, by = state(), torch.tensor([1.0, -2.0, 0.5], dtype=f64)
    moved = {**x, "pos": x["pos"] + by * x["exists"][..., None]}
    one, other = asked(network, x, previous=False), asked(network, moved, previous=False)
    there = x["exists"][..., None]
    assert ((one["pos"] + by - other["pos"]) * there).abs().max() < 1e-10
    assert all(((one[name] - other[name]) * there).abs().max() < 1e-10 for name in ("atom", "charge"))
    assert ((one["bond"] - other["bond"]) * x["free_bond"][..., None]).abs().max() < 1e-10


def test_the_order_of_atoms_does_not_matter(network):
    x = state(sizes=(7, 7), given=True)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(5))
    shuffled = {
        name: leaf if leaf.ndim == 2 and name == "origin"
        else leaf[:, order][:, :, order] if name in ("bond", "free_bond", "given_bond") else leaf[:, order]
        for name, leaf in x.items()
    }  # fmt: skip
    one, other = asked(network, x), asked(network, shuffled)
    assert (one["pos"][:, order] - other["pos"]).abs().max() < 1e-10
    assert (one["atom"][:, order] - other["atom"]).abs().max() < 1e-10
    assert (one["bond"][:, order][:, :, order] - other["bond"]).abs().max() < 1e-10


def test_bonds_are_symmetric(network):
    bond = asked(network, state())["bond"]
    assert (bond - bond.transpose(1, 2)).abs().max() < 1e-12


def test_padding_and_neighbours_change_nothing(network):
    """The same molecule in a wider bucket, beside others, gives the same output."""
    whole, alone = state(sizes=(5, 3, 7), width=9), state(sizes=(5,), width=5)
    found = asked(network, whole)
    random = torch.Generator().manual_seed(3)
    noise, vector = torch.randn(3, generator=random, dtype=f64)[:1], torch.randn(3, 5, generator=random, dtype=f64)[:1]
    first = network(alone, noise, {"vector": vector}, None)
    single = network(alone, noise, {"vector": vector}, first)
    assert (found["pos"][0, :5] - single["pos"][0]).abs().max() < 1e-12
    assert (found["atom"][0, :5] - single["atom"][0]).abs().max() < 1e-12
    assert (found["bond"][0, :5, :5] - single["bond"][0]).abs().max() < 1e-12


def test_given_coordinates_stay(network):
    x = state(given=True)
    found = asked(network, x)["pos"]
    given = ~x["free_pos"] & x["exists"]
    assert given.any() and torch.equal(found[given], x["given_pos"][given])


def test_the_condition_and_the_previous_estimate_are_seen(network):
    x = state()
    noise, vector = torch.zeros(3, dtype=f64), torch.zeros(3, 5, dtype=f64)
    plain = network(x, noise, {"vector": vector}, None)
    other = network(x, noise, {"vector": vector + 1}, None)
    again = network(x, noise, {"vector": vector}, plain)
    assert (plain["atom"] - other["atom"]).abs().max() > 1e-6
    assert (plain["pos"] - again["pos"]).abs().max() > 1e-6


def test_no_estimate_and_zeros_are_the_same(network):
    """Before the first call the core hands zeros of the state's own kinds."""
    x = state()
    zeros = {name: torch.zeros_like(leaf) for name, leaf in x.items()}
    noise, cond = torch.zeros(3, dtype=f64), {"vector": torch.zeros(3, 5, dtype=f64)}
    one, other = network(x, noise, cond, None), network(x, noise, cond, zeros)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_coordinates_stay_in_float32_under_autocast():
    made = PairTransformer(about=ABOUT, dim=32, pair=16, layers=2)
    x = Molecules(ABOUT).encode(batch())
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x, torch.zeros(3), {}, None)
    assert found["pos"].dtype == torch.float32
    exact = made(x, torch.zeros(3), {}, None)
    assert (found["pos"] - exact["pos"]).abs().max() < 1e-3
