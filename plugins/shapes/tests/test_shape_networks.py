"""The networks: what a permutation does, what a point costs, what is given; and closed meshes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from suffuse.errors import ConfigError
from suffuse.testing import command
from suffuse_shapes.meshing import EXTENT, check, mesh, write
from suffuse_shapes.nn import SetTransformer, SurfaceNet
from torch.utils.flop_counter import FlopCounterMode


def awake(net: torch.nn.Module) -> torch.nn.Module:
    """Return a network whose zero layers are not."""
    torch.manual_seed(0)
    for p in net.parameters():
        if not p.abs().sum():
            torch.nn.init.normal_(p, std=0.1)
    return net.eval()


def small(**options) -> SetTransformer:
    more = {"width": 16, "latent": 24, "latents": 4, "depth": 2, "heads": 2, "fourier": 6} | options
    return awake(SetTransformer((6, 20), 8, 8, **more))


def asked(rows: int) -> dict[str, torch.Tensor]:
    return {"vector": torch.randn(rows, 8), "tokens": torch.randn(rows, 5, 8), "mask": torch.ones(rows, 5).bool()}


def test_a_permutation_of_points_permutes_the_output():
    net, x, noise, cond = small(), torch.randn(2, 6, 20), torch.randn(2), asked(2)
    order = torch.randperm(20)
    with torch.no_grad():
        there, back = net(x, noise, cond)[:, :, order], net(x[:, :, order], noise, cond)
    assert torch.allclose(there, back, atol=1e-5) and float(there.std()) > 0.01


def test_everything_asked_for_matters_and_rows_do_not_mix():
    net, x, noise, cond = small(), torch.randn(2, 6, 20), torch.randn(2), asked(2)
    with torch.no_grad():
        base = net(x, noise, cond)
        for name in ("vector", "tokens"):
            second = torch.tensor([0.0, 1.0]).view(2, *[1] * (cond[name].ndim - 1))
            changed = net(x, noise, {**cond, name: cond[name] + second})
            assert torch.allclose(changed[0], base[0], atol=1e-5) and not torch.allclose(changed[1], base[1], atol=1e-4)
        masked = cond["mask"].clone()
        masked[:, 3:] = False
        cut = {**cond, "mask": masked}
        assert torch.allclose(
            net(x, noise, cut), net(x, noise, {**cut, "tokens": cond["tokens"] + (~masked)[..., None] * 9}), atol=1e-5
        )
        assert not torch.allclose(net(x, noise + 1, cond), base, atol=1e-4)


def test_given_points_are_read_unless_they_are_not_there():
    net = small(about={"given": {"kind": "coarse", "points": 7}})
    x, noise = torch.randn(2, 6, 20), torch.randn(2)
    cloud, cond = torch.randn(2, 6, 7), asked(2)
    with torch.no_grad():
        with_it = net(x, noise, {**cond, "cloud": cloud, "there": torch.tensor([True, False])})
        other = net(x, noise, {**cond, "cloud": cloud.flip(0), "there": torch.tensor([True, False])})
        turned = net(x, noise, {**cond, "cloud": cloud.flip(2), "there": torch.tensor([True, False])})
    assert not torch.allclose(with_it[0], other[0], atol=1e-4) and torch.allclose(with_it[1], other[1], atol=1e-5)
    assert torch.allclose(with_it, turned, atol=1e-5)
    with pytest.raises(ConfigError, match="conditioner=shapes/given"):
        net(x, noise, cond)


def test_the_cost_is_linear_in_the_points():
    net, cost = small(), {}
    for points in (512, 2048, 8192):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.randn(1, 6, points), torch.zeros(1), asked(1))
        cost[points] = counter.get_total_flops()
    slope = (cost[8192] - cost[2048]) / (cost[2048] - cost[512])
    assert slope == pytest.approx(4, rel=1e-6)


def test_checkpointing_changes_nothing():
    x, noise, cond = torch.randn(2, 6, 20), torch.randn(2), asked(2)
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        net = small(checkpointing=checkpointing)
        net(x, noise, cond).square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, atol=1e-6)


@pytest.mark.parametrize(("name", "least", "most"), [
    ("set", 1, 2), ("set_s", 10, 18), ("set_b", 35, 50), ("set_l", 100, 140), ("set_xl", 250, 330),
])  # fmt: skip
def test_sizes(name: str, least: float, most: float):
    from suffuse.app import compose_train
    from suffuse.build import build

    cfg = compose_train(["modality=shapes", f"model=shapes/{name}", "name=x"])
    with torch.device("meta"):
        net = build(dict(cfg.model), "model", shape=(6, 2048), cond_dim=128, context_dim=128)
    assert least < sum(p.numel() for p in net.parameters()) / 1e6 < most


def test_wrong_numbers_are_named():
    for words, said in (({"heads": 5}, "heads"), ({"fourier": 3}, "fourier"), ({"latent": 25}, "latent")):
        with pytest.raises(ConfigError, match=said):
            small(**words)
    with pytest.raises(ConfigError, match="x, y, z first"):
        SetTransformer((1, 8, 8))


class Ball(SurfaceNet):
    """Knows the distance to a ball, and nothing else."""

    radius = 0.6

    def forward(self, xyz, at, latents=None):
        return (at.norm(dim=-1) - self.radius).clamp(-self.reach, self.reach)


@pytest.mark.parametrize("radius", [0.6, 1.24])
def test_a_mesh_is_closed_and_of_the_right_size(tmp_path: Path, radius: float):
    decoder = Ball()
    decoder.radius = radius
    cloud = torch.cat([torch.nn.functional.normalize(torch.randn(3, 400), dim=0) * radius, torch.ones(3, 400) * 0.5])
    cloud[3, cloud[0] > 0] = 1.0
    found = mesh(decoder, cloud, 48)
    what = check(found)
    assert what.good and what.bodies == 1
    assert what.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.02)
    assert abs(np.linalg.norm(found.vertices, axis=1) - radius).max() < EXTENT / 24
    red = np.asarray(found.visual.vertex_colors)[:, 0]
    side = found.vertices[:, 0] / radius
    assert red[side > 0.4].min() == 255 and red[side < -0.4].max() < 140
    for suffix in ("glb", "stl", "ply", "obj"):
        again = trimesh.load(write(found, tmp_path / f"m.{suffix}"), force="mesh")
        again.merge_vertices()
        assert check(again).good


def test_an_open_mesh_is_told():
    found = trimesh.creation.icosphere()
    assert check(found).good
    found.update_faces(np.arange(len(found.faces)) > 0)
    assert not check(found).watertight and not check(found).good


def test_the_grid_in_two_steps_is_the_whole_grid():
    from suffuse_shapes.meshing import distances

    decoder, size = Ball(), 40
    field = distances(decoder, torch.randn(20, 3), size)
    line = torch.linspace(-EXTENT, EXTENT, size)
    whole = decoder(None, torch.cartesian_prod(line, line, line)[None])[0].reshape(size, size, size).numpy()
    assert ((field < 0) == (whole < 0)).all() and np.abs(field - whole)[np.abs(whole) < 0.1].max() < 1e-6


def test_a_decoder_is_trained_and_used(tmp_path: Path):
    words = ["data.count=64", "data.batch_size=8", "data.points=128", "data.queries=64", "model.width=32",
             "model.heads=2", "steps=30", "num=2", "metrics_num=4", "preview.turn=false", "trainer=cpu",
             "name=d"]  # fmt: skip
    done = command(tmp_path, "train", "modality=shapes", "task=shapes/surface", *words)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "shapes" / "d"
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["distance"] < 0.09 and figures["side"] > 0.55
    final = str(run / "samples" / "final")
    done = command(tmp_path, "suffuse", "mesh", final, f"decoder={run}", "resolution=24", "out=m")
    rows = [json.loads(line) for line in (tmp_path / "m" / "meshes.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row.get("watertight") or "skipped" in row for row in rows), done.stdout
    done = command(tmp_path, "suffuse", "mesh", "x.ply", f"decoder={run}")
    assert done.returncode == 1 and "no such file" in done.stderr
    done = command(tmp_path, "suffuse", "mesh", "x.ply", "decodr=1")
    assert done.returncode == 1 and "did you mean 'decoder'" in done.stderr
