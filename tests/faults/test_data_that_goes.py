"""Data that vanishes or is damaged while a run reads it: skipped and named, or one line when it is too much."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from suffuse.errors import DataError
from suffuse.failures import readable
from suffuse.shards import Shards

WORDS = ["data=image/folder", "data.size=16", "data.cache=false", "data.batch_size=8"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with two classes of 20 pictures."""
    numbers = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(20):
            pixels = numbers.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{i:02d}.png")
    return tmp_path / "pictures"


def spoil(folder: Path, count: int) -> set[str]:
    """Remove so many pictures of one class and cut as many of the other short; return their names."""
    gone = sorted((folder / "a").iterdir())[:count]
    cut = sorted((folder / "b").iterdir())[:count]
    for path in gone:
        path.unlink()
    for path in cut:
        path.write_bytes(path.read_bytes()[:60])
    return {f"{path.parent.name}/{path.name}" for path in (*gone, *cut)}


@pytest.mark.parametrize(("workers", "share"), [(0, 0.5), (1, 0.01)])
def test_pictures(forked, short, until, pictures: Path, tmp_path: Path, workers: int, share: float) -> None:
    more = [*WORDS, f"data.path={pictures}", f"data.workers={workers}", f"data.max_bad={share}", "steps=100000"]
    process = forked(tmp_path, "train", *short(*more))
    checkpoints = tmp_path / "outputs/image/run/checkpoints"
    until((checkpoints / "last.ckpt").is_file, process)
    names = spoil(pictures, 5)
    if share < 0.1:
        said, _ = process.communicate(timeout=60)
        found = [line for line in said.splitlines() if line.startswith("train: ")]
        assert process.returncode == 1 and len(found) == 1 and "Traceback" not in said, said
        assert found[0].startswith("train: data.path: 1 of ") and any(name in found[0] for name in names)
        assert "images cannot be read" in found[0] and "allow for more with data.max_bad (now 0.01)" in found[0]
        return
    step = max(int(p.stem[5:]) for p in checkpoints.glob("step-*"))
    # At least one whole epoch more, of 36 pictures at most.
    until(lambda: any(int(p.stem[5:]) > step + 7 for p in checkpoints.glob("step-*")), process)
    assert process.poll() is None, process.log.read_text()
    process.kill()
    said, _ = process.communicate()
    assert "Traceback" not in said and "images cannot be read and are left out" in said
    assert "No such file" in said and sum(name in said for name in names) >= 3, said


class Numbers(Shards):
    """Shards of files with a number as text."""

    what = "numbers"

    def suffixes(self) -> set[str]:
        return {".num"}

    def decode(self, raw: bytes, epoch: int, number: int) -> torch.Tensor:
        return torch.tensor([float(raw)])

    def kept(self, items: list, captions: list[str]) -> torch.utils.data.Dataset:
        return torch.utils.data.TensorDataset(torch.stack([item["x"] for item in items]))

    def facts(self, captions: list[str]) -> dict:
        return {}


def shard(path: Path, bad: int = 0) -> None:
    """Write a shard of 20 numbers, so many of which are none."""
    with tarfile.open(path, "w") as file:
        for i in range(20):
            text = b"none" if i < bad else str(i).encode()
            info = tarfile.TarInfo(f"{i:03d}.num")
            info.size = len(text)
            file.addfile(info, io.BytesIO(text))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", ["gone", "cut", "other", "few", "many"])
def test_shards(tmp_path: Path, fault: str, workers: int) -> None:
    pytest.importorskip("webdataset")
    for number in range(3):
        shard(tmp_path / f"{number}.tar")
    data = Numbers(str(tmp_path), text=False, buffer=1, batch_size=4, workers=workers, max_bad=0.1)
    data.setup()
    path = tmp_path / "1.tar"
    batches = iter(data.train_loader())
    next(batches)
    if fault == "gone":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif fault == "other":
        path.write_bytes(b"not a shard" * 500)
    else:
        shard(path, bad={"few": 1, "many": 12}[fault])
    if fault == "few":  # of 38 numbers in an epoch, which are skipped
        seen = torch.cat([next(batches)["x"] for _ in range(40)])
        assert torch.isfinite(seen).all()
        return
    with pytest.raises(DataError) as found, readable({}):
        for _ in range(200):
            next(batches)
    said = str(found.value)
    assert "Traceback" not in said and "\n" not in said, said
    if fault == "many":
        assert "numbers cannot be used; the last: could not convert string to float" in said
    else:
        assert "data.path: cannot read a shard" in said and "1.tar" in said, said
