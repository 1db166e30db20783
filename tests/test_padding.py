"""Padding along any axis: what exists is drawn, weighed and denoised as if the rest were not there."""

from __future__ import annotations

import pytest
import torch
from suffuse.denoiser import Denoiser, EDMPrecond, Preconditioned, Prediction
from suffuse.errors import ConfigError
from suffuse.grid import Grid, Karras, Trailing
from suffuse.guidance import ClassifierFree
from suffuse.levels import CLEAN, TokenLevels
from suffuse.nn import DiT, UNet
from suffuse.noise import KeyedNoise
from suffuse.objective import EDMWeight, LogNormal, Objective
from suffuse.observation.sdedit import noised
from suffuse.process import Frozen, Gaussian, bound
from suffuse.sampler import Ancestral, Euler, Multistep, SingleStep, sample
from suffuse.schedule import EDM, RectifiedFlow
from suffuse.space import Padded

f64 = torch.float64
SIZES = torch.tensor([5, 2, 4])


def there(sizes: torch.Tensor, width: int) -> torch.Tensor:
    return torch.arange(width) < sizes[:, None]


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_what_exists_along_an_axis(axis: int):
    mask = there(SIZES, 6)
    shape = [3, 2, 4]
    shape.insert(axis, 6)
    x = torch.randn(shape, dtype=f64)
    space = Padded(mask=mask, axes=(axis,))
    kept = [x[i].narrow(axis - 1, 0, int(size)) for i, size in enumerate(SIZES)]
    z = space.project(x)
    for i, part in enumerate(kept):
        assert torch.equal(z[i].narrow(axis - 1, 0, int(SIZES[i])), part)
        assert float(z[i].abs().sum()) == pytest.approx(float(part.abs().sum()))
    assert torch.allclose(space.mean(x), torch.stack([part.mean() for part in kept]), rtol=0, atol=1e-14)
    assert space.dof(x).tolist() == [40.0, 16.0, 32.0] and space.rows(x) == 3
    assert space.tokens == (axis,) and torch.equal(space.there(x), mask)
    levels = torch.rand(3, 6)
    assert torch.equal(space.expand(levels, x).squeeze(), levels)
    assert space.expand(levels[:, 0], x).shape == (3, 1, 1, 1)


def test_what_exists_in_a_rectangle():
    """Heights and widths that differ: a mask over two axes, per-token levels along one of them."""
    mask = there(torch.tensor([3, 1]), 4)[:, :, None] & there(torch.tensor([2, 5]), 5)[:, None]
    x = torch.randn(2, 3, 4, 5, dtype=f64)
    space = Padded(mask=mask, axes=(2, 3), tokens=(2,))
    parts = [x[0, :, :3, :2], x[1, :, :1, :5]]
    assert torch.allclose(space.mean(x), torch.stack([p.mean() for p in parts]), rtol=0, atol=1e-14)
    assert space.dof(x).tolist() == [18.0, 15.0]
    assert float(space.project(x).abs().sum()) == pytest.approx(float(sum(p.abs().sum() for p in parts)))
    assert torch.equal(space.there(x), there(torch.tensor([3, 1]), 4))
    assert Padded(mask=mask, axes=(2, 3)).tokens == (2, 3)
    wide = Padded(mask=torch.ones(2, 4, 5, dtype=torch.bool), axes=(2, 3))
    draws = Gaussian(EDM(), wide).draw(x, KeyedNoise(torch.arange(2)), 0)
    larger = Padded(mask=torch.ones(2, 6, 9, dtype=torch.bool), axes=(2, 3))
    again = Gaussian(EDM(), larger).draw(torch.empty(2, 3, 6, 9, dtype=f64), KeyedNoise(torch.arange(2)), 0)
    assert torch.equal(draws, again[:, :, :4, :5])


@pytest.mark.parametrize("axis", [1, 2])
def test_noise_does_not_see_how_far_a_batch_is_padded(axis: int):
    """Bit for bit, and of unit variance without correlation between tokens."""

    def draw(width: int, rows: torch.Tensor) -> torch.Tensor:
        shape = [len(rows), 3]
        shape.insert(axis, width)
        space = Padded(mask=torch.ones(len(rows), width, dtype=torch.bool), axes=(axis,))
        return Gaussian(EDM(), space).draw(torch.empty(shape), KeyedNoise(rows), 4, 1)

    narrow, wide = draw(4, torch.arange(9)), draw(7, torch.arange(5, 6))
    assert torch.equal(narrow[5], wide[0].narrow(axis - 1, 0, 4))
    z = draw(4, torch.arange(20000)).flatten(1)
    assert (z.T @ z / len(z) - torch.eye(12)).abs().max() < 0.03


