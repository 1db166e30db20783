"""A stranger's files: nothing in them runs, nothing they name is written elsewhere, nothing small becomes too large."""

from __future__ import annotations

import ast
import contextlib
import gzip
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from suffuse import cache, checkpoint, idx, listing, sharded, trust
from suffuse.errors import CheckpointError, DataError
from suffuse.listing import Columns
from suffuse.parts import Parts
from suffuse.sampling import write_samples
from suffuse.testing import command as inside

ROOT = Path(__file__).parents[1]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, Any]:
        return os.system, (f"touch '{self.marker}'",)


def test_the_payload_works(tmp_path: Path) -> None:
    """Else the tests below could not fail."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["file", "newest", "tree", "part", "drawn", "cache", "states"])
def test_no_pickle_runs(tmp_path: Path, kind: str) -> None:
    marker, bad = tmp_path / "ran", {"suffuse": Payload(tmp_path / "ran"), "state_dict": {}}
    folder = tmp_path / "step-000001.ckpt"
    with pytest.raises(Exception):  # noqa: B017 - whatever the reader says of it, it is not run
        if kind in ("file", "newest"):
            torch.save(bad, folder)
            checkpoint.read(folder) if kind == "file" else checkpoint.newest(tmp_path)
        elif kind in ("tree", "part"):
            sharded.write_part(folder, 0, 1, {})
            checkpoint.write({"tree": {"suffuse": {}, "state_dict": {}}, "world": 1}, folder / "tree.pt")
            assert "suffuse" in checkpoint.read(folder)
            torch.save(bad, folder / ("tree.pt" if kind == "tree" else "part-00000-of-00001.pt"))
            checkpoint.read(folder)
        elif kind == "drawn":
            parts = Parts(tmp_path, {})
            parts.missing(1)
            torch.save(bad, parts.folder / "part-000000.pt")
            parts.read(1)
        else:
            (tmp_path / "split.json").write_text('{"count": 1, "shard": 1}')
            states = np.array([Payload(marker)] if kind == "states" else [0.0], object if kind == "states" else float)
            np.save(tmp_path / "states-00000.npy", states, allow_pickle=True)
            torch.save(bad if kind == "cache" else {"cond": {}, "index": torch.zeros(1)}, tmp_path / "items-00000.pt")
            cache._Rows(tmp_path)
    assert not marker.exists()


CAREFUL = {
    "geom.py": "an unpickler that knows molecules and containers alone",
    "cifar.py": "an unpickler that knows arrays and containers alone",
    "modality.py": "a round trip of an object of the test's own",
}
"""Files that may name pickle, and why."""


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Return the dotted names of all calls in a file."""
    return [
        (ast.unparse(node.func), node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("root", ["core/suffuse", "plugins"])
def test_no_code_reads_pickles_or_unpacks_archives(root: str) -> None:
    found = []
    for path in (ROOT / root).rglob("*.py"):
        if "tests" in path.parts:
            continue
        for name, call in calls(path):
            words = {word.arg: ast.unparse(word.value) for word in call.keywords}
            bad = name == "torch.load" and words.get("weights_only") != "True"
            bad |= name in ("pickle.load", "pickle.loads", "pickle.Unpickler") and path.name not in CAREFUL
            bad |= words.get("allow_pickle", "False") != "False" or name in ("eval", "exec", "joblib.load")
            bad |= name == "yaml.load" and not any("Safe" in ast.unparse(arg) for arg in call.args[1:])
            bad |= name.rpartition(".")[2] in ("extractall", "unpack_archive")
            if bad:
                found.append(f"{path.name}:{call.lineno} {name}")
    assert not found


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "suffuse.encode.os.system", "suffuse.cli.sys.exit", "builtins.eval", "torch.load",
        "suffuse.build.instantiate", 7,
    ],
)  # fmt: skip
def test_a_stored_config_names_nothing_foreign(target: Any) -> None:
    with pytest.raises(CheckpointError, match=r"names .* at model\.norm\[0\]\._target_.*trust=true"):
        trust.check({"model": {"norm": [{"_target_": target}]}}, "x.ckpt")


