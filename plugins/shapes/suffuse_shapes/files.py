"""Files: meshes and clouds of any format as points with colours and normals.

Triangles are chosen by their area and points in them uniformly ("Graphics Gems", Turk 1990, generating random points in
triangles); colours come from the texture, the vertices or the faces, normals from the faces. A cloud is taken as it is.
What cannot be used is refused with a reason, in the words that a log shows.
"""

from __future__ import annotations

import io
import logging
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffuse_shapes.frame import Frame

__all__ = ["ARCHIVES", "SUFFIXES", "Cloud", "FileError", "members", "resampled", "unpacked"]

MESHES = (".obj", ".glb", ".gltf", ".ply", ".stl", ".off")
CLOUDS = (".npy", ".npz", ".xyz")
SUFFIXES = MESHES + CLOUDS
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")
GREY = 0.6
"""Colour of what has none."""
Array = NDArray[np.floating[Any]]


class FileError(Exception):
    """A file cannot be used; the text is the reason."""


@dataclass(frozen=True)
class Cloud:
    """Points of one shape.

    Arguments:
        xyz: Coordinates, float32 (n, 3).
        rgb: Colours in [0, 1], float32 (n, 3).
        normals: Unit normals, float32 (n, 3), zero where none are known.
        frame: How the coordinates were normalised.
        surface: They were drawn on triangles, so there are as many as one likes.
    """

    xyz: NDArray[np.float32]
    rgb: NDArray[np.float32]
    normals: NDArray[np.float32]
    frame: Frame = field(default_factory=Frame)
    surface: bool = False

    @classmethod
    def read(
        cls, source: Path | bytes, name: str, count: int, seed: int = 0, max_bytes: int = 2**29, normalise: bool = True
    ) -> Cloud:
        """Return the points of a file.

        Arguments:
            source: The file, or its content.
            name: Its name, whose ending is its format.
            count: Points that are drawn on a surface; a cloud keeps all of its own, up to as many.
            seed: Seed of the draw.
            max_bytes: Largest file that is read.
            normalise: Bring it into [-1, 1].

        Raises:
            FileError: When it cannot be used.
        """
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > max_bytes:
            raise FileError(f"{size / 2**20:.0f} MiB, more than data.max_mb={max_bytes / 2**20:.0f}")
        if size == 0:
            raise FileError("empty")
        random = np.random.default_rng(seed)
        try:
            suffix = PurePosixPath(name).suffix.lower()
            found = _numbers(source, suffix) if suffix in CLOUDS else _geometry(source, suffix, count, random)
        except FileError:
            raise
        # The readers of a dozen formats raise as many kinds for what is damaged.
        except Exception as error:
            text = " ".join(str(error).split())[:100]
            raise FileError(f"damaged ({type(error).__name__}: {text})") from error
        found = found._finite()
        if not found.surface and len(found.xyz) > count:
            found = found.take(random.permutation(len(found.xyz))[:count])
        return found.normalised() if normalise else found

    def take(self, rows: NDArray[np.integer[Any]]) -> Cloud:
        """Return some of the points."""
        return Cloud(self.xyz[rows], self.rgb[rows], self.normals[rows], self.frame, self.surface)

    def normalised(self) -> Cloud:
        """Return the cloud in a frame of its own."""
        frame = Frame.of(self.xyz)
        return Cloud(frame.normalise(self.xyz), self.rgb, self.normals, frame, self.surface)

    def _finite(self) -> Cloud:
        """Return the points whose coordinates are finite; colours and normals that are not become none."""
        good = np.isfinite(self.xyz).all(1)
        if not good.any():
            raise FileError("no finite points")
        if good.mean() < 0.5:
            raise FileError(f"{1 - good.mean():.0%} of its points are NaN or infinite")
        rgb = np.nan_to_num(self.rgb, nan=GREY).clip(0, 1)
        return Cloud(self.xyz, rgb, np.nan_to_num(self.normals), self.frame, self.surface).take(np.flatnonzero(good))


def resampled(cloud: Cloud, count: int, random: np.random.Generator) -> Cloud:
    """Return `count` points of a cloud, none twice while there are enough."""
    have = len(cloud.xyz)
    rows = random.permutation(have)[:count] if have >= count else random.integers(0, have, count)
    if have < count:  # every point at least once
        rows[:have] = random.permutation(have)
    return cloud.take(rows)


