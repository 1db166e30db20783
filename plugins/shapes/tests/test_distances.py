"""Distances and set figures against brute force, in loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse_shapes.metrics import Likeness
from suffuse_shapes.metrics.distances import chamfer, emd, pairwise, sinkhorn
from suffuse_shapes.metrics.likeness import coverage, divergence, matching, nearest


def clouds(count: int, points: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, points, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def plain_chamfer(a: torch.Tensor, b: torch.Tensor) -> float:
    there = [min(sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) for y in b.tolist()) for x in a.tolist()]
    back = [min(sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) for x in a.tolist()) for y in b.tolist()]
    return sum(there) / len(there) + sum(back) / len(back)


def test_chamfer():
    a, b = clouds(3, 7), clouds(3, 11, 1)
    for row in range(3):
        assert float(chamfer(a, b)[row]) == pytest.approx(plain_chamfer(a[row], b[row]), rel=1e-5)
    assert float(chamfer(a, a).max()) == 0


def test_chamfer_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch):
    from suffuse_shapes.metrics import distances

    a, b = clouds(2, 9), clouds(2, 40, 1)
    whole = chamfer(a, b)
    monkeypatch.setattr(distances, "_CELLS", 50)
    assert torch.allclose(chamfer(a, b), whole, atol=1e-7)


def test_emd_is_the_best_of_all_pairings():
    a, b = clouds(2, 6), clouds(2, 6, 1)
    for row in range(2):
        best = min(
            sum(math.dist(a[row, i].tolist(), b[row, j].tolist()) for i, j in enumerate(order)) / 6
            for order in itertools.permutations(range(6))
        )
        assert float(emd(a, b)[row]) == pytest.approx(best, rel=1e-5)
    shift = torch.tensor([0.3, 0.0, 0.4])
    assert float(emd(a[:1], a[:1] + 0.01 * shift)) == pytest.approx(0.005, rel=1e-4)


def test_sinkhorn_is_near_and_never_below():
    for seed in range(3):
        a, b = clouds(1, 96, seed)[0], clouds(1, 96, 9 + seed)[0]
        exact = float(emd(a[None], b[None]))
        assert exact * (1 - 1e-5) <= float(sinkhorn(a, b)) <= 1.02 * exact


def test_emd_of_unequal_sizes():
    a = clouds(1, 20)
    # Each point twice is the same distribution.
    assert float(emd(a, a.repeat(1, 2, 1))) < 2e-3
    # One point to two at distances 1 and 3: half of the mass each.
    one, two = torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0, 0], [0, 3.0, 0]]])
    assert float(emd(one, two)) == pytest.approx(2.0, rel=1e-4)


def test_pairwise():
    xs, ys = clouds(3, 8), clouds(4, 8, 1)
    table = pairwise(xs, ys)
    assert table.shape == (3, 4)
    for i, j in itertools.product(range(3), range(4)):
        assert float(table[i, j]) == pytest.approx(plain_chamfer(xs[i], ys[j]), rel=1e-5)
    with pytest.raises(ConfigError, match="did you mean 'chamfer'"):
        pairwise(xs, ys, "chamfr")


def test_set_figures_in_loops():
    torch.manual_seed(3)
    across = torch.rand(5, 7)
    rows = across.tolist()
    assert matching(across) == pytest.approx(sum(min(row[j] for row in rows) for j in range(7)) / 7)
    hit = {min(range(7), key=lambda j: row[j]) for row in rows}
    assert coverage(across) == len(hit) / 7
    within, reference = torch.rand(5, 5), torch.rand(7, 7)
    right = 0
    for i in range(12):
        others = {}
        for j in range(12):
            if i != j:
                table = (
                    within[i, j] if i < 5 and j < 5
                    else reference[i - 5, j - 5] if i >= 5 and j >= 5
                    else across[min(i, j), max(i, j) - 5]
                )  # fmt: skip
                others[j] = float(table)
        right += (min(others, key=others.get) < 5) == (i < 5)
    assert nearest(within, across, reference) == pytest.approx(right / 12)


def test_divergence_in_loops():
    xs, ys = clouds(2, 30), clouds(3, 30, 1) * 0.5
    cells = 4

    def shares(some: torch.Tensor) -> dict[tuple[int, ...], float]:
        count: dict[tuple[int, ...], float] = {}
        points = some.reshape(-1, 3).tolist()
        for p in points:
            place = tuple(min(cells - 1, max(0, math.floor((v + 1) / 2 * cells))) for v in p)
            count[place] = count.get(place, 0) + 1 / len(points)
        return count

    p, q = shares(xs), shares(ys)
    kl = [
        sum(v * math.log(v / ((p.get(k, 0) + q.get(k, 0)) / 2)) for k, v in some.items()) for some in (p, q)
    ]  # fmt: skip
    assert divergence(xs, ys, cells) == pytest.approx(sum(kl) / 2, rel=1e-9)
    assert divergence(xs, xs) == 0
    assert divergence(xs * 0 - 0.9, xs * 0 + 0.9) == pytest.approx(math.log(2))


def test_likeness_of_the_same_and_of_others():
    real = clouds(40, 32)
    alike = Likeness().compare(clouds(40, 32, 1), real)
    apart = Likeness().compare(clouds(40, 32, 1) * 0.4, real)
    assert alike["1nna_chamfer"] < 0.75 and apart["1nna_chamfer"] > 0.95
    assert apart["jsd"] > alike["jsd"] and apart["mmd_chamfer"] > alike["mmd_chamfer"]
    assert Likeness("emd").compare(real[:4], real[:4])["mmd_emd"] == pytest.approx(0, abs=1e-6)
