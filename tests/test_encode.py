"""suffuse encode: what it writes is what a run with the same words reads; processes share it, and it goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from suffuse.errors import ConfigError


@pytest.fixture
def children(forked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """The processes that a command starts: copies of this one, which have loaded torch, in place of new ones."""
    found = []

    def started(command: list[str], env: dict[str, str], stdout: object) -> object:
        assert command[:4] == [sys.executable, "-m", "suffuse", "encode"]
        child = forked(tmp_path, *command[2:], **{name: env[name] for name in ("RANK", "WORLD_SIZE")})
        child.terminate, child.wait = child.kill, lambda: child.communicate() and child.returncode
        found.append(child)
        return child

    monkeypatch.setattr("suffuse.encode.subprocess.Popen", started)
    return found


def test_a_run_reads_what_was_encoded(local, children: list, tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "name=run"]
    done = local("suffuse", "encode", *words, "processes=2", "shard=500")
    assert done.returncode == 0 and len(children) == 2, done.stderr
    (folder,) = (tmp_path / "outputs/image/cache").iterdir()
    assert json.loads((folder / "train/split.json").read_text()) == {"count": 1442, "shard": 500}
    assert sorted(path.name for path in (folder / "val").iterdir()) == [
        "items-00000.pt", "split.json", "states-00000.npy",
    ]  # fmt: skip
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = local("train", *words, "cache=true")
    assert done.returncode == 0 and "cache: train" not in done.stdout, done.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    whole = np.concatenate([np.load(folder / f"train/states-{n:05d}.npy") for n in range(3)])
    assert whole.shape == (1442, 1, 8, 8) and abs(whole.min()) == 1.0

    # A shard that is missing, as after a kill, is made again, and only that.
    lost = folder / "train/items-00001.pt"
    lost.unlink()
    (folder / "train/split.json").unlink()
    done = local("suffuse", "encode", *words, "shard=500")
    assert done.returncode == 0 and lost.is_file(), done.stderr
    again = {path: path.stat().st_mtime_ns for path in folder.rglob("items-*.pt") if path != lost}
    assert all(times[path] == time for path, time in again.items())


def test_a_failure_of_a_process_is_the_commands(local, children: list, tmp_path: Path) -> None:
    words = ["modality=image", "data=image/folder", f"data.path={tmp_path / 'no'}"]
    done = local("suffuse", "encode", *words, "processes=2")
    assert done.returncode == 1 and "a process of encode failed" in done.stderr
    said = "".join(child.log.read_text() for child in children)
    assert len(children) == 2 and "no such folder" in said and "Traceback" not in said + done.stderr
    done = local("suffuse", "encode", "modality=image", "processes=0")
    assert done.returncode == 1 and "processes=0 must be a whole number of at least 1" in done.stderr


def test_help_without_torch(local) -> None:
    done = local("suffuse", "encode", "--help")
    assert done.returncode == 0 and "processes=N" in done.stdout


def test_captions_of_data_without_any(tmp_path: Path) -> None:
    from suffuse.data import Data, Spec
    from suffuse.encode import _texts

    class Plain(Data):
        def setup(self) -> None:
            self.train = self.val = [{"x": 0, "cond": {}, "index": 0}]  # type: ignore[assignment]
            self.spec = Spec()

    data = Plain()
    data.setup()
    with pytest.raises(ConfigError, match="no captions"):
        list(_texts(data))