class Shrink(Denoiser):
    """x0 = alpha x / (alpha^2 + sigma^2), per token: the exact denoiser of a standard normal."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x, t, cond=None):
        space, schedule = bound(self.process, x)["x"].space, self.process["x"].schedule
        alpha, sigma = schedule(t)
        gain = space.expand((alpha / (alpha**2 + sigma**2)).to(x["x"]), x["x"])
        return Prediction({"x": space.project(gain * x["x"]), "mask": x["mask"]})


@pytest.mark.parametrize("sampler", [Euler(), Ancestral(), Multistep(order=3), SingleStep(order=2)], ids=str)
@pytest.mark.parametrize("levels", [False, True])
def test_sampling_does_not_see_padding(sampler, levels: bool):
    """With one time for all tokens and with one for each; seeds from elsewhere in another batch."""
    process = {"x": Gaussian(RectifiedFlow(), Padded(mask="mask", axes=(2,))), "mask": Frozen()}

    def run(sizes: torch.Tensor, width: int, seeds: torch.Tensor) -> torch.Tensor:
        grid = Trailing()(RectifiedFlow(), 6)
        if levels:
            late = (0.3 + 0.05 * torch.arange(width, dtype=f64)).numpy()
            grid = Grid((grid.t[:, None] ** 1.5) * late, grid.clean)
        like = {"x": torch.empty(len(sizes), 3, width, 2, dtype=f64), "mask": there(sizes, width)}
        return sample(Shrink(process), process, sampler, grid, KeyedNoise(seeds), like)["x"]

    wide = run(SIZES, 8, torch.arange(3))
    for i, size in enumerate(SIZES.tolist()):
        alone = run(SIZES[i : i + 1], size, torch.tensor([i]))
        assert alone.abs().max() > 0.1
        assert (wide[i, :, :size] - alone[0]).abs().max() < 1e-12 and (wide[i, :, size:] == 0).all()


def test_varying_does_not_see_padding():
    """Noised part of the way, a row of a padded batch is what it would be alone, and zero behind its end."""
    process = {"x": Gaussian(RectifiedFlow(), Padded(axes=(2,))), "mask": Frozen()}
    mask = there(SIZES, 6)
    x0 = {"x": torch.randn(3, 2, 6, dtype=f64) * mask[:, None], "mask": mask}
    whole = noised(process, x0, 0.4, KeyedNoise(torch.arange(3)))
    assert torch.equal(whole["mask"], mask)
    for i, size in enumerate(SIZES.tolist()):
        own = {"x": x0["x"][i : i + 1, :, :size], "mask": mask[i : i + 1, :size]}
        alone = noised(process, own, 0.4, KeyedNoise(torch.tensor([i])))
        assert torch.equal(whole["x"][i, :, :size], alone["x"][0]) and not whole["x"][i, :, size:].any()


def network(**options) -> DiT:
    torch.manual_seed(0)
    net = DiT({"x": (3, 8, 4), "mask": (8,)}, width=32, depth=2, heads=2, placed=16, **options)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net


@pytest.mark.parametrize(
    "options",
    [{"patch": 1}, {"patch": 1, "attention": "axial"}, {"patch": (2, 2), "levels": 2, "attention": "axial"}],
    ids=str,
)
def test_the_loss_of_a_batch_is_that_of_each_item_alone(options):
    """Independent levels, given tokens, one level for all: each row as if it were alone, at its own width."""
    process = {"x": Gaussian(RectifiedFlow(), Padded(mask="mask", axes=(2,), tokens=(2,))), "mask": Frozen()}
    denoiser = Preconditioned(network(**options), process, EDMPrecond())
    sizes = torch.tensor([8, 6, 2, 4, 8, 6])
    x = torch.randn(6, 3, 8, 4) * there(sizes, 8)[:, None, :, None]
    kinds = [TokenLevels(*shares) for shares in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0))]
    for number, kind in enumerate([*kinds, None]):
        objective = Objective(EDMWeight(), LogNormal(), EDMPrecond(), tokens=kind)

        def loss(rows: slice, width: int, step: int, objective=objective) -> torch.Tensor:
            state = {"x": x[rows, :, :width], "mask": there(sizes, 8)[rows, :width]}
            seeds = torch.arange(40, 46)[rows]
            return objective(denoiser, state, None, KeyedNoise(seeds), step, torch.arange(6)[rows], 6).per_sample

        with torch.no_grad():
            whole = loss(slice(None), 8, number)
            for i, size in enumerate(sizes.tolist()):
                alone = loss(slice(i, i + 1), size, number)
                assert float(alone) == pytest.approx(float(whole[i]), rel=1e-4), (kind, i)


def test_guidance_in_an_interval_acts_on_the_tokens_whose_levels_lie_in_it():
    """Beside a mask, whose space knows of no tokens."""
    process = {"x": Gaussian(RectifiedFlow(), Padded(mask="mask", axes=(2,), tokens=(2,))), "mask": Frozen()}

    class Told(Denoiser):
        def __init__(self):
            super().__init__()
            self.process = process

        def forward(self, x, t, cond=None):
            return Prediction({**x, "x": torch.ones_like(x["x"]) * cond["vector"][:, None, None] * x["mask"][:, None]})

    mask = torch.tensor([[True, True, True, False], [True] * 4])
    state = {"x": torch.zeros(2, 1, 4), "mask": mask}
    guided = ClassifierFree(Told(), 3.0, {"vector": torch.zeros(1)}, interval=(0.0, None))
    t = torch.tensor([[0.1, 0.9, 0.1, 0.1], [0.9, 0.1, 0.9, 0.9]])  # half log-SNR is above 0 below t = 1/2
    found = guided(state, t, {"vector": torch.ones(2)}).x0
    assert found["x"][:, 0].tolist() == [[3, 1, 3, 0], [1, 3, 1, 1]] and torch.equal(found["mask"], mask)


def test_given_tokens_are_among_those_that_exist():
    """At least one, never all of a row's own; what does not exist is never clean."""
    sizes = torch.tensor([1, 2, 5, 8]).repeat(500)
    mask, u = there(sizes, 8), torch.rand(2000, dtype=f64)
    noise = KeyedNoise(torch.arange(2000))
    _, clean = TokenLevels(0.0, 1.0).quantiles(noise, 0, u, 8, mask)
    assert not (clean & ~mask).any()
    count = clean.sum(1)
    assert (count[sizes == 1] == 0).all() and (count[sizes == 2] == 1).all()
    assert set(count[sizes == 5].tolist()) == {1, 2, 3, 4} and set(count[sizes == 8].tolist()) == set(range(1, 8))
    # A row alone, at its own width, gives the same tokens.
    for i in range(60):
        own = mask[i : i + 1, : sizes[i]]
        one = KeyedNoise(torch.tensor([i]))
        _, alone = TokenLevels(0.0, 1.0).quantiles(one, 0, u[i : i + 1], int(sizes[i]), own)
        assert torch.equal(alone[0], clean[i, : sizes[i]])
    objective = Objective(tokens=TokenLevels(0.0, 1.0))
    lam = objective.levels(noise, 0, torch.arange(2000), 2000, RectifiedFlow(), 8, mask)
    assert torch.equal(lam == CLEAN, clean)


