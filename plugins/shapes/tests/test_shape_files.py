"""Files of every format and of every fault; folders and archives of them."""

from __future__ import annotations

import io
import resource
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from suffuse.errors import DataError
from suffuse.text import captions_of
from suffuse_shapes.data import Folder
from suffuse_shapes.data.given import Given
from suffuse_shapes.files import Cloud, FileError
from suffuse_shapes.frame import Frame, upright
from suffuse_shapes.preview import Files, export


def box(path: Path, size: tuple[float, float, float] = (2, 4, 6), rgb: tuple[int, int, int] = (255, 0, 0)) -> Path:
    found = trimesh.creation.box(size)
    found.apply_translation([10, 20, 30])
    found.visual.face_colors = np.tile([*rgb, 255], (12, 1))
    found.export(path)
    return path


@pytest.mark.parametrize("suffix", ["obj", "glb", "gltf", "ply", "stl", "off"])
def test_meshes_of_every_format(tmp_path: Path, suffix: str):
    path = box(tmp_path / f"box.{suffix}") if suffix != "gltf" else gltf(tmp_path)
    cloud = Cloud.read(path, path.name, 4000)
    assert cloud.surface and len(cloud.xyz) == 4000
    assert np.allclose(cloud.frame.centre, (10, 20, 30), atol=0.02) and cloud.frame.scale == pytest.approx(3, abs=1e-3)
    assert np.allclose(np.abs(cloud.xyz).max(0), (1 / 3, 2 / 3, 1), atol=0.01)
    assert np.allclose(cloud.frame.restore(cloud.xyz).max(0), (11, 22, 33), atol=0.05)
    if suffix not in ("stl", "off"):
        assert np.allclose(cloud.rgb, (1, 0, 0), atol=0.01)
    # A normal is that of the side: the axis on which the point is farthest out.
    outward = (np.abs(cloud.normals).argmax(1) == (np.abs(cloud.xyz) / (1 / 3, 2 / 3, 1)).argmax(1)).mean()
    assert outward > 0.99 and np.allclose(np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-5)
    # By area: the sides of 4 by 6, 2 by 6 and 2 by 4.
    shares = [float((np.abs(cloud.normals).argmax(1) == axis).mean()) for axis in range(3)]
    assert shares == pytest.approx([24 / 44, 12 / 44, 8 / 44], abs=0.03)


def gltf(folder: Path) -> Path:
    for name, content in trimesh.exchange.gltf.export_gltf(
        trimesh.load_scene(box(folder / "from.glb"), process=False)
    ).items():
        (folder / name).write_bytes(content)
    return folder / "model.gltf"


def test_clouds_of_every_format(tmp_path: Path):
    random = np.random.default_rng(0)
    xyz, rgb = random.random((50, 3)), np.tile([0.0, 1.0, 0.0], (50, 1))
    export(np.concatenate([xyz, rgb], 1).T, tmp_path / "a.ply")
    export(np.concatenate([xyz, rgb], 1).T, tmp_path / "a.glb")
    np.save(tmp_path / "a.npy", np.concatenate([xyz, 255 * rgb], 1))
    np.savez(tmp_path / "a.npz", points=xyz, colors=rgb, normals=np.tile([0, 0, 2.0], (50, 1)))
    np.savetxt(tmp_path / "a.xyz", np.concatenate([xyz, 255 * rgb], 1), header="x y z r g b")
    for suffix in ("ply", "glb", "npy", "npz", "xyz"):
        cloud = Cloud.read(tmp_path / f"a.{suffix}", f"a.{suffix}", 100, normalise=False)
        assert not cloud.surface and np.allclose(cloud.xyz, xyz, atol=1e-6), suffix
        assert np.allclose(cloud.rgb, rgb, atol=0.01), suffix
    assert np.allclose(Cloud.read(tmp_path / "a.npz", "a.npz", 100).normals, (0, 0, 1))
    few = Cloud.read(tmp_path / "a.npy", "a.npy", 20, normalise=False)
    assert len(few.xyz) == 20 and len({tuple(p) for p in few.xyz.tolist()}) == 20


