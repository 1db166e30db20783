"""A disk that is full or takes nothing: one line that names the file, what was saved is whole, and the job goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from suffuse.disk import named
from suffuse.training.loggers import CSVLogger


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that sets how large a file system in memory is, or what it allows, and returns where it is."""
    folder, mounted = tmp_path / "small", []

    def mount(options: str) -> Path:
        more = ",remount" if mounted else ""
        folder.mkdir(exist_ok=True)
        how = ["mount", "-t", "tmpfs", "-o", options + more, "tmpfs", str(folder)]
        try:
            done = subprocess.run(how, capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"no file system can be mounted here ({error})")
        if done.returncode:
            pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
        mounted.append(options)
        return folder

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only the superuser of Linux may mount a small file system")
    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def line(done: subprocess.CompletedProcess[str], command: str) -> str:
    """Return the only line that an error has."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    found = [text for text in done.stderr.splitlines() if text.startswith(f"{command}: ")]
    assert len(found) == 1, done.stderr
    return found[0]


def test_a_run_goes_on_once_there_is_space_again(local, small, tiny: list[str], trained: Path) -> None:
    size = (trained / "checkpoints/last.ckpt").stat().st_size
    folder = small(f"size={size * 3 // 2}")  # one checkpoint, but not two
    said = line(local("train", *tiny, "name=tiny", cwd=folder), "train")
    assert "no space left on the disk of outputs/image/tiny/checkpoints while writing step-000004.ckpt; what is" in said
    assert said.endswith("free some space and continue with ckpt=auto")
    run = folder / "outputs/image/tiny"
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["last.ckpt", "step-000002.ckpt"]
    small("size=64m")
    done = local("train", *tiny, "name=tiny", "ckpt=auto", cwd=folder)
    assert done.returncode == 0 and "at step 2" in done.stdout, done.stderr
    a, b = (torch.load(one / "checkpoints/last.ckpt", weights_only=True) for one in (trained, run))
    for kind in ("state_dict", "current_model_state", "optimizer_states"):
        torch.testing.assert_close(a[kind], b[kind], rtol=0, atol=0)


def test_samples_go_on_once_there_is_space_again(local, small, trained: Path) -> None:
    folder = small("size=4k")
    how = ["sample", f"ckpt={trained}", "num=4", "trainer=cpu", f"out={folder}/drawn"]
    assert "while writing part-000000.pt; what is there" in line(local(*how), "sample")
    small("size=24k")
    said = line(local(*how), "sample")
    assert f"no space left on the disk while writing {folder}/drawn/" in said
    assert said.endswith("free some space and give the same command again")
    small("size=1m")
    done = local(*how)
    assert done.returncode == 0 and "1 of 1 batches are there already" in done.stdout, done.stderr
    assert len(list((folder / "drawn").glob("0*.png"))) == 4 and not (folder / "drawn/.parts").exists()


@pytest.mark.parametrize(("options", "why"), [("size=1m,ro", "Read-only file system"), ("size=4k", "No space left")])
def test_a_folder_that_takes_nothing_is_said_at_once(local, small, tiny: list[str], options: str, why: str) -> None:
    folder = small(options)
    done = local("train", *tiny, cwd=folder)
    said = line(done, "train")
    assert said.startswith(f"train: cannot write in {folder} ({why}") and "start in another folder" in said
    assert "run outputs" not in done.stdout


def test_samples_in_a_read_only_folder(local, small, trained: Path) -> None:
    folder = small("size=1m,ro")
    done = local("sample", f"ckpt={trained}", "num=4", "trainer=cpu", f"out={folder}/drawn")
    said = line(done, "sample")
    assert f"{folder}/drawn: Read-only file system; name a folder where you may read and write" in said


def test_a_table_of_metrics_that_cannot_grow_is_named(small) -> None:
    folder = small("size=16k")
    logger = CSVLogger(str(folder))
    with pytest.raises(OSError) as found:
        for step in range(10000):
            logger.log_metrics({"loss": 0.1}, step)
    assert found.value.filename == str(folder / "metrics.csv")


def test_a_writer_with_errors_of_its_own_is_understood(small) -> None:
    path = small("size=8k") / "sample.flac"
    with pytest.raises(OSError, match="No space left") as found, named(path):
        raise RuntimeError("encoder error -2")
    assert found.value.filename == str(path)
    small("size=8m")
    with pytest.raises(RuntimeError, match="encoder"), named(path):
        raise RuntimeError("encoder error -2")
