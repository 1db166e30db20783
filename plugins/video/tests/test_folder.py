"""Folder: what is read of folders of videos, frame folders and pictures, and which stretch of each."""

from __future__ import annotations

import logging
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from suffuse.codec import Identity
from suffuse.errors import ConfigError, DataError
from suffuse.listing import held_out, splits
from suffuse.model import Facts
from suffuse.text import captions_of
from suffuse_video.data.folder import Folder
from suffuse_video.files import suffixes, write_png

from .conftest import film, numbers


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve films of two classes, of various containers, rates and lengths."""
    root = tmp_path_factory.mktemp("films")
    for kind, colour in (("blue", (0.2, 0.2, 1)), ("red", (1, 0.2, 0.2))):
        for i in range(6):
            end = (".mp4", ".webm", ".mkv")[i % 3]
            film(root / kind / f"{i}{end}", 20 + 4 * i, (10, 20)[i % 2], colour=colour)
    return root


def folder(path: Path, **options: Any) -> Folder:
    data = Folder(path=str(path), **({"frames": 4, "size": [32, 48], "fps": 10} | options))
    data.setup()
    data.check()
    return data


def pictures(path: Path, count: int = 5, level: int = 10, name: str = "{:03d}.png") -> Path:
    """Write a folder of pictures whose grey is `level` plus their number."""
    path.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((32, 48, 3), level + i, np.uint8)).save(path / name.format(i))
    return path


def levels(clip: torch.Tensor) -> list[int]:
    return [round(float(v) * 255) for v in clip.mean((0, 2, 3))]


# Classes, captions and splits.


def test_subfolders_are_classes(films: Path):
    data = folder(films)
    assert data.spec.labels == ("blue", "red") and len(data.train) + len(data.val) == 12
    assert dict(data.spec.about) == {"frames": 4, "height": 32, "width": 48, "fps": 10.0}
    for split in (data.train, data.val):
        for i in range(len(split)):
            item = split[(0, i) if split.epochs else i]
            assert item["x"].shape == (3, 4, 32, 48) and item["index"] == i
            blue = item["x"][2, :, 20:, 30:].mean() > item["x"][0, :, 20:, 30:].mean()
            assert item["cond"] == {"label": int(not blue)}


def test_the_split_is_that_of_pictures(films: Path):
    data = folder(films, val_fraction=0.3)
    held = held_out(splits(films, suffixes())["all"], 0.3)
    assert {f.name for f in data.val.films} == held and not held & {f.name for f in data.train.films}


def test_metadata(tmp_path: Path):
    film(tmp_path / "a" / "one.mp4", 8)
    film(tmp_path / "two.webm", 8)
    pictures(tmp_path / "frames")
    film(tmp_path / "four.mp4", 8)
    rows = ['{"file_name": "a/one.mp4", "text": "a man walks", "label": "man"}',
            '{"file_name": "two.webm", "text": "a dog", "label": "dog"}',
            '{"file_name": "frames", "text": "it grows lighter"}',
            '{"file_name": "four.mp4", "label": "dog"}']  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    data = folder(tmp_path, val_fraction=0.25)
    assert data.spec.labels == ("dog", "man")
    assert data.spec.about["text"] and data.spec.about["prompts"] == ["a dog", "a man walks", "it grows lighter"]
    found = {}
    for split in (data.train, data.val):
        for i, of in enumerate(split.films):
            item = split[i]
            found[of.name] = (item["cond"]["label"], captions_of(item["cond"]["text"][None])[0])
    assert found == {"a/one.mp4": (1, "a man walks"), "two.webm": (0, "a dog"), "frames": (-1, "it grows lighter"),
                     "four.mp4": (0, "")}  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text(rows[0] + '\n{"file_name": "none.mp4"}')
    with pytest.raises(DataError, match=r"files that do not exist: none.mp4 .line 2."):
        folder(tmp_path)


def test_captions_beside(tmp_path: Path):
    for i in range(3):
        film(tmp_path / f"{i}.mp4", 8)
        (tmp_path / f"{i}.txt").write_text(f"clip {i}\n")
    pictures(tmp_path / "v.1")
    (tmp_path / "v.1.txt").write_text("grey")
    data = folder(tmp_path)
    assert data.spec.about["prompts"] == ["clip 0", "clip 1", "clip 2", "grey"] and data.spec.labels == ()


def test_folders_of_splits(tmp_path: Path):
    for part, count in (("train", 3), ("val", 2)):
        for i in range(count):
            film(tmp_path / part / f"{i}.mp4", 8)
    # A name may occur in both.
    data = folder(tmp_path)
    assert (len(data.train), len(data.val)) == (3, 2)


# Stretches.


@pytest.mark.parametrize("cache", [True, False])
def test_another_stretch_in_each_epoch(tmp_path: Path, cache: bool):
    for i in range(3):
        film(tmp_path / f"{i}.mp4", 24)
    data = folder(tmp_path, cache=cache, seed=3)
    firsts = []
    for epoch in range(60):
        found = numbers(data.train[(epoch, 0)]["x"])
        assert found == list(range(found[0], found[0] + 4))
        firsts.append(found[0])
    # 24 frames have 21 stretches of 4.
    assert set(firsts) <= set(range(21)) and len(set(firsts)) > 15 and {0, 20} & set(firsts)
    assert firsts[7] == numbers(data.train[(7, 0)]["x"])[0]
    other = [numbers(data.train[(epoch, 1)]["x"])[0] for epoch in range(10)]
    assert other != firsts[:10]
    # Held-out files give their middle, and so does an item without an epoch.
    assert numbers(data.val[0]["x"]) == [10, 11, 12, 13] == numbers(data.train[0]["x"]) and not data.val.epochs
    fixed = folder(tmp_path, cache=cache, crop=False)
    assert not fixed.train.epochs and numbers(fixed.train[0]["x"]) == [10, 11, 12, 13]


def test_streaming_yields_what_memory_does(films: Path):
    for options in ({}, {"frames": 16, "short": "repeat"}, {"frames": 40}, {"fps": None}, {"fps": 7.5, "size": 16}):
        kept, streamed = (folder(films, cache=cache, seed=2, **options) for cache in (True, False))
        for epoch in range(2):
            for i in range(len(kept.train)):
                a, b = kept.train[(epoch, i)], streamed.train[(epoch, i)]
                assert torch.equal(a["x"], b["x"]) and a["cond"] == b["cond"], (options, epoch, i)


def test_rates(tmp_path: Path):
    for i in range(2):
        film(tmp_path / f"{i}.mp4", 40, 20)
    assert numbers(folder(tmp_path, fps=5).val[0]["x"]) == [12, 16, 20, 24]
    own = folder(tmp_path, fps=None)
    assert numbers(own.val[0]["x"]) == [18, 19, 20, 21] and own.spec.about["fps"] == 20


@pytest.mark.parametrize("cache", [True, False])
def test_files_shorter_than_a_clip(tmp_path: Path, cache: bool):
    for i in range(3):
        film(tmp_path / f"{i}.mp4", 3)
    assert numbers(folder(tmp_path, frames=7, cache=cache).val[0]["x"]) == [0, 1, 2, 2, 2, 2, 2]
    assert numbers(folder(tmp_path, frames=7, cache=cache, short="repeat").val[0]["x"]) == [0, 1, 2, 0, 1, 2, 0]
    film(tmp_path / "long.mp4", 9)
    with pytest.raises(DataError, match=r"0.mp4 \(it has 3 frames at 10 per second, a clip needs 7 .data.short=hold"):
        folder(tmp_path, frames=7, cache=cache, short="error")
    for i in range(9):
        film(tmp_path / f"long{i}.mp4", 9)
    data = folder(tmp_path, frames=7, cache=cache, short="error", max_bad=0.4, val_fraction=0.4)
    assert len(data.train) + len(data.val) == 10


def test_flip(tmp_path: Path):
    for i in range(2):
        film(tmp_path / f"{i}.mp4", 8)
    data = folder(tmp_path, flip=True, crop=False)
    plain = data.train[0]["x"]
    mirrored = [torch.equal(data.train[(epoch, 0)]["x"], plain.flip(-1)) for epoch in range(40)]
    assert 10 < sum(mirrored) < 30 and not data.val.epochs
    assert all(m or torch.equal(data.train[(e, 0)]["x"], plain) for e, m in enumerate(mirrored))


# Frame folders and pictures.


def test_frame_folders(tmp_path: Path):
    for i, kind in enumerate(("day", "night")):
        for n in range(2):
            pictures(tmp_path / kind / f"clip{n}", 6, 100 * i + 40 * n, "shot_{}.png")
    film(tmp_path / "day" / "other.mp4", 8)
    data = folder(tmp_path, crop=False)
    assert data.spec.labels == ("day", "night") and len(data.train) + len(data.val) == 5
    found = {f.name: levels(s[i]["x"]) for s in (data.train, data.val) for i, f in enumerate(s.films)}
    assert found["day/clip1"] == [41, 42, 43, 44] and found["night/clip0"] == [101, 102, 103, 104]
    with pytest.raises(DataError, match="only pictures"):
        folder(tmp_path / "night", frame_folders=False)
    single = folder(tmp_path, frames=1, frame_folders=False, crop=False)
    assert len(single.train) + len(single.val) == 25 and single.train[0]["x"].shape == (3, 1, 32, 48)


def test_folders_of_frames_are_no_classes(tmp_path: Path):
    for i in range(4):
        pictures(tmp_path / f"clip{i}", 5)
    data = folder(tmp_path)
    assert data.spec.labels == () and len(data.train) + len(data.val) == 4


def test_pictures_are_left_out_of_clips(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for i in range(4):
        film(tmp_path / f"{i}.mp4", 8)
        write_png(torch.rand(3, 32, 48), tmp_path / f"{i}.thumb.png")
    with caplog.at_level(logging.INFO):
        data = folder(tmp_path)
    assert len(data.train) + len(data.val) == 4 and "4 pictures are left out" in caplog.text
    for path in tmp_path.glob("*.mp4"):
        path.unlink()
    with pytest.raises(DataError, match=r"only pictures, as .*data\.frames=1"):
        folder(tmp_path)


# Buckets.


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide and square films, long and short ones, and pictures."""
    root = tmp_path_factory.mktemp("mixed")
    for i in range(7):
        film(root / f"wide{i}.mp4", 20, size=(32, 64))
        film(root / f"square{i}.mp4", 20, size=(48, 48))
    for i in range(5):
        film(root / f"short{i}.mp4", 6, size=(48, 48))
        write_png(torch.full((3, 40, 40), (20 + i) / 255), root / f"picture_{'abcde'[i]}.png")
    return root