def members(path: Path, max_bytes: int = 2**29) -> Iterator[tuple[str, bytes | FileError]]:
    """Yield name and content of the shapes in an archive, which is never unpacked to the disk.

    A member that lies outside its folder, is a link, or is too large comes as the reason why it is not read.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as whole:
            for info in whole.infolist():
                if not info.is_dir() and _suffix(info.filename) in SUFFIXES:
                    refused = _refused(info.filename, info.file_size, max_bytes)
                    yield info.filename, refused or whole.read(info)
        return
    with tarfile.open(path) as packed:
        for member in packed:
            if _suffix(member.name) in SUFFIXES and not member.isdir():
                refused = _refused(member.name, member.size, max_bytes)
                if not member.isfile():
                    refused = FileError("a link, not a file")
                stream = None if refused else packed.extractfile(member)
                yield member.name, refused or (stream.read() if stream else FileError("not a file"))


def unpacked(name: str) -> bool:
    """Return whether a file name is that of an archive."""
    return name.lower().endswith(ARCHIVES)


def _suffix(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).suffix.lower()


def _refused(name: str, size: int, max_bytes: int) -> FileError | None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        return FileError("its path lies outside the archive's folder")
    if size > max_bytes:
        return FileError(f"{size / 2**20:.0f} MiB, more than data.max_mb={max_bytes / 2**20:.0f}")
    return None


def _numbers(source: Path | bytes, suffix: str) -> Cloud:
    """Return the cloud of a table of numbers: columns x y z, then colours or normals or both."""
    stream: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    if suffix == ".xyz":
        whole = source if isinstance(source, bytes) else source.read_bytes()
        lines = (line.strip() for line in whole.decode(errors="replace").splitlines())
        rows = [line.replace(",", " ").split() for line in lines if line and line[0] not in "#/"]
        return _columns(np.array([[float(v) for v in row] for row in rows if len(row) >= 3], dtype=np.float64))
    loaded = np.load(stream, allow_pickle=False)
    if suffix == ".npy":
        return _columns(loaded)
    named = {key.lower(): loaded[key] for key in loaded.files}
    xyz = next((named[k] for k in ("points", "xyz", "pos", "positions", "coords", "vertices") if k in named), None)
    if xyz is None:
        if {"x", "y", "z"} <= named.keys():
            xyz = np.stack([named[k] for k in "xyz"], -1)
        elif len(named) == 1:
            return _columns(next(iter(named.values())))
        else:
            raise FileError(f"none of its arrays is named points: {', '.join(named) or 'there are none'}")
    cloud = _columns(xyz)
    rgb = next((named[k] for k in ("colors", "colours", "rgb", "color") if k in named), None)
    if rgb is None and {"r", "g", "b"} <= named.keys():
        rgb = np.stack([named[k] for k in "rgb"], -1)
    normals = next((named[k] for k in ("normals", "normal") if k in named), None)
    for what, part in (("colours", rgb), ("normals", normals)):
        if part is not None and part.shape[:1] != cloud.xyz.shape[:1]:
            raise FileError(f"{len(cloud.xyz)} points but {len(part)} {what}")
    return Cloud(
        cloud.xyz, cloud.rgb if rgb is None else _tinted(rgb), cloud.normals if normals is None else _unit(normals)
    )


def _columns(table: Array) -> Cloud:
    """Return the cloud of a table (n, 3), (n, 6) or (n, 9); six are colours unless some are negative."""
    if table.ndim == 2 and table.shape[1] < 3 <= table.shape[0]:
        table = table.T
    if table.ndim != 2 or table.shape[1] < 3 or not len(table):
        raise FileError(f"its array has the shape {table.shape}; points are (n, 3), with colours (n, 6)")
    table = table.astype(np.float64)
    rest = table[:, 3:]
    colours, normals = (rest[:, :3], rest[:, 3:6]) if rest.shape[1] >= 3 else (None, None)
    if colours is not None and np.nanmin(colours, initial=0) < 0:
        colours, normals = (normals if normals is not None and normals.shape[1] == 3 else None), colours
    grey = np.full((len(table), 3), GREY, np.float32)
    flat = np.zeros((len(table), 3), np.float32)
    return Cloud(
        table[:, :3].astype(np.float32),
        grey if colours is None else _tinted(colours),
        flat if normals is None or normals.shape[1] < 3 else _unit(normals),
    )


def _tinted(rgb: Array) -> NDArray[np.float32]:
    """Return colours in [0, 1]: numbers above 1 are of 255."""
    rgb = np.asarray(rgb, dtype=np.float64)[:, :3]
    return (rgb / 255 if np.nanmax(rgb, initial=0) > 1 else rgb).astype(np.float32)


def _unit(normals: Array) -> NDArray[np.float32]:
    normals = np.asarray(normals, dtype=np.float64)[:, :3]
    return (normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)


def _geometry(source: Path | bytes, suffix: str, count: int, random: np.random.Generator) -> Cloud:
    """Return points of whatever trimesh finds in a file: all meshes of its scene together, else all clouds."""
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # what is wrong is said once, by us
    where: Any = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    scene = trimesh.load_scene(where, file_type=suffix[1:], process=False)
    parts = scene.dump()
    meshes = [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if meshes:
        return _surface(meshes, count, random)
    points = [part for part in parts if hasattr(part, "vertices") and len(part.vertices)]
    if not points:
        raise FileError("it has neither faces nor points")
    found = []
    for part in points:
        colours = getattr(part, "colors", None)
        grey = np.full((len(part.vertices), 3), GREY, np.float32)
        some = colours is not None and len(colours) == len(part.vertices)
        rgb = np.asarray(colours, dtype=np.float64)[:, :3] / 255 if some else grey
        found.append((np.asarray(part.vertices, dtype=np.float32), rgb))
    xyz, rgb = (np.concatenate([pair[i] for pair in found]) for i in range(2))
    return Cloud(xyz, rgb.astype(np.float32), np.zeros_like(xyz))


def _surface(meshes: list[Any], count: int, random: np.random.Generator) -> Cloud:
    """Return points on meshes, shared out by area; triangles with a NaN corner or without area get none."""
    weights = []
    for mesh in meshes:
        with np.errstate(all="ignore"):
            area = np.asarray(mesh.area_faces, dtype=np.float64)
        weights.append(np.where(np.isfinite(area), area, 0.0))
    total = np.array([w.sum() for w in weights])
    if not total.sum() > 0:
        broken = any(not np.isfinite(mesh.vertices).all() for mesh in meshes)
        raise FileError("NaN vertices" if broken else "its triangles have no area")
    shares = random.multinomial(count, total / total.sum())
    parts = [_drawn(m, w, int(n), random) for m, w, n in zip(meshes, weights, shares, strict=True) if n]
    xyz, rgb, normals = (np.concatenate([part[i] for part in parts]).astype(np.float32) for i in range(3))
    return Cloud(xyz, rgb, normals, surface=True)


def _drawn(mesh: Any, weight: Array, count: int, random: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return points, colours and normals of one mesh."""
    from trimesh.sample import sample_surface

    textured = getattr(mesh.visual, "uv", None) is not None and _picture(mesh) is not None
    seed = int(random.integers(2**31))
    xyz, face, inside = sample_surface(mesh, count, face_weight=weight, return_barycentric=True, seed=seed)
    corner = mesh.vertices[mesh.faces[face]]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    return xyz, _colours(mesh, face, inside, textured), _unit(normal)


