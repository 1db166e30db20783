"""Shards of clips: coverage, resuming, ranks, and what is damaged."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from suffuse.errors import ConfigError, DataError
from suffuse.text import captions_of
from suffuse_video.data import Shards

from .conftest import film, numbers


def add(tar: tarfile.TarFile, name: str, raw: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(raw)
    tar.addfile(entry, io.BytesIO(raw))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Films of five frames; the first of film n is frame n."""
    folder = tmp_path_factory.mktemp("made")
    return [film(folder / f"{n}{('.mp4', '.webm')[n % 2]}", 5, size=(16, 16), first=n).read_bytes() for n in range(40)]


@pytest.fixture
def shards(tmp_path: Path, made: list[bytes]) -> Path:
    pytest.importorskip("webdataset")
    for k in range(5):
        with tarfile.open(tmp_path / f"s-{k:02d}.tar", "w") as tar:
            for n in range(8 * k, 8 * k + 8):
                add(tar, f"{n:04d}.{('mp4', 'webm')[n % 2]}", made[n])
                add(tar, f"{n:04d}.cls", ("even", "odd")[n % 2].encode())
                said = json.dumps({"caption": f"film {n}"}) if n % 3 else f"film {n}"
                add(tar, f"{n:04d}.{'json' if n % 3 else 'txt'}", said.encode())
    return tmp_path


def opened(path: Path, **options: Any) -> Shards:
    data = Shards(
        path=str(path / "s-{00..04}.tar"), frames=3, size=16, fps=10, labels=["even", "odd"],
        **({"batch_size": 4, "buffer": 6} | options),
    )  # fmt: skip
    data.setup()
    return data


def batches(data: Shards, count: int, **where: int) -> list[dict[str, Any]]:
    return list(islice(iter(data.train_loader(**where)), count))


def test_an_epoch_has_every_clip_once(shards: Path):
    data = opened(shards)
    assert len(data.val) == 8 and data.spec.labels == ("even", "odd")
    about = data.spec.about
    assert (about["frames"], about["height"], about["width"], about["fps"]) == (3, 16, 16, 10.0) and about["text"]
    assert about["prompts"] == sorted(f"film {n}" for n in range(32, 40))
    flat = []
    for batch in batches(data, 16):
        assert batch["x"].shape == (4, 3, 3, 16, 16)
        for x, text, label in zip(batch["x"], captions_of(batch["cond"]["text"]), batch["cond"]["label"], strict=True):
            n = int(text.split()[1])
            found = numbers(x, 0)
            assert found[0] - n in (0, 1, 2) and found == list(range(found[0], found[0] + 3)) and int(label) == n % 2
            flat.append(n)
    assert set(flat) == set(range(32)) and len(set(flat[:32])) > 26 and flat[:32] != sorted(flat[:32])


def test_held_out_clips_are_the_middle(shards: Path):
    data = opened(shards)
    for i in range(8):
        n = int(data.val.captions[i].split()[1])  # type: ignore[attr-defined]
        assert numbers(data.val[i]["x"], 0) == [n + 1, n + 2, n + 3]
    first = opened(shards, crop=False)
    starts = {numbers(x, 0)[0] - int(t.split()[1]) for b in batches(first, 4)
              for x, t in zip(b["x"], captions_of(b["cond"]["text"]), strict=True)}  # fmt: skip
    assert starts == {1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on(shards: Path, workers: int):
    data = opened(shards, workers=workers)
    whole = batches(data, 10)
    for start in (1, 4, 7):
        for got, wanted in zip(batches(data, 3, start=start), whole[start : start + 3], strict=True):
            assert torch.equal(got["x"], wanted["x"]) and torch.equal(got["cond"]["text"], wanted["cond"]["text"])


def test_ranks_share_the_shards(shards: Path):
    data = opened(shards)
    seen = [{t for b in batches(data, 3, rank=r, world=2) for t in captions_of(b["cond"]["text"])} for r in (0, 1)]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 24


def test_what_is_damaged(tmp_path: Path, made: list[bytes], caplog: pytest.LogCaptureFixture):
    pytest.importorskip("webdataset")
    for k in range(2):
        with tarfile.open(tmp_path / f"s-{k:02d}.tar", "w") as tar:
            for n in range(6):
                add(tar, f"{n}.mp4", b"broken" if n == 2 else made[2 * n])
            add(tar, "9.txt", b"a caption alone")
    path = str(tmp_path / "s-{00..01}.tar")
    with pytest.raises(DataError, match=r"2 of 7 clips cannot be used: 2 \(it is no video.*9 \(it has no clip\)"):
        Shards(path=path, frames=3, size=16).setup()
    data = Shards(path=path, frames=3, size=16, fps=10, max_bad=0.5, batch_size=5, buffer=1)
    data.setup()
    assert len(data.val) == 5 and "left out" in caplog.text
    assert [len(batch["index"]) for batch in batches(data, 4)] == [5] * 4
    with pytest.raises(ConfigError, match=r"no such file .*s-02"):
        Shards(path=str(tmp_path / "s-{00..02}.tar"))
    for options, said in (({"frames": 0}, "data.frames=0"), ({"fit": "x"}, "data.fit=x"), ({"path": None}, "not set")):
        with pytest.raises(ConfigError, match=said):
            Shards(**({"path": path} | options))
    (tmp_path / "s-01.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(DataError, match=r"data\.path: cannot read a shard"):
        Shards(path=path, frames=3, size=16).setup()


def test_pictures_need_clips_of_one_frame(tmp_path: Path):
    pytest.importorskip("webdataset")
    from suffuse_video.files import write_png

    raw = write_png(torch.full((3, 16, 16), 0.2), tmp_path / "a.png").read_bytes()
    for k in range(2):
        with tarfile.open(tmp_path / f"s-{k:02d}.tar", "w") as tar:
            add(tar, "0.png", raw)
    path = str(tmp_path / "s-{00..01}.tar")
    with pytest.raises(DataError, match="it is one picture"):
        Shards(path=path, frames=3, size=16).setup()
    data = Shards(path=path, frames=1, size=16, batch_size=1)
    data.setup()
    assert torch.allclose(data.val[0]["x"], torch.tensor(0.2)) and data.val[0]["x"].shape == (3, 1, 16, 16)


def test_webdataset_is_missing(shards: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ConfigError, match=r"data=video/webdataset needs webdataset: pip install 'suffuse-video"):
        opened(shards)
