"""Spaces: projections, the law of the noise, means and degrees of freedom, and that padding changes nothing."""

from __future__ import annotations

import pytest
import torch
from suffuse.denoiser import Denoiser, Prediction
from suffuse.errors import ConfigError
from suffuse.grid import Karras
from suffuse.noise import KeyedNoise
from suffuse.process import Frozen, Gaussian, bound, reference, rows
from suffuse.sampler import Ancestral, Euler, Multistep, PredictorCorrector, SingleStep, sample
from suffuse.schedule import EDM, RectifiedFlow, VPCosine
from suffuse.space import Packed, Padded, Symmetric, ZeroCenter

f64 = torch.float64
MASK = torch.tensor([[True, True, True, False], [True, True, False, False], [True, True, True, True]])


def many(space, shape, count=20000):
    process = Gaussian(EDM(), space)
    return process.draw(torch.empty(count, *shape, dtype=f64), KeyedNoise(torch.arange(count)), 0)


def test_padding_is_zero_and_counts_nowhere():
    space, x = Padded(mask=MASK), torch.randn(3, 4, 2, dtype=f64)
    z = space.project(x)
    assert (z[~MASK] == 0).all() and torch.equal(z[MASK], x[MASK])
    wanted = torch.stack([x[i][MASK[i]].mean() for i in range(3)])
    assert (space.mean(x) - wanted).abs().max() < 1e-12
    assert space.dof(x).tolist() == [6.0, 4.0, 8.0]


def test_noise_without_centre_of_mass():
    """Covariance I - 1 1^T / n on the points that exist."""
    for mask, n in ((None, 4), (MASK[:1].expand(20000, 4), 3)):
        z = many(ZeroCenter(mask=mask), (4, 2))
        assert z.sum(1).abs().max() < 1e-12
        covariance = torch.einsum("bnd,bmd->nm", z, z) / (2 * len(z))
        wanted = torch.zeros(4, 4, dtype=f64)
        wanted[:n, :n] = torch.eye(n, dtype=f64) - 1 / n
        assert (covariance - wanted).abs().max() < 0.03
    assert ZeroCenter().dof(torch.empty(2, 5, 3)).tolist() == [12.0, 12.0]
    assert ZeroCenter(mask=MASK).dof(torch.empty(3, 4, 3)).tolist() == [6.0, 3.0, 9.0]


def test_symmetric_noise_has_unit_variance():
    z = many(Symmetric(), (3, 3))
    assert torch.equal(z, z.transpose(1, 2)) and (z.diagonal(dim1=1, dim2=2) == 0).all()
    assert (z[:, 0, 1].var() - 1).abs() < 0.03 and (z[:, 0, 1] * z[:, 0, 2]).mean().abs() < 0.03
    with_diagonal = many(Symmetric(diagonal=True), (3, 3))
    assert (with_diagonal[:, 1, 1].var() - 1).abs() < 0.03
    assert Symmetric().dof(torch.empty(2, 4, 4, 2)).tolist() == [12.0, 12.0]
    assert Symmetric(diagonal=True).dof(torch.empty(1, 4, 4)).tolist() == [10.0]
    assert Symmetric(mask=MASK).dof(torch.empty(3, 4, 4)).tolist() == [3.0, 1.0, 6.0]
    r = torch.randn(3, 4, 4, dtype=f64)
    r = r + r.transpose(1, 2)
    wanted = (r[0, 0, 1] + r[0, 0, 2] + r[0, 1, 2]) / 3
    assert Symmetric(mask=MASK).mean(r)[0] == pytest.approx(float(wanted))


def test_projections_are_projections():
    x = torch.randn(3, 4, 2, dtype=f64)
    pairs = torch.randn(3, 4, 4, dtype=f64)
    for space, leaf in ((Padded(mask=MASK), x), (ZeroCenter(mask=MASK), x), (ZeroCenter(), x), (Symmetric(), pairs)):
        once = space.project(leaf)
        assert (space.project(once) - once).abs().max() < 1e-14
        assert (space.project(3 * leaf) - 3 * once).abs().max() < 1e-13


def packed(sizes):
    sizes = torch.tensor(sizes)
    return Packed(index=torch.repeat_interleave(torch.arange(len(sizes)), sizes), sizes=sizes, center=True)


def test_packed_is_a_loop_over_the_samples():
    sizes, space = [3, 1, 4], packed([3, 1, 4])
    x = torch.randn(8, 2, dtype=f64)
    parts = x.split(sizes)
    assert torch.allclose(space.project(x), torch.cat([p - p.mean(0) for p in parts]))
    assert torch.allclose(space.mean(x), torch.stack([p.mean() for p in parts]))
    assert space.dof(x).tolist() == [4.0, 0.0, 6.0] and space.rows(x) == 3
    t = torch.tensor([0.1, 0.2, 0.3])
    assert space.expand(t, x).flatten().tolist() == pytest.approx([0.1] * 3 + [0.2] + [0.3] * 4)


