"""Folders: layouts, splits, classes, captions, damaged files, and what is said about bad ones."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from suffuse.errors import ConfigError, DataError
from suffuse.text import captions_of
from suffuse_image.data import Folder
from suffuse_image.data.pictures import flipped
from suffuse_image.hints import Given


def make(path: Path, **options) -> Folder:
    data = Folder(str(path), **({"size": [6, 8]} | options))
    data.setup()
    data.check()
    return data


def numbers(split) -> list[int]:
    """The file numbers of a split of `colours`, from its green channel."""
    return [round(split[i]["x"][1, 0, 0].item() * 255) for i in range(len(split))]


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_classes_are_subfolders(colours: Path) -> None:
    data = make(colours)
    assert data.spec.labels == ("blue", "red") and len(data.train) + len(data.val) == 40
    for split in (data.train, data.val):
        for i in range(len(split)):
            item = split[i]
            red, green, blue = item["x"][:, 3, 3].tolist()
            assert item["index"] == i and (red, blue) == ((0, 1), (1, 0))[item["cond"]["label"]]
            assert item["x"].dtype == torch.float32 and item["x"].shape == (3, 6, 8) and 0 <= green < 0.08


def test_the_split_depends_on_the_path_alone(colours: Path, tmp_path: Path) -> None:
    first = make(colours, val_fraction=0.3)
    assert 5 <= len(first.val) <= 19
    elsewhere = shutil.copytree(colours, tmp_path / "elsewhere")
    second = make(elsewhere, val_fraction=0.3, seed=9)
    assert numbers(first.val) == numbers(second.val)
    picture(elsewhere / "red" / "new.png")
    third = make(elsewhere, val_fraction=0.3)
    assert set(numbers(third.val)) - {0} == set(numbers(first.val)) - {0}


def test_a_tiny_folder_still_has_two_splits(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    data = make(tmp_path, val_fraction=0.001)
    assert (len(data.train), len(data.val), data.spec.labels) == (1, 1, ()) and data.train[0]["cond"] == {}


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_splits_are_subfolders(tmp_path: Path, name: str) -> None:
    for split, count in (("train", 3), (name, 2)):
        for i in range(count):
            picture(tmp_path / split / "cat" / f"{i}.png")
            picture(tmp_path / split / "dog" / f"{i}.png", "blue")
    data = make(tmp_path)
    assert (len(data.train), len(data.val), data.spec.labels) == (6, 4, ("cat", "dog"))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for i in range(5):
        picture(tmp_path / "train" / f"{i}.png")
        picture(tmp_path / "ship" / f"{i}.png")
    assert make(tmp_path).spec.labels == ("ship", "train")


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    for name in ("10", "2", "1"):
        for i in range(2):
            picture(tmp_path / name / f"{i}.png")
    assert make(tmp_path).spec.labels == ("1", "2", "10")


def test_csv_with_labels(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "images" / f"{i}.png", ("red", "blue")[i % 2])
    rows = [f"images/{i}.png,{('rot', 'blau')[i % 2]}" for i in range(3)] + ["images/3.png,"]
    (tmp_path / "metadata.csv").write_text("\ufefffile_name,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    data = make(tmp_path, val_fraction=0.3)
    found = {}
    for split in (data.train, data.val):
        for item in (split[i] for i in range(len(split))):
            found.setdefault(item["cond"]["label"], []).append(item["x"][0, 0, 0].item())
    assert data.spec.labels == ("blau", "rot") and found == {1: [1.0, 1.0], 0: [0.0], -1: [0.0]}


def test_jsonl_with_captions_and_splits(tmp_path: Path) -> None:
    names = ["train/a.png", "train/b.png", "validation/c.png"]
    for name in names:
        picture(tmp_path / name)
    lines = [json.dumps({"file_name": name, "text": f"ein Bild — {name}"}) for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    data = make(tmp_path)
    assert data.train.texts.texts == [("ein Bild — train/a.png",), ("ein Bild — train/b.png",)]
    assert data.val.texts.texts == [("ein Bild — validation/c.png",)] and data.spec.labels == ()
    assert captions_of(data.train[1]["cond"]["text"][None]) == ["ein Bild — train/b.png"]


def test_columns_of_captions_and_hints(tmp_path: Path) -> None:
    lines = []
    for number in range(12):
        picture(tmp_path / f"{number}.png")
        Image.new("RGB", (4, 4), (20 * number,) * 3).save(tmp_path / f"depth-{number}.png")
        row = {"file_name": f"{number}.png", "short": f"{number} a", "tags": [f"{number} b", f"{number} c"],
               "long": f"{number} as a model tells it", "conditioning_image": f"depth-{number}.png"}  # fmt: skip
        lines.append(json.dumps(row))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    how = {"text": ["short", "tags"], "rewritten": "long", "captions": {"share": 0.5}, "size": 4}
    data = make(tmp_path, hint=Given(grey=True), **how)
    number = int(data.train.texts.texts[0][0].split()[0])
    assert data.train.texts.texts[0] == (f"{number} a", f"{number} b", f"{number} c")
    drawn = {captions_of(data.train[(epoch, 0)]["cond"]["text"][None])[0] for epoch in range(60)}
    assert drawn == {*data.train.texts.texts[0], f"{number} as a model tells it"}
    image = data.train[0]["cond"]["image"]
    assert image.shape == (1, 4, 4) and torch.allclose(image, torch.tensor(2 * 20 * number / 255 - 1), atol=1e-6)
    assert torch.equal(data.train.batch([(0, 0)])["cond"]["image"][0], image)
    assert data.spec.about["hint"] == {"kind": "Given", "channels": 1, "size": [4, 4]}
    for options, said in (
        ({"text": "shrot"}, "data.text=shrot: .* did you mean 'short'"),
        ({"rewritten": "x"}, "data.rewritten=x: .* has no such column"),
        ({"hint": Given("depth")}, "data.hint.column=depth"),
    ):
        with pytest.raises(DataError, match=said):
            make(tmp_path, **options)
    with pytest.raises(DataError, match="has no metadata"):
        (tmp_path / "metadata.jsonl").unlink()
        make(tmp_path, text="short")


def test_hidden_files_and_other_files_are_passed_over(colours: Path) -> None:
    (colours / "red" / "._00.png").write_bytes(b"resource fork")
    (colours / ".thumbnails").mkdir()
    (colours / ".thumbnails" / "x.png").write_bytes(b"")
    (colours / "README.txt").write_text("hello")
    (colours / "red" / "circle").symlink_to(colours)
    data = make(colours, max_bad=0)
    assert data.spec.labels == ("blue", "red")


@pytest.mark.parametrize("cache", [True, False])
def test_damaged_files_are_left_out_up_to_a_limit(colours: Path, cache: bool, caplog) -> None:
    (colours / "red" / "zz.jpg").write_bytes(b"nothing")
    with pytest.raises(
        DataError, match=r"data.path: 1 of \d+ images cannot be read: red/zz.jpg \(not a picture\)"
    ) as e:
        make(colours, cache=cache)
    assert "data.max_bad (now 0.01)" in str(e.value) and "\n" not in str(e.value)
    with caplog.at_level(logging.WARNING):
        data = make(colours, cache=cache, max_bad=0.2)
    assert len(data.train) + len(data.val) == 40 and "1 of" in caplog.text and "red/zz.jpg" in caplog.text


def test_decoding_on_access_gives_the_same(colours: Path) -> None:
    kept, streamed = make(colours), make(colours, cache=False)
    for i in range(len(kept.train)):
        a, b = kept.train[i], streamed.train[i]
        assert torch.equal(a["x"], b["x"]) and a["cond"] == b["cond"] and a["index"] == b["index"]


def test_a_file_that_turns_out_damaged_is_answered_by_the_next(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / "train" / f"{number}.png")
    picture(tmp_path / "val" / "0.png")
    for name in ("3.png", "4.png"):
        path = tmp_path / "train" / name
        path.write_bytes(path.read_bytes()[:50])  # the header is sound, the pixels are gone
    data = make(tmp_path, cache=False, max_bad=0.2)
    assert [data.train[i]["index"] for i in (2, 3, 4, 5)] == [2, 5, 5, 5]
    strict = make(tmp_path, cache=False, max_bad=0.1)
    with pytest.raises(DataError, match=r"2 of 10 images cannot be read: 3.png \(.+\), 4.png"):
        strict.train[3]


def test_flips_are_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    for i in range(40):
        image = Image.new("L", (4, 2))
        image.putpixel((0, 0), 255)
        image.save(tmp_path / f"{i:02d}.png")
    data = make(tmp_path, size=[2, 4], flip=True, seed=5, batch_size=7)
    assert data.train.epochs and not data.val.epochs
    mirrored = [[data.train[(e, i)]["x"][0, 0, 3].item() == 1 for i in range(len(data.train))] for e in range(8)]
    assert mirrored == [[flipped(5, e, i) for i in range(len(data.train))] for e in range(8)]
    share = sum(map(sum, mirrored)) / sum(map(len, mirrored))
    assert 0.4 < share < 0.6 and mirrored[0] != mirrored[1]
    assert all(data.train[i]["x"][0, 0, 0] == 1 for i in range(len(data.train)))  # a bare index is not augmented
    streams = [islice(iter(make(tmp_path, size=[2, 4], flip=True, seed=5, batch_size=7, workers=w).train_loader()), 8)
               for w in (0, 2)]  # fmt: skip
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(*streams, strict=True))


def test_it_pickles(colours: Path) -> None:
    for cache in (True, False):
        data = make(colours, cache=cache)
        again = pickle.loads(pickle.dumps(data))
        assert torch.equal(again.train[3]["x"], data.train[3]["x"])


def test_setup_reads_once(colours: Path) -> None:
    data = make(colours)
    before = data.train
    data.setup()
    assert data.train is before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"path": None}, "data.path is not set; set data.path to a folder"),
        ({"val_fraction": 0}, "data.val_fraction=0 must lie between 0 and 1"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0 must"),
        ({"max_bad": 2}, "data.max_bad=2 must be a fraction"),
        ({"size": 0}, "data.size=0"),
        ({"batch_size": 0}, "data.batch_size=0"),
    ],
)
def test_bad_arguments(options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Folder(**({"path": "x"} | options))


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        make(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    missing, empty, single = tmp_path / "missing", tmp_path / "empty", tmp_path / "single"
    assert refusal(missing) == f"data.path={missing}: no such folder; set data.path to one with images"
    empty.mkdir()
    (empty / "notes.txt").write_text("no picture")
    assert refusal(empty).startswith(f"data.path={empty}: no images in {empty}; it needs files like")
    picture(single / "a.png")
    assert "one image cannot be split" in refusal(single)
    picture(tmp_path / "halves" / "train" / "a.png")
    (tmp_path / "halves" / "val").mkdir()
    assert f"no images in {tmp_path / 'halves' / 'val'}" in refusal(tmp_path / "halves")


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        (
            "metadata.csv",
            "file_name,label\na.png,x\nb.png,y\nc.png,z\n",
            "files that do not exist: b.png (line 3), c.png",
        ),
        ("metadata.csv", "file,label\na.png,x\n", "line 2 has no file_name (it has: file, label); add that column"),
        ("metadata.csv", "file_name\n../a.png\n", "names ../a.png, outside the folder"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"file_name": \n', "cannot read"),
        ("metadata.jsonl", '["a.png"]\n', "line 1 is not a JSON object"),
        ("metadata.jsonl", '{"file_name": 3}\n', "line 1 has no file_name"),
        ("metadata.csv", "file_name\n", "no images in"),
    ],
)
def test_bad_metadata(tmp_path: Path, name: str, text: str, wanted: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    assert wanted in refusal(tmp_path)


def test_emoji(real: Path) -> None:
    data = make(real / "noto_emoji", size=32)
    assert len(data.train) + len(data.val) == 3543 and 280 < len(data.val) < 430
    assert ("keycap #",) in data.train.texts.texts + data.val.texts.texts and data.spec.labels == ()
    mean = torch.stack([data.val[i]["x"] for i in range(100)]).mean().item()
    assert 0.6 < mean < 0.95  # mostly the white background
