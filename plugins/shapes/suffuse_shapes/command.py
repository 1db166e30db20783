"""Command: ``suffuse mesh`` turns clouds into closed meshes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from suffuse.errors import ConfigError, DataError, suggest

__all__ = ["mesh"]

HELP = """\
usage: suffuse mesh CLOUD [CLOUD ...] decoder=RUN [resolution=64] [format=glb] [out=DIR]

Turns clouds (files, or folders of .ply, .npy, .npz, .xyz) into closed meshes and says whether they are.
Writes NAME_mesh.glb beside each cloud, or into DIR, and meshes.jsonl with what each mesh is.

  decoder=RUN        a run of: train modality=shapes task=shapes/surface
  resolution=N       nodes of the grid along each axis (default 64)
  format=NAME        glb, ply, obj, stl or off (default glb)
  frame=fit          bring the clouds into the model's frame first
  out=DIR            where the files go

examples
  suffuse mesh outputs/shapes/s/samples/final decoder=outputs/shapes/surface
  suffuse mesh scan.ply decoder=outputs/shapes/surface frame=fit format=stl resolution=96
"""

KEYS = ("decoder", "resolution", "format", "frame", "out")
FORMATS = ("glb", "ply", "obj", "stl", "off")


def mesh(argv: list[str]) -> None:
    """Make meshes of clouds.

    Raises:
        ConfigError: For a word that has no meaning.
        DataError: When none of the clouds becomes a mesh.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return
    given, clouds = _parsed(argv)
    from suffuse_shapes import meshing
    from suffuse_shapes.conditioner import opened
    from suffuse_shapes.task import load

    decoder = load(given["decoder"])
    rows, good = [], 0
    for path in clouds:
        folder = Path(given["out"]).expanduser() if "out" in given else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        row: dict[str, object] = {"cloud": str(path)}
        try:
            cloud = opened(path, "cloud", 4096, 6, given.get("frame") == "fit", exact=False)
            found = meshing.mesh(decoder, cloud, int(given.get("resolution", "64")))
            what = meshing.check(found)
            target = folder / f"{path.stem}_mesh.{given.get('format', 'glb')}"
            meshing.write(found, target)
            row |= {"file": target.name, **what.record()}
            good += what.good
            state = "watertight" if what.good else "NOT watertight"
            print(f"{target}: {what.faces:,} faces, {what.bodies} bodies, volume {what.volume:.4g}, {state}")
        except DataError as error:
            row["skipped"] = str(error)
            print(f"{path}: skipped, {error}")
        rows.append((folder, row))
    for folder in dict.fromkeys(folder for folder, _ in rows):
        temporary = folder / ".meshes.jsonl.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for where, row in rows if where == folder))
        temporary.replace(folder / "meshes.jsonl")
    print(f"{good} of {len(rows)} clouds became watertight meshes")
    if not good:
        raise DataError("mesh: none of the clouds became a watertight mesh; is the decoder trained on such shapes?")


def _parsed(argv: Sequence[str]) -> tuple[dict[str, str], list[Path]]:
    given: dict[str, str] = {}
    words: list[str] = []
    for word in argv:
        key, sign, value = word.partition("=")
        if not sign:
            words.append(word)
        elif key not in KEYS:
            raise ConfigError(f"mesh: unknown key {key!r}{suggest(key, KEYS, listing='keys')}")
        else:
            given[key] = value
    if not given.get("decoder"):
        raise ConfigError("mesh: decoder is not set; give a run of task=shapes/surface as decoder=RUN")
    if given.get("format", "glb") not in FORMATS:
        raise ConfigError(f"mesh: format={given['format']}{suggest(given['format'], FORMATS, listing='formats')}")
    if given.get("frame", "keep") not in ("keep", "fit"):
        raise ConfigError(f"mesh: frame={given['frame']} must be keep or fit")
    if not given.get("resolution", "64").isdecimal():
        raise ConfigError(f"mesh: resolution={given['resolution']} is not a whole number")
    from suffuse_shapes.conditioner import paths

    found = [path for word in words for path in paths(word, "mesh")]
    if not found:
        raise ConfigError("mesh: no clouds; name files or a folder, as: suffuse mesh samples/ decoder=RUN")
    return given, found