BUCKETS = [[8, 32, 32], [8, 24, 48], [4, 32, 32], [1, 32, 32]]


def test_files_go_to_their_buckets(mixed: Path):
    data = folder(mixed, buckets=BUCKETS, crop=False)
    for split in (data.train, data.val):
        for i, of in enumerate(split.films):
            kind = of.name.removesuffix(".mp4")[:-1]
            wanted = {"wide": (8, 24, 48), "square": (8, 32, 32), "short": (4, 32, 32)}.get(kind, (1, 32, 32))
            assert split[i]["x"].shape == (3, *wanted)
    about = data.spec.about
    assert (about["frames"], about["height"], about["width"]) == (8, 24, 48) and about["buckets"] == BUCKETS
    assert "8 x 24 x 48 (" in data.describe() and folder(mixed, buckets=BUCKETS[:1]).describe() == ""


def batches(data: Folder, count: int, **where: int) -> list[dict[str, Any]]:
    return list(islice(iter(data.train_loader(**where)), count))


def test_batches_of_buckets(mixed: Path):
    data = folder(mixed, buckets=BUCKETS, batch_size=3)
    seen: dict[int, int] = {}
    shapes = set()
    for batch in batches(data, 60):
        assert batch["x"].shape[0] == 3
        shapes.add(tuple(batch["x"].shape[2:]))
        for i in batch["index"].tolist():
            assert data.train.shapes[i] == batch["x"].shape[2:]
            seen[i] = seen.get(i, 0) + 1
    assert shapes == {tuple(b) for b in BUCKETS} and set(seen) == set(range(len(data.train)))
    assert max(seen.values()) - min(seen.values()) <= 3
    scaled = folder(mixed, buckets=BUCKETS, batch_size=2, scale_batch=True)
    found = {tuple(b["x"].shape[2:]): len(b["x"]) for b in batches(scaled, 60)}
    here = [scaled.train.shapes.count(tuple(b)) for b in BUCKETS]
    assert [found[tuple(b)] for b in BUCKETS] == [2, 2, min(4, here[2]), min(18, here[3])]