def test_a_transformer_does_not_see_padding():
    net, sizes = network(patch=1), torch.tensor([8, 3])
    x, noise = torch.randn(2, 3, 8, 4), torch.rand(2)
    mask = there(sizes, 8)
    with torch.no_grad():
        whole = net({"x": x, "mask": mask}, noise)["x"]
        alone = net({"x": x[1:, :, :3], "mask": mask[1:, :3]}, noise[1:])["x"]
        other = net({"x": x + ~mask[:, None, :, None] * 100.0, "mask": mask}, noise)["x"]
        shorter = net({"x": x[1:, :, :3], "mask": mask[1:, :3] & (torch.arange(3) < 2)}, noise[1:])["x"]
    assert (whole[1:, :, :3] - alone).abs().max() < 1e-5 * whole.std()
    assert (whole[1, :, :3] - other[1, :, :3]).abs().max() < 1e-5 * whole.std()
    assert (alone[:, :, :2] - shorter[:, :, :2]).abs().max() > 0.1 * whole.std()  # it knows where the end is


def test_what_does_not_fit_is_one_line():
    mask = there(SIZES, 6)
    for build, text in (
        (lambda: Padded(axes=()), r"axes=\[\] must name rising axes"),
        (lambda: Padded(axes=(3, 2)), r"axes=\[3, 2\] must name rising axes"),
        (lambda: Padded(axes=(0,)), r"axes=\[0\]"),
        (lambda: Padded(mask=mask, axes=(2,)).project(torch.empty(3, 6, 5)), r"\(3, 6, 5\) along its axes \[2\]"),
        (lambda: Padded(mask=mask, axes=(4,)).project(torch.empty(3, 6)), r"does not fit .* \[4\]"),
        (lambda: UNet({"x": (3, 8), "mask": (8,)}), "takes one tensor, not the fields .*; masks need attention: model"),
        (lambda: DiT({"x": (3, 8), "y": (8,)}), "or the fields x and mask, not"),
    ):
        with pytest.raises(ConfigError, match=text) as caught:
            build()
        assert "\n" not in str(caught.value)


def test_a_grid_of_many_tokens_needs_them_on_the_space():
    process = {"x": Gaussian(EDM(), Padded(mask="mask", axes=(2,))), "mask": Frozen()}
    like = {"x": torch.empty(3, 2, 6, dtype=f64), "mask": there(SIZES, 6)}
    found = sample(Shrink(process), process, Euler(), Karras()(EDM(), 4), KeyedNoise(torch.arange(3)), like)
    assert torch.isfinite(found["x"]).all() and torch.equal(found["mask"], like["mask"])