class Shrink(Denoiser):
    """x0 = x / (1 + sigma^2): the exact denoiser of a standard normal in any space."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, t, cond=None):
        process = bound(self.process, x)
        found = {}
        for name, leaf in x.items():
            if not process[name].noised:
                found[name] = leaf
                continue
            alpha, sigma = process[name].schedule(t)
            gain = process[name].space.expand((alpha / (alpha**2 + sigma**2)).to(leaf), leaf)
            found[name] = process[name].space.project(gain * leaf)
        return Prediction(found)


SAMPLERS = [Euler(), Ancestral(), Multistep(order=3), PredictorCorrector(), SingleStep(order=3)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_sampling_stays_in_its_space_and_does_not_see_padding(sampler):
    process = {"x": Gaussian(EDM(), ZeroCenter(mask="mask")), "pairs": Gaussian(EDM(), Symmetric(mask="mask")),
               "mask": Frozen()}  # fmt: skip
    grid, seeds = Karras()(EDM(), 6), torch.arange(3)

    def run(mask, which):
        n = mask.shape[1]
        like = {"x": torch.empty(len(which), n, 3, dtype=f64), "pairs": torch.empty(len(which), n, n, dtype=f64)}
        return sample(Shrink(process), process, sampler, grid, KeyedNoise(which), {**like, "mask": mask})

    wide = run(torch.cat([MASK, torch.zeros(3, 2, dtype=torch.bool)], 1), seeds)
    assert wide["x"].sum(1).abs().max() < 1e-10 and (wide["pairs"] - wide["pairs"].transpose(1, 2)).abs().max() == 0
    for i in range(3):
        size = int(MASK[i].sum())
        alone = run(torch.ones(1, size, dtype=torch.bool), seeds[i : i + 1])
        assert (wide["x"][i, :size] - alone["x"][0]).abs().max() < 1e-12
        assert (wide["pairs"][i, :size, :size] - alone["pairs"][0]).abs().max() < 1e-12
        assert (wide["x"][i, size:] == 0).all()
    assert torch.equal(wide["mask"][:, :4], MASK)


def test_packed_draws_what_padded_draws():
    grid, noise, sizes = Karras()(EDM(), 5), KeyedNoise(torch.arange(3)), torch.tensor([3, 2, 4])
    index = torch.repeat_interleave(torch.arange(3), sizes)
    process = {"x": Gaussian(EDM(), Packed(center=True)), "index": Frozen(), "sizes": Frozen()}
    like = {"x": torch.empty(9, 3, dtype=f64), "index": index, "sizes": sizes}
    found = sample(Shrink(process), process, Ancestral(), grid, noise, like)["x"].split(sizes.tolist())
    padded = {"x": Gaussian(EDM(), ZeroCenter(mask="mask")), "mask": Frozen()}
    mask = torch.arange(4) < sizes[:, None]
    other = sample(
        Shrink(padded), padded, Ancestral(), grid, noise, {"x": torch.empty(3, 4, 3, dtype=f64), "mask": mask}
    )
    for i, part in enumerate(found):
        assert (part - other["x"][i, : len(part)]).abs().max() < 1e-12


def test_binding_and_reference():
    plain = {"x": Gaussian(EDM())}
    assert bound(plain, {"x": torch.empty(2, 3)}) is plain
    process = {"mask": Frozen(), "x": Gaussian(VPCosine(), Padded(mask="mask"))}
    assert reference(process).schedule == VPCosine()
    state = {"mask": MASK, "x": torch.empty(3, 4, 2)}
    assert bound(process, state)["x"].space.mask is MASK and process["x"].space.mask == "mask"
    assert rows(process, state) == 3
    with pytest.raises(ConfigError, match="every field is frozen"):
        reference({"mask": Frozen()})


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Padded(mask="msk").bind({"mask": MASK}), "names the field 'msk'; did you mean 'mask'"),
        (lambda: Padded().bind(torch.empty(2)), "has no named fields"),
        (lambda: ZeroCenter(mask="a").bind({"a": {"b": MASK}}), "holds fields, not a tensor"),
        (lambda: Padded().project(torch.empty(3, 4)), "not bound to a batch"),
        (lambda: Padded(mask=MASK.float()).project(torch.empty(3, 4)), "float32, not bool"),
        (lambda: Padded(mask=MASK).project(torch.empty(3, 5)), r"\(3, 4\) does not fit a field of shape \(3, 5\)"),
        (lambda: Symmetric().project(torch.empty(3, 4, 5)), r"needs a field \(B, N, N"),
        (lambda: Packed(center=True).project(torch.empty(3)), "not bound"),
        (lambda: packed([2, 1]).project(torch.empty(4, 1)), "does not fit rows"),
    ],
)
def test_what_does_not_fit_is_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_frozen_fields_cost_nothing():
    x = torch.randn(2, 3)
    frozen = Frozen()
    assert frozen.draw(x, KeyedNoise(torch.arange(2)), 0) is x and frozen.prior(x, x) is x
    assert frozen.corrupt(x, 0.5, x) is x and frozen.transition(x, 0.1, 0.5, x) is x
    assert frozen.schedule == RectifiedFlow() and not frozen.noised