def test_a_resumed_run_sees_the_same_batches(mixed: Path):
    data = folder(mixed, buckets=BUCKETS, batch_size=2, seed=4)
    whole = batches(data, 30)
    for start in (1, 7, 13, 28):
        for got, wanted in zip(batches(data, 2, start=start), whole[start : start + 2], strict=True):
            assert torch.equal(got["x"], wanted["x"]) and torch.equal(got["index"], wanted["index"])
    helped = folder(mixed, buckets=BUCKETS, batch_size=2, seed=4, workers=2)
    for got, wanted in zip(batches(helped, 6, start=5), whole[5:11], strict=True):
        assert torch.equal(got["x"], wanted["x"])
    ranks = [batches(data, 20, rank=r, world=2) for r in (0, 1)]
    for a, b in zip(*ranks, strict=True):
        assert a["x"].shape == b["x"].shape


def test_validation_covers_the_clips_once(mixed: Path):
    data = folder(mixed, buckets=BUCKETS, batch_size=2, val_fraction=0.5)
    for world in (1, 2, 3):
        found = [b for r in range(world) for b in data.val_loader(rank=r, world=world)]
        assert sorted(i for b in found for i in b["index"].tolist()) == list(range(len(data.val)))
    assert sum(len(b["index"]) for b in data.val_loader(limit=5)) == 5