def _picture(mesh: Any) -> Any:
    """Return the texture of a mesh, or None."""
    material = getattr(mesh.visual, "material", None)
    found = getattr(material, "baseColorTexture", None)
    return found if found is not None else getattr(material, "image", None)


def _colours(mesh: Any, face: NDArray[np.integer[Any]], inside: Array, textured: bool) -> Array:
    """Return colours of points, (n, 3), from texture, vertices, faces or material, whichever there is first."""
    from trimesh.visual.color import uv_to_interpolated_color

    corners = mesh.faces[face]
    if textured:
        uv = (np.asarray(mesh.visual.uv)[corners] * inside[:, :, None]).sum(1)
        return np.asarray(uv_to_interpolated_color(uv, _picture(mesh)))[:, :3] / 255.0
    kind = getattr(mesh.visual, "kind", None)
    if kind == "vertex":
        rgb = np.asarray(mesh.visual.vertex_colors)[corners][:, :, :3] / 255.0
        return np.asarray((rgb * inside[:, :, None]).sum(1))
    if kind == "face":
        return np.asarray(mesh.visual.face_colors)[face][:, :3] / 255.0
    material = getattr(mesh.visual, "material", None)
    main = getattr(material, "main_color", None) if material is not None else None
    if main is not None:
        return np.tile(np.asarray(main, dtype=np.float64)[:3] / 255, (len(face), 1))
    return np.full((len(face), 3), GREY)
