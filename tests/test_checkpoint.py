"""Files: never torn, never executed."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from suffuse import checkpoint
from suffuse.errors import CheckpointError

CONTENT = {"suffuse": {"step": 1}, "state_dict": {"w": torch.arange(3.0)}}


def test_round_trip_and_no_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "step-1.ckpt"
    checkpoint.write(CONTENT, path)
    assert torch.equal(checkpoint.read(path)["state_dict"]["w"], torch.arange(3.0))
    assert [p.name for p in path.parent.iterdir()] == ["step-1.ckpt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.write(CONTENT, path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="no space left"):
        checkpoint.write({**CONTENT, "more": 1}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_link_replaces_in_one_step(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / f"step-{step}.ckpt").write_text(str(step))
        checkpoint.link(tmp_path / f"step-{step}.ckpt", tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_text() == "2"
    (tmp_path / "step-2.ckpt").unlink()
    assert (tmp_path / "last.ckpt").read_text() == "2"


def test_link_copies_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("x")
    checkpoint.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "x"


def test_a_torn_file_names_a_whole_one(tmp_path: Path) -> None:
    checkpoint.write(CONTENT, tmp_path / "step-1.ckpt")
    torn = tmp_path / "last.ckpt"
    torn.write_bytes((tmp_path / "step-1.ckpt").read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"not a readable checkpoint .*try step-1.ckpt"):
        checkpoint.read(torn)


def test_a_strangers_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/ran",))

    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        checkpoint.read(path)
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(CheckpointError):
        checkpoint.read(path)
    assert not (tmp_path / "ran").exists()


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint written by suffuse"):
        checkpoint.read(tmp_path / "x.ckpt")


def test_an_absent_plugin_is_named(tmp_path: Path) -> None:
    saved = {"suffuse": {"plugin": {"modality": "smell", "dist": "suffuse-smell 0.3"}}}
    with pytest.raises(CheckpointError, match=r"'smell' was trained with suffuse-smell 0.3, which is not installed"):
        checkpoint.check_drawable(saved, tmp_path)
