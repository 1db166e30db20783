"""The modality as a whole: contract, commands, given clouds, completion, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from suffuse.testing import ModalityContract, command
from suffuse_shapes.data import SolidData
from suffuse_shapes.preview import export

TINY = ("data.count=64", "data.batch_size=8", "data.points=48", "model.width=32", "model.latent=32", "model.latents=4",
        "model.depth=2", "model.heads=2", "model.fourier=8", "conditioner.width=16")  # fmt: skip


class TestModality(ModalityContract):
    modality = "shapes"
    overrides = TINY

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        return [(["data.points=3"], "data.points=3"), (["data.pairs=2"], "data.pairs=2"),
                (["data.given=half"], "data.given=half"), (["data.noise=-1"], "data.noise=-1")]  # fmt: skip


class TestUpsampler(ModalityContract):
    modality = "shapes"
    overrides = ("experiment=shapes/upsampler", *TINY, "data.points=64", "data.given_points=16")


class TestFolder(ModalityContract):
    modality = "shapes"

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        if "_folder" not in type(self).__dict__:
            type(self)._folder = meshes(tmp_path_factory.mktemp("meshes"))

    @property
    def overrides(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("data=shapes/folder", f"data.path={type(self)._folder}", "data.normals=true", "data.turn=true",
                "data.batch_size=8", "data.points=48", *TINY[3:])  # fmt: skip

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        (folder / "empty").mkdir()
        return [
            ([f"data.path={folder / 'none'}"], "no such folder"), ([f"data.path={folder / 'empty'}"], "no shapes"),
            (["data.up=w"], "data.up=w"), (["data.normalise=all"], "data.normalise=all"),
        ]  # fmt: skip


def meshes(folder: Path) -> Path:
    """Write boxes and spheres of two classes, one file of each format."""
    for kind, make in (("box", trimesh.creation.box), ("ball", lambda: trimesh.creation.icosphere(subdivisions=2))):
        (folder / kind).mkdir()
        for number, suffix in enumerate(("obj", "glb", "ply", "stl", "off", "ply")):
            found = make()
            found.apply_scale([1 + 0.1 * number, 1, 1])
            found.export(folder / kind / f"{kind}{number}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with tiny runs ``tiny`` and ``completion`` and clouds ``in.ply``, ``in.npy``."""
    folder = tmp_path_factory.mktemp("shapes")
    small = ("steps=2", "num=2", "metrics_num=4", "trainer=cpu", "sampler.steps=2", "preview.frames=3",
             "every.preview=0")  # fmt: skip
    for words in (("name=tiny",), ("name=completion", "experiment=shapes/completion", "data.given_points=20")):
        done = command(folder, "train", "modality=shapes", *words, *TINY, *small)
        assert done.returncode == 0, done.stderr
    data = SolidData(points=30, pairs=0.0)
    data.setup()
    cloud = data.val[0]["x"].numpy()
    export(cloud, folder / "in.ply")
    np.save(folder / "in.npy", 40 * cloud[:3].T)
    return folder


def drawn(folder: Path, *words: str, name: str = "tiny") -> tuple[list[dict], Path]:
    """Return the manifest of a sampling job and where it is."""
    done = command(folder, "sample", f"ckpt=outputs/shapes/{name}", "trainer=cpu", "num=2", "sampler.steps=2",
                   "preview.frames=3", *words)  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    out = folder / next(word for word in words if word.startswith("out=")).partition("=")[2]
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()], out


def cloud_of(path: Path) -> np.ndarray:
    found = next(iter(trimesh.load_scene(path).geometry.values()))
    return np.concatenate([found.vertices, np.asarray(found.colors)[:, :3] / 255.0], 1)


def test_a_run_ends_in_clouds(run: Path):
    final = run / "outputs" / "shapes" / "tiny" / "samples" / "final"
    figures = json.loads((run / "outputs" / "shapes" / "tiny" / "metrics.json").read_text())
    assert len(cloud_of(final / "00000.ply")) == 48 and (final / "overview.png").stat().st_size > 1000
    assert figures["right"] == 0 and figures["right_real"] == 1 and 0.01 < figures["residual_real"] < 0.04


def test_prompts_files_and_numbers_of_points(run: Path):
    rows, out = drawn(run, "condition.text=a tall red cylinder", "points=33", "out=asked")
    assert [row["caption"] for row in rows] == ["a tall red cylinder"] * 2 and rows[0]["points"] == 33
    ply, glb = (cloud_of(out / rows[0][key]) for key in ("file", "glb"))
    assert ply.shape == (33, 6) and np.allclose(ply, glb, atol=1e-5)
    from PIL import Image

    with Image.open(out / rows[0]["turntable"]) as picture:
        assert picture.n_frames == 3
    for bad, said in (("points=0", "points=0"), ("pionts=3", "did you mean 'points'"), ("frame=old", "frame=old")):
        done = command(run, "sample", "ckpt=outputs/shapes/tiny", bad)
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("mask", ["rest:0.4", "colour", "z:above:0.0"])
def test_completion_keeps_what_is_given(run: Path, mask: str):
    rows, out = drawn(run, "init=in.ply", f"mask={mask}", f"out=kept-{mask[:3]}")
    known = cloud_of(run / "in.ply")
    for row in rows:
        found = cloud_of(out / row["file"])
        at = np.linalg.norm(found[:, None, :3] - known[None, :, :3], axis=-1)
        same = at.min(1) < 1e-4
        if mask == "colour":
            assert same.all() and np.abs(found[:, 3:] - known[at.argmin(1), 3:]).max() > 0.05
        else:
            held = round(0.6 * 48) if mask.startswith("rest") else None
            assert same.sum() == held if held else 0 < same.sum() < 48
            assert np.allclose(found[same, 3:], known[at.argmin(1)[same], 3:], atol=0.01)
            if mask.startswith("z"):
                assert known[at.argmin(1)[same], 2].max() <= 0


def test_bad_masks_and_files_are_one_line(run: Path):
    for words, said in (
        (("init=in.ply", "mask=top"), "mask=top"), (("init=none.ply", "mask=rest"), "no such file"),
        (("init=in.npy", "mask=rest"), "frame=fit"), (("init=in.ply", "mask=z:above:9"), "no points there"),
        (("init=in.ply", "mask=rest:2"), "rest:0.7"), (("condition.cloud=in.ply",), "without given clouds"),
    ):  # fmt: skip
        done = command(run, "sample", "ckpt=outputs/shapes/tiny", "num=1", "out=never", *words)
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    rows, _ = drawn(run, "init=in.npy", "mask=rest", "frame=fit", "out=fitted")
    assert len(rows) == 2


def test_a_given_cloud_changes_what_is_drawn(run: Path):
    first, with_cloud = drawn(run, "condition.cloud=in.ply", "out=given", name="completion")
    _, without = drawn(run, "out=free", name="completion")
    text = "condition.text=a red cone"
    _, again = drawn(run, "condition.cloud=in.ply", "out=again", name="completion")
    a, b, c = (cloud_of(folder / first[0]["file"]) for folder in (with_cloud, without, again))
    assert np.array_equal(a, c) and a.shape == b.shape
    done = command(run, "sample", "ckpt=outputs/shapes/completion", "condition.cloud=gone.ply", text)
    assert done.returncode == 1 and "condition.cloud=gone.ply: no such file" in done.stderr


def test_media_are_objects():
    import wandb
    from suffuse_shapes.preview import Files

    media = Files().media(torch.rand(2, 6, 20), ["a", "b"])
    assert all(isinstance(item, wandb.Object3D) for item in media["clouds"]) and len(media["views"]) == 2