def test_texture_and_vertex_colours(tmp_path: Path):
    picture = Image.new("RGB", (64, 64), (0, 0, 255))
    picture.paste((255, 255, 0), (0, 0, 32, 64))
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    faces = [[0, 1, 2], [0, 2, 3]]
    look = trimesh.visual.TextureVisuals(uv=corners[:, :2], image=picture)
    square = trimesh.Trimesh(corners, faces, visual=look, process=False)
    for suffix in ("glb", "obj"):
        square.export(tmp_path / f"t.{suffix}")
        cloud = Cloud.read(tmp_path / f"t.{suffix}", f"t.{suffix}", 500, normalise=False)
        left, right = cloud.xyz[:, 0] < 0.47, cloud.xyz[:, 0] > 0.53
        assert np.allclose(cloud.rgb[left], (1, 1, 0)) and np.allclose(cloud.rgb[right], (0, 0, 1))
    black = np.array([[0, 0, 0, 255], [255, 0, 0, 255], [255, 0, 0, 255], [0, 0, 0, 255]], np.uint8)
    trimesh.Trimesh(corners, faces, vertex_colors=black, process=False).export(tmp_path / "v.ply")
    cloud = Cloud.read(tmp_path / "v.ply", "v.ply", 500, normalise=False)
    assert np.allclose(cloud.rgb[:, 0], cloud.xyz[:, 0], atol=0.01)  # in between by their share


FAULTS = {
    "empty.obj": (b"", "empty"),
    "garbage.glb": (b"garbage", "damaged"),
    "garbage.ply": (b"garbage", "damaged"),
    "garbage.stl": (b"garbage", "neither faces nor points"),
    "nan.obj": (b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "NaN vertices"),
    "flat.obj": (b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "no area"),
    "nan.xyz": (b"nan nan nan\nnan 0 0\n", "no finite points"),
    "half.xyz": (b"nan 0 0\nnan 0 0\n0 0 0\n", "67% of its points are NaN"),
    "words.xyz": (b"one two three\n", "damaged"),
    "two.xyz": (b"1 2\n", r"its array has the shape"),
    "pickle.npy": (b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "damaged"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_have_reasons(tmp_path: Path, name: str):
    content, reason = FAULTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=reason):
        Cloud.read(tmp_path / name, name, 100)


def test_what_can_be_saved_is(tmp_path: Path):
    # No faces: its vertices are a cloud.
    (tmp_path / "v.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    assert len(Cloud.read(tmp_path / "v.obj", "v.obj", 10).xyz) == 3
    # A triangle with a NaN corner and one without area beside a good one: all points are on the good one.
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv nan 0 0\nv 5 5 5\nf 1 2 4\nf 5 5 5\nf 1 2 3\n"
    (tmp_path / "some.obj").write_text(text)
    cloud = Cloud.read(tmp_path / "some.obj", "some.obj", 200, normalise=False)
    assert len(cloud.xyz) == 200 and np.abs(cloud.xyz[:, 2]).max() == 0 and cloud.xyz.sum(1).max() <= 1 + 1e-6


def test_a_million_faces_in_bounded_memory(tmp_path: Path):
    found = trimesh.creation.icosphere(subdivisions=8)
    assert len(found.faces) > 1_000_000
    found.export(tmp_path / "big.stl")
    del found
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cloud = Cloud.read(tmp_path / "big.stl", "big.stl", 500)
    assert len(cloud.xyz) == 500 and (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10 < 1024
    with pytest.raises(FileError, match=r"more than data\.max_mb=1"):
        Cloud.read(tmp_path / "big.stl", "big.stl", 500, max_bytes=2**20)


def folder(path: Path, count: int = 6) -> Path:
    for kind in ("tall", "wide"):
        (path / kind).mkdir(parents=True)
        for i in range(count):
            box(path / kind / f"{kind}{i}.ply", (1, 1, 3 + i) if kind == "tall" else (3 + i, 1, 1))
    return path


def test_folder_has_classes_captions_and_frames(tmp_path: Path):
    folder(tmp_path / "a")
    (tmp_path / "a" / "tall" / "tall0.txt").write_text("a tall red box")
    data = Folder(str(tmp_path / "a"), points=64, up="z", normals=True, batch_size=4)
    data.setup()
    assert data.spec.labels == ("tall", "wide") and len(data.train) + len(data.val) == 12
    assert data.spec.about["text"] and data.spec.about["prompts"] == ["a tall red box"]
    item = data.train[(0, 0)]
    assert item["x"].shape == (9, 64) and item["frame"].shape == (4,)
    assert not torch.equal(item["x"], data.train[(1, 0)]["x"])
    tall = next(i for i in range(len(data.train)) if data.train[(0, i)]["cond"]["label"] == 0)
    spread = data.train[(0, tall)]["x"][:3].abs().amax(1)
    assert float(spread[2]) > 0.9 and float(spread[:2].max()) < 0.4
    texts = captions_of(torch.stack([data.train[(0, i)]["cond"]["text"] for i in range(len(data.train))]))
    assert set(texts) <= {"a tall red box", ""}


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_read_where_they_are(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture):
    files = sorted(folder(tmp_path / "a").rglob("*.ply"))
    path, outside = tmp_path / f"all.{kind}", files[0].read_bytes()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as whole:
            for file in files:
                whole.write(file, file.relative_to(tmp_path / "a"))
            whole.writestr("../../evil.ply", outside)
    else:
        with tarfile.open(path, "w:gz") as packed:
            for file in files:
                packed.add(file, str(file.relative_to(tmp_path / "a")))
            info = tarfile.TarInfo("../../evil.ply")
            info.size = len(outside)
            packed.addfile(info, io.BytesIO(outside))
            link = tarfile.TarInfo("tall/link.ply")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            packed.addfile(link)
    data = Folder(str(path), points=32, max_bad=0.3)
    data.setup()
    assert len(data.train) + len(data.val) == 12 and data.spec.labels == ("tall", "wide")
    assert "outside the archive's folder" in caplog.text and (kind == "zip" or "a link, not a file" in caplog.text)
    assert not list(tmp_path.parent.glob("evil.ply")) and not (tmp_path / "evil.ply").exists()
    with pytest.raises(DataError, match=r"1 of 13|2 of 14"):
        Folder(str(path), points=32, max_bad=0.01).setup()


def test_damaged_archives_and_too_many_bad_files(tmp_path: Path):
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DataError, match=r"cannot read the archive"):
        Folder(str(tmp_path / "broken.zip")).setup()
    folder(tmp_path / "a", 2)
    (tmp_path / "a" / "tall" / "bad.obj").write_bytes(FAULTS["flat.obj"][0])
    with pytest.raises(DataError, match=r"1 of 5 shapes cannot be used: tall/bad\.obj \(its triangles have no area\)"):
        Folder(str(tmp_path / "a"), points=16).setup()


def test_small_clouds_are_resampled_and_counted(tmp_path: Path):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).random((10, 3)))
    data = Folder(str(tmp_path), points=25)
    data.setup()
    x = data.train[(0, 0)]["x"]
    assert x.shape == (6, 25) and len({tuple(p) for p in x[:3].T.tolist()}) == 10
    assert data.describe().startswith("4 clouds have fewer than 25 points")