def test_a_stored_config_names_what_is_ours(trained: Path) -> None:
    saved = checkpoint.read(trained / "checkpoints" / "last.ckpt")
    trust.check(saved["suffuse"]["config"], "x.ckpt")
    assert saved["suffuse"]["config"]["optimizer"]["_target_"] == "torch.optim.AdamW"


def test_sample_runs_no_foreign_target(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    saved, marker = checkpoint.read(trained / "checkpoints" / "last.ckpt"), tmp_path / "ran"
    saved["suffuse"]["config"]["codec"] = {"_target_": "shutil.copyfile", "src": __file__, "dst": str(marker)}
    checkpoint.write(saved, tmp_path / "theirs.ckpt")
    words = ["sample", f"ckpt={tmp_path / 'theirs.ckpt'}", "num=1", "trainer=cpu"]
    done = inside(tmp_path, *words)
    assert done.returncode == 1 and "'shutil.copyfile' at codec._target_" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not marker.exists()
    monkeypatch.setenv(trust.VARIABLE, "0")  # so that what the word sets is taken back
    with contextlib.suppress(AttributeError):  # a path is no codec
        inside(tmp_path, *words, "trust=true")
    assert marker.exists()  # the remedy is one, and the test above could fail


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png"])
@pytest.mark.parametrize("column", ["file_name", "hint"])
def test_metadata_names_nothing_outside(tmp_path: Path, name: str, column: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (folder / "a.png", tmp_path / "secret.png"):
        path.write_bytes(b"x")
    row = {"file_name": "a.png", "hint": "a.png"} | {column: name}
    (folder / "metadata.csv").write_text("file_name,hint\n" + f"{row['file_name']},{row['hint']}\n")
    with pytest.raises(DataError, match="outside the folder"):
        listing._described(folder, folder / "metadata.csv", False, Columns(hint="hint"))


def test_samples_stay_in_their_folder(tmp_path: Path) -> None:
    class Preview:
        def save(self, x: Any, stem: Path) -> Path:
            path = stem.with_suffix(".txt")
            path.write_text("x")
            return path

        def overview(self, xs: Any, captions: list[str], path: Path) -> None:
            path.write_text(str(captions))

    before = set(tmp_path.iterdir())
    rows = [{"index": 0, "caption": "../../evil", "condition": {"text": "../../evil"}}]
    write_samples(tmp_path / "out", torch.zeros(1, 1), rows, Preview())
    assert set(tmp_path.iterdir()) == before | {tmp_path / "out"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"00000.txt", "overview.png", "manifest.jsonl"}


def test_a_small_gzip_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "LIMIT", 2**20)
    path = tmp_path / "train-labels.gz"
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 1)) + struct.pack(">I", 2**22) + bytes(2**22)))
    assert path.stat().st_size < 2**14
    with pytest.raises(DataError, match="unpacks to more than 1 MiB"):
        idx.read(path, 1)


def test_a_picture_of_too_many_pixels_is_a_bad_file(tmp_path: Path) -> None:
    decode = pytest.importorskip("suffuse_image.data.decode")
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"IDAT" + zlib.compress(bytes(1000))
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    body += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "bomb.png").write_bytes(body)
    with pytest.raises(Exception, match=r"pixels|decompression bomb"):
        decode._open(tmp_path / "bomb.png")


def test_archives_name_nothing_outside(tmp_path: Path) -> None:
    files = pytest.importorskip("suffuse_shapes.files")
    import tarfile
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("../evil.ply", "x")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("/evil.ply")
        tar.addfile(info)
        link = tarfile.TarInfo("link.ply")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = set(tmp_path.rglob("*"))
    found = [content for name in ("a.zip", "a.tar") for _, content in files.members(tmp_path / name)]
    assert len(found) == 3 and all(isinstance(content, files.FileError) for content in found)
    assert set(tmp_path.rglob("*")) == before