def test_facts_are_those_of_the_largest_bucket(mixed: Path):
    data = folder(mixed, buckets=BUCKETS)
    facts = Facts.measure(data, Identity(), limit=64)
    assert facts.shape == (3, 8, 24, 48) and 0 < facts.sigma_data < 1
    count = sum(shape == (8, 24, 48) for shape in data.train.shapes)
    assert len(data.sample(64)) == count and len({i["index"] for i in data.sample(3)}) == 3
    assert all(item["x"].shape == (3, 8, 24, 48) for item in data.sample(64))
    assert len({item["x"].shape for item in data.sample(64, held_out=True)}) <= 1
    plain = folder(mixed, frames=4)
    assert len(plain.sample()) == len(plain.train)


def test_derived_buckets(mixed: Path):
    data = folder(mixed, buckets="auto", frames=16, size=32, batch_size=2)
    assert {s.frames for s in data.shapes} == {16, 4, 1}
    assert (16, 32, 32) in data.shapes and any(s.width > 1.4 * s.height for s in data.shapes)
    assert all(s.height * s.width <= 32 * 32 for s in data.shapes)
    batch = batches(data, 1)[0]
    assert tuple(batch["x"].shape[2:]) in data.shapes


def test_data_pickles(mixed: Path):
    data = folder(mixed, buckets=BUCKETS)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(batches(data, 1)[0]["x"], batches(again, 1)[0]["x"])
    assert data.fingerprint() == again.fingerprint() and "wide0.mp4" in data.fingerprint()


# What is wrong.


def test_damaged_files_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for i in range(8):
        film(tmp_path / f"{i}.mp4", 8)
    (tmp_path / "bad.mp4").write_bytes(b"")
    (tmp_path / "text.webm").write_text("text")
    with pytest.raises(DataError, match=r"clips cannot be used: .*(it is empty|it is no video)") as caught:
        folder(tmp_path)
    assert "data.max_bad" in str(caught.value) and "\n" not in str(caught.value)
    data = folder(tmp_path, max_bad=0.6)
    assert len(data.train) + len(data.val) == 8 and "left out" in caplog.text and "bad.mp4 (it is empty)" in caplog.text


def test_a_file_that_breaks_later(mixed: Path, tmp_path: Path):
    for i in range(6):
        film(tmp_path / f"{i}.mp4", 12, size=(32, 64) if i % 2 else (48, 48))
    data = folder(tmp_path, cache=False, max_bad=0.4, buckets=[[4, 32, 32], [4, 32, 64]])
    first = data.train.shapes[0]
    other = next(i for i in range(1, len(data.train)) if data.train.shapes[i] == first)
    source = data.train.films[0].source
    assert isinstance(source, Path)
    source.write_bytes(b"x" * 100)
    # The next of the same bucket stands in, and it alone.
    item = data.train[(0, 0)]
    assert item["index"] == other and item["x"].shape[1:] == first
    for of in data.train.films:
        assert isinstance(of.source, Path)
        of.source.write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="cannot be used"):
        [data.train[(0, i)] for i in range(len(data.train))]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"path": None}, r"data\.path is not set"), ({"val_fraction": 1.0}, r"data\.val_fraction"),
     ({"max_bad": 1}, "max_bad"), ({"frames": 0}, r"data\.frames=0"), ({"size": [4]}, r"data\.size"),
     ({"size": 0}, r"data\.size=0"), ({"fps": 0}, r"data\.fps=0"), ({"fit": "corp"}, "did you mean 'crop'"),
     ({"short": "holt"}, "did you mean 'hold'"), ({"background": "blak"}, r"data\.background=blak"),
     ({"buckets": [[8, 64]]}, r"data\.buckets"), ({"buckets": "atuo"}, r"data\.buckets=atuo")],
)  # fmt: skip
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        Folder(**({"path": str(tmp_path)} | options))


def test_empty_folders(tmp_path: Path):
    with pytest.raises(DataError, match=r"no videos in .*\.mp4"):
        folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        folder(tmp_path / "none")
    film(tmp_path / "one.mp4", 8)
    with pytest.raises(DataError, match="one clip cannot be split"):
        folder(tmp_path)


def test_the_config_composes(films: Path):
    from omegaconf import OmegaConf
    from suffuse.app import compose_train
    from suffuse.build import build

    cfg = OmegaConf.to_container(
        compose_train(
            ["modality=video", "data=video/folder", f"data.path={films}", "data.frames=4", "data.size=16", "name=x",
             "data.buckets=[[4,16,16],[2,16,24]]"]
        ), resolve=True,
    )  # fmt: skip
    data = build(cfg["data"], "data", seed=0)
    data.setup()
    assert data.spec.labels == ("blue", "red") and data.shapes == [(4, 16, 16), (2, 16, 24)]
