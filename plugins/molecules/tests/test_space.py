"""Spaces, codec, sizes and coupling of molecules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian, bound
from suffuse.schedule import RectifiedFlow
from suffuse_molecules.codec import FIELDS, Molecules, empty_batch
from suffuse_molecules.coupling import EquivariantTransport, kabsch
from suffuse_molecules.given import choose_given
from suffuse_molecules.sizes import draw_sizes, size_facts
from suffuse_molecules.space import FreePairs, FreePoints

ABOUT = {
    "elements": [6, 7, 8, 9], "scale": 1.1, "classes": {"atom": 4, "charge": 3, "bond": 4}, "hydrogens": "implicit",
    "sizes": {"values": [3, 5, 7], "counts": [1, 2, 3], "moments": {}}, "conditions": [],
}  # fmt: skip


def batch(sizes=(5, 3, 7), width=7, seed=0, fixed=0):
    random = torch.Generator().manual_seed(seed)
    x = empty_batch(len(sizes), width)
    for row, size in enumerate(sizes):
        x["pos"][row, :size] = 2 * torch.randn(size, 3, generator=random) + 5
        x["z"][row, :size] = torch.tensor(ABOUT["elements"])[torch.randint(4, (size,), generator=random)]
        x["charge"][row, :size] = torch.randint(-1, 2, (size,), generator=random)
        bond = torch.randint(0, 4, (size, size), generator=random).triu(1)
        x["bond"][row, :size, :size] = bond + bond.T
        part = torch.arange(width) < min(fixed, size)
        x["fixed_pos"][row] = x["fixed_atom"][row] = part
        x["fixed_bond"][row] = part[:, None] & part & ~torch.eye(width, dtype=torch.bool)
    return x


@pytest.mark.parametrize("fixed", [0, 2, 9])
def test_codec_returns_what_it_was_given(fixed):
    x, codec = batch(fixed=fixed), Molecules(ABOUT)
    back = codec.decode(codec.encode(x))
    assert set(back) == set(FIELDS)
    assert (back["pos"] - x["pos"]).abs().max() < codec.tolerance
    assert all(torch.equal(back[name].long(), x[name].long()) for name in FIELDS if name != "pos")


def test_state_is_centred_and_scaled():
    state = Molecules(ABOUT).encode(batch())
    assert state["pos"].sum(1).abs().max() < 1e-5
    spread = (batch()["pos"][2] - batch()["pos"][2].mean(0)) / 1.1
    assert torch.allclose(state["pos"][2], spread, atol=1e-5)


def test_a_fixed_part_is_the_origin_and_is_no_part_of_what_is_diffused():
    state = Molecules(ABOUT).encode(batch(fixed=2))
    assert state["given_pos"][:, :2].mean(1).abs().max() < 1e-5
    assert state["pos"][:, :2].abs().max() == 0 and state["pos"][0, 2:5].abs().min() > 0
    assert state["bond"][:, 0, 1].abs().max() == 0 and (state["given_bond"][:, 0, 1] == batch()["bond"][:, 0, 1]).all()


def test_points_float_only_where_nothing_is_given():
    x = Molecules(ABOUT).encode({k: torch.cat([batch()[k], batch(fixed=2)[k]]) for k in FIELDS})
    space = FreePoints().bind(x)
    process = Gaussian(RectifiedFlow(), space)
    z = process.draw(x["pos"], KeyedNoise(torch.arange(6)), 0)
    assert z[:3].sum(1).abs().max() < 1e-5
    assert z[3:].sum(1).abs().max() > 0.1 and z[3:, :2].abs().max() == 0
    assert space.dof(x["pos"]).tolist() == [12, 6, 18, 9, 3, 15]
    assert torch.allclose(space.project(z), z, atol=1e-6)


def test_noise_has_the_law_of_its_subspace():
    """The covariance of projected noise is 1 - 1/n on and -1/n off the diagonal."""
    x = Molecules(ABOUT).encode({k: v.expand(4000, *v.shape[1:]) for k, v in batch(sizes=(4,)).items()})
    z = Gaussian(RectifiedFlow(), FreePoints().bind(x)).draw(x["pos"], KeyedNoise(torch.arange(4000)), 0)[:, :4, 0]
    covariance = z.T @ z / 4000
    assert torch.allclose(covariance, torch.eye(4) - 0.25, atol=0.06)


def test_pairs_are_drawn_once_and_given_ones_not_at_all():
    x = Molecules(ABOUT).encode(batch(fixed=2))
    space = FreePairs().bind(x)
    drawn = space.white(torch.rand(3, 7, 7))
    assert torch.equal(drawn, drawn.transpose(1, 2))
    assert (drawn[~x["free_bond"]] == 0).all() and (drawn[x["free_bond"]] > 0).all()
    r = torch.rand(3, 7, 7)
    r = r + r.transpose(1, 2)
    assert space.mean(r)[1] == pytest.approx(float((r[1, 0, 2] + r[1, 1, 2]) / 2), rel=1e-6)


def test_spaces_name_the_field_that_is_missing():
    with pytest.raises(ConfigError, match="free_pos"):
        FreePoints().bind({"pos": torch.zeros(1, 2, 3)})


# Coupling.


def test_kabsch_finds_the_rotation():
    turn = torch.from_numpy(Rotation.random(5, random_state=0).as_matrix()).float()
    a = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(kabsch(a, a @ turn), a @ turn, atol=1e-5)


def test_kabsch_agrees_with_scipy_and_never_mirrors():
    random = torch.Generator().manual_seed(1)
    a, b = torch.randn(20, 4, 3, generator=random), torch.randn(20, 4, 3, generator=random)
    found = kabsch(a, b)
    for one, other, turned in zip(a.numpy(), b.numpy(), found.numpy(), strict=True):
        best = Rotation.align_vectors(other, one)[0].apply(one)
        assert np.abs(best - turned).max() < 1e-4


def test_transport_keeps_the_noise_of_every_molecule_and_shortens_its_path():
    x = Molecules(ABOUT).encode(batch(fixed=0))
    process = bound({"pos": Gaussian(RectifiedFlow(), FreePoints())}, x)
    eps = {"pos": process["pos"].draw(x["pos"], KeyedNoise(torch.arange(3)), 0), "atom": torch.ones(3)}
    moved = EquivariantTransport(rotate=False)(x, eps, process)
    assert moved["atom"] is eps["atom"]
    for row, size in enumerate((5, 3, 7)):
        assert torch.equal(moved["pos"][row].sort(0).values, eps["pos"][row].sort(0).values)
        assert (moved["pos"][row, size:] == 0).all()
    turned = EquivariantTransport()(x, eps, process)["pos"]
    lengths = [((x["pos"] - e) ** 2).sum((1, 2)) for e in (eps["pos"], moved["pos"], turned)]
    assert (lengths[1] <= lengths[0] + 1e-5).all() and (lengths[2] <= lengths[1] + 1e-4).all()
    assert lengths[2].sum() < 0.8 * lengths[0].sum()
    assert turned.sum(1).abs().max() < 1e-5


def test_transport_leaves_molecules_with_given_points_alone():
    x = Molecules(ABOUT).encode(batch(fixed=2))
    eps = {"pos": torch.randn(3, 7, 3)}
    assert torch.equal(EquivariantTransport()(x, eps, None)["pos"], eps["pos"])


def test_transport_is_for_molecules():
    with pytest.raises(ConfigError, match="molecules"):
        EquivariantTransport()(torch.zeros(2, 3), torch.zeros(2, 3), None)


# Sizes.


def sized(**raw):
    facts = size_facts(
        np.array([3] * 10 + [5] * 30 + [7] * 60), {"mw": np.array([40.0] * 10 + [70.0] * 30 + [100.0] * 60)}
    )
    return draw_sizes({"sizes": facts}, torch.arange(4000), {k: v.expand(4000, *v.shape[1:]) for k, v in raw.items()})


def test_sizes_follow_the_histogram():
    found = sized()
    assert [(found == n).double().mean().item() for n in (3, 5, 7)] == pytest.approx([0.1, 0.3, 0.6], abs=0.025)


def test_sizes_follow_what_is_asked_for():
    assert (sized(mw=torch.tensor([40.0])) == 3).double().mean() > 0.95
    assert (sized(mw=torch.tensor([100.0])) == 7).double().mean() > 0.95
    assert torch.equal(sized(mw=torch.tensor([float("nan")])), sized())


def test_sizes_keep_to_their_range():
    assert set(sized(size_min=torch.tensor([4]), size_max=torch.tensor([6])).tolist()) == {5}
    with pytest.raises(ConfigError, match="no size from 8 to 9"):
        sized(size_min=torch.tensor([8]), size_max=torch.tensor([9]))


def test_a_size_depends_on_its_seed_alone():
    facts = {"sizes": {"values": [3, 5, 7], "counts": [1, 2, 3], "moments": {}}}
    whole = draw_sizes(facts, torch.arange(50), {})
    assert torch.equal(whole[17:18], draw_sizes(facts, torch.tensor([17]), {}))


# What is given.


def test_given_shares_and_parts():
    x = {k: v.numpy() for k, v in batch(sizes=(5,) * 600, width=6).items()}
    for row in range(600):  # a chain, so that a fragment must be an interval
        bond = np.zeros((6, 6), int)
        bond[range(4), range(1, 5)] = bond[range(1, 5), range(4)] = 1
        x["bond"][row] = bond
    found = choose_given(x, {"fragment": 0.5, "conformer": 0.2, "relabel": 0.1}, range(600))
    pos, atom = found["pos"].sum(1), found["atom"].sum(1)
    fragment, conformer, relabel = (pos > 0) & (pos < 5), (pos == 0) & (atom == 5), (pos == 5) & (atom == 0)
    shares = [mode.mean() for mode in (fragment, conformer, relabel)]
    assert shares == pytest.approx([0.5, 0.2, 0.1], abs=0.06)
    assert (np.abs(np.diff(found["pos"][fragment].astype(int), axis=1)).sum(1) <= 2).all()
    assert found["bond"][conformer].sum((1, 2)).tolist() == [20] * int(conformer.sum())
    again = choose_given(x, {"fragment": 0.5, "conformer": 0.2, "relabel": 0.1}, range(600))
    assert all((again[name] == found[name]).all() for name in found)


@pytest.mark.parametrize(
    ("shares", "match"),
    [
        ({"fragmnt": 0.1}, "did you mean 'fragment'"),
        ({"fragment": 1.5}, "1.5"),
        ({"fragment": 0.7, "relabel": 0.7}, "at most 1"),
    ],
)
def test_bad_shares(shares, match):
    with pytest.raises(ConfigError, match=match):
        choose_given({}, shares, [])
