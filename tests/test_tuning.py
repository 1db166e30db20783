"""Tuning: the tuned grid beats those it started from, on trajectories it has not seen, and the command stores it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from suffuse.denoiser import Exact
from suffuse.errors import ConfigError
from suffuse.grid import Exponential, Grid, Karras, Trailing
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian as Process
from suffuse.sampler import Ancestral, Heun, Multistep, PredictorCorrector, sample
from suffuse.schedule import EDM, RectifiedFlow, VPCosine, VPLinear
from suffuse.targets import GaussianMixture
from suffuse.tuning import Stored, tune

f64 = torch.float64


def mixture():
    means = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=f64)
    return GaussianMixture(means, torch.full((6,), 0.02, dtype=f64), torch.full((6,), 1 / 6, dtype=f64))


def errors(schedule, sampler, grid, seeds):
    """Distance to a solution with 2,000 steps from the same starts at sigma = 80."""
    process, like, noise = Process(schedule), torch.empty(len(seeds), 4, dtype=f64), KeyedNoise(seeds)
    denoiser = Exact(process, mixture().posterior_mean)
    fine = Exponential()(schedule, 2000)
    wanted = sample(denoiser, process, Multistep(2000, order=3), fine, noise, like)
    found = sample(denoiser, process, sampler, grid, noise, like)
    return ((found - wanted) ** 2).mean(1).sqrt().median().item()


def fit(schedule, sampler, base, **more):
    process, seeds = Process(schedule), torch.arange(1000, 1032)
    denoiser = Exact(process, mixture().posterior_mean)
    return tune(
        denoiser, process, sampler, base, seeds, torch.empty(32, 4, dtype=f64), **{"tries": 100, "fine": 32, **more}
    )


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), RectifiedFlow()], ids=str)
@pytest.mark.parametrize("sampler", [Multistep(7, order=2), PredictorCorrector(7, order=2), Heun(5)], ids=str)
def test_better_on_other_trajectories(schedule, sampler):
    found = fit(schedule, sampler, Exponential())
    unseen = torch.arange(64)
    tuned = errors(schedule, sampler, found.grid, unseen)
    best = min(errors(schedule, sampler, base(schedule, sampler.steps), unseen) for base in (Exponential(), Karras()))
    assert tuned < 0.6 * best
    assert found.after <= found.before and found.tried <= 100 + 3 and found.trajectories == 32
    assert found.grid.steps == sampler.steps and found.grid.clean
    plain = Exponential()(schedule, sampler.steps)
    assert found.grid.t[0] == plain.t[0] and found.grid.t[-1] == plain.t[-1]


def test_ends_are_kept():
    """A grid that ends with noise, and one that starts without signal."""
    found = fit(EDM(), Multistep(6, order=2), Exponential(end="min"))
    assert not found.grid.clean and found.grid.t[-1] == Exponential(end="min")(EDM(), 6).t[-1]
    assert len(found.sigmas) == 7
    found = fit(VPCosine(), Multistep(6, order=2), Trailing())
    assert found.grid.t[0] == 1.0 and math.isinf(found.sigmas[0]) and found.after < found.before


def test_dynamic_programming_finds_the_best_of_all_grids():
    """On few fine nodes its grid is the best of all subsets by the cost it minimises."""
    import itertools

    from suffuse.tuning import _Frame, _Gram, _programmed, _reference

    schedule, sampler, n = EDM(), Multistep(5, order=2), 9
    process, like = Process(schedule), torch.empty(16, 4, dtype=f64)
    frame = _Frame(Exponential(end="min")(schedule, 5), schedule, 5)
    denoiser = Exact(process, mixture().posterior_mean)
    solution = _reference(denoiser, process, frame, KeyedNoise(torch.arange(16)), like, None, n, 4)
    gram = _Gram(solution)

    def cost(way):
        steps = [gram.step(solution.nodes, None, way[0], way[1])]
        return sum(steps + [gram.step(solution.nodes, *way[k : k + 3]) for k in range(len(way) - 2)])

    ways = [(0, *inner, n - 1) for inner in itertools.combinations(range(1, n - 1), sampler.steps - 1)]
    best = min(ways, key=cost)
    (levels,) = _programmed(frame, solution)
    assert np.allclose(levels, [solution.nodes[k].lam for k in best[1:-1]])


def test_gram_norms_are_the_distances():
    from suffuse.tuning import _Frame, _Gram, _reference

    schedule, process = EDM(), Process(EDM())
    frame = _Frame(Exponential()(schedule, 5), schedule, 5)
    denoiser, like = Exact(process, mixture().posterior_mean), torch.empty(8, 4, dtype=f64)
    solution = _reference(denoiser, process, frame, KeyedNoise(torch.arange(8)), like, None, 12, 4)
    i, j = 4, 7
    x = torch.from_numpy(solution.x[:, i])
    t = float(schedule.time(solution.nodes[i].lam)), float(schedule.time(solution.nodes[j].lam))
    euler = sample(denoiser, process, Multistep(1, order=1), Grid(np.array(t), False), None, x, x=x)
    wanted = np.linalg.norm(euler.numpy() - solution.x[:, j], axis=1) * solution.gain[:, j]
    assert _Gram(solution).step(solution.nodes, None, i, j) == pytest.approx(np.median(wanted), rel=1e-6)


def test_what_cannot_be_tuned():
    with pytest.raises(ConfigError, match=r"Ancestral draws noise and has no grid to tune; set sampler\.eta=0"):
        fit(EDM(), Ancestral(5), Exponential())
    with pytest.raises(ConfigError, match=r"sampler\.steps=1 leaves no node"):
        fit(EDM(), Multistep(1), Exponential())


def test_stored_grids(tmp_path):
    file = tmp_path / "g.json"
    file.write_text(json.dumps({"sigmas": [80.0, 3.0, 0.1], "clean": True}))
    grid = Stored(str(file))(EDM(), 3)
    assert grid.clean and np.exp(-grid.table(EDM())[2][:3]) == pytest.approx([80, 3, 0.1])
    file.write_text(json.dumps({"sigmas": [None, 3.0, 0.1], "clean": False}))
    assert Stored(str(file))(VPCosine(), 2).t[0] == 1.0
    with pytest.raises(ConfigError, match=r"for 2 steps, not sampler\.steps=5"):
        Stored(str(file))(EDM(), 5)
    with pytest.raises(ConfigError, match=r"nothing\.json: no such file"):
        Stored(str(tmp_path / "nothing.json"))
    with pytest.raises(ConfigError, match="is not set"):
        Stored()
    for text in ("{", "[]", '{"sigmas": [1.0, 2.0], "clean": true}', '{"sigmas": [1.0], "clean": true}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"tuned grid|must be at least two"):
            Stored(str(file))