def test_one_frame_for_the_set_keeps_sizes_and_is_undone(tmp_path: Path):
    for i, size in enumerate((1, 2, 4)):
        box(tmp_path / f"{i}.ply", (size, size, size))
    data = Folder(str(tmp_path), points=500, normalise="set", up="y")
    data.setup()
    items = data.sample() + data.sample(None, True)
    sizes = sorted(round(float(item["x"][:3].amax() - item["x"][:3].amin()), 2) for item in items)
    assert sizes == pytest.approx([0.5, 1, 2], abs=0.02)
    item = data.train[(0, 0)]
    Files(turn=False, about=data.spec.about).save(item["x"], tmp_path / "back")
    back = trimesh.load(tmp_path / "back.ply").vertices
    assert np.allclose((back.max(0) + back.min(0)) / 2, (10, 20, 30), atol=0.1)


def test_up_is_turned_not_mirrored():
    for up in "xyz":
        assert np.linalg.det(upright(up)) == pytest.approx(1)
        assert (np.eye(3)["xyz".index(up)] @ upright(up)).tolist() == [0, 0, 1]
    frame = Frame.of(np.array([[1.0, 2, 3], [5, 4, 3]]))
    assert np.allclose(frame.restore(frame.normalise(np.array([[1.0, 2, 3]]))), [[1, 2, 3]], atol=1e-6)


def test_given_clouds():
    cloud = torch.cat([torch.randn(3, 200), torch.rand(3, 200)])
    known = {tuple(p) for p in cloud[:3].T.tolist()}
    coarse = Given("coarse", 50, 0.0).of(cloud, np.random.default_rng(0))["cloud"]
    assert len({tuple(p) for p in coarse[:3].T.tolist()} & known) == 50
    partial = Given("partial", 200, 0.0).of(cloud, np.random.default_rng(0))["cloud"]
    inside = {tuple(p) for p in partial[:3].T.tolist()}
    assert inside <= known
    # The points on one side of a plane: the means of the two sides lie apart.
    rest = torch.tensor([p for p in known if p not in inside])
    assert (partial[:3].mean(1) - rest.mean(0)).norm() > 0.8
    assert Given().of(cloud, np.random.default_rng(0)) == {}
