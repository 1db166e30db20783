"""The named data sets: digits, MNIST and its kin from IDX files, CIFAR-10, Hugging Face."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from suffuse import idx
from suffuse.errors import ConfigError, DataError
from suffuse_image.data import CIFAR10, MNIST, Digits, FashionMNIST, HuggingFace
from suffuse_image.data.pictures import Pictures


def write(path: Path, array: np.ndarray, pack: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    if pack:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def mnist(folder: Path, pack: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    random, made = np.random.default_rng(0), {}
    for part, count in (("train", 30), ("t10k", 12)):
        x = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        y = (np.arange(count) % 10).astype(np.uint8)
        write(folder / f"{part}-images-idx3-ubyte", x, pack)
        write(folder / f"{part}-labels-idx1-ubyte", y, pack)
        made[part] = (x, y)
    return made


def test_digits() -> None:
    from sklearn.datasets import load_digits

    data = Digits()
    data.setup()
    assert (len(data.train), len(data.val)) == (1442, 355) and data.spec.labels == tuple("0123456789")
    counts, held = (torch.bincount(split.labels, minlength=10) for split in (data.train, data.val))
    assert torch.equal(held, (counts + held) // 5)
    total = sum(split[i]["x"].double().sum().item() for split in (data.train, data.val) for i in range(len(split)))
    assert total == pytest.approx(load_digits().images.sum() / 16, rel=1e-9)
    assert data.train[0]["x"].shape == (1, 8, 8) and data.train.pixels.max() == 16


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("where", ["MNIST/raw", "raw", "."])
def test_mnist_from_idx_files(tmp_path: Path, pack: bool, where: str) -> None:
    made = mnist(tmp_path / where, pack)
    data = MNIST(str(tmp_path))
    data.setup()
    for split, (x, y) in ((data.train, made["train"]), (data.val, made["t10k"])):
        assert len(split) == len(x) and [split[i]["cond"]["label"] for i in range(len(x))] == y.tolist()
        found = torch.stack([split[i]["x"] for i in range(len(x))])[:, 0]
        assert torch.equal(found, torch.from_numpy(x).float() / 255)


def test_torchvision_agrees(tmp_path: Path) -> None:
    from torchvision import datasets

    mnist(tmp_path / "MNIST" / "raw")
    ours, theirs = MNIST(str(tmp_path)), datasets.MNIST(str(tmp_path), train=False)
    ours.setup()
    assert torch.equal(ours.val.pixels[:, 0], theirs.data) and torch.equal(ours.val.labels, theirs.targets)


def test_fashion_has_its_own_names(tmp_path: Path) -> None:
    mnist(tmp_path / "FashionMNIST" / "raw")
    data = FashionMNIST(str(tmp_path), flip=True)
    data.setup()
    assert data.spec.labels[9] == "ankle boot" and data.train.epochs and not data.val.epochs


def test_missing_files_are_named(tmp_path: Path) -> None:
    for kind, folder in ((MNIST, "MNIST/raw"), (FashionMNIST, "FashionMNIST/raw"), (CIFAR10, "cifar-10-batches-py")):
        with pytest.raises(DataError) as caught:
            kind(root=str(tmp_path)).setup()
        text = str(caught.value)
        assert text.startswith(f"data.root={tmp_path}: ") and str(tmp_path / folder) in text
        assert "data.download=true" in text and "\n" not in text


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("Error downloading x:\nno route")

    monkeypatch.setattr(datasets, "MNIST", fail)
    with pytest.raises(DataError, match=r"^data.download=true: cannot fetch MNIST into data.root=.*no route$"):
        MNIST(str(tmp_path), download=True).setup()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[:-5], "should hold 9408 values and holds 9403"),
        (lambda data: b"\0\0\x0d\3" + data[4:], "is no IDX file of 3-dimensional bytes"),
        (lambda data: b"", "is no IDX file"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, damage, text: str) -> None:
    mnist(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=text):
        MNIST(str(tmp_path)).setup()


def test_truncated_gzip(tmp_path: Path) -> None:
    mnist(tmp_path, pack=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cannot read .*train-images-idx3-ubyte.gz"):
        idx.read(path, 3)


def test_labels_must_fit(tmp_path: Path) -> None:
    mnist(tmp_path)
    write(tmp_path / "train-labels-idx1-ubyte", np.zeros(29, np.uint8), pack=False)
    with pytest.raises(DataError, match="do not belong together"):
        MNIST(str(tmp_path)).setup()


def test_real_mnist(real: Path) -> None:
    data = MNIST(str(real))
    data.setup()
    assert (len(data.train), len(data.val)) == (60000, 10000)
    assert data.train.pixels.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert data.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_hugging_face_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the datasets library: pip install 'suffuse-image\[hf\]'"):
        HuggingFace("mnist").setup()
    with pytest.raises(ConfigError, match=r"data.path is not set"):
        HuggingFace()


def test_hugging_face_from_disk(tmp_path: Path, colours: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library (extra hf) is not installed")
    files = sorted(colours.rglob("*.png"))
    table = datasets.Dataset.from_dict(
        {"picture": [str(f) for f in files], "colour": [f.parent.name for f in files], "text": [f.name for f in files]}
    ).cast_column("picture", datasets.Image())
    table.class_encode_column("colour").save_to_disk(str(tmp_path / "saved"))
    for cache in (True, False):
        data = HuggingFace(str(tmp_path / "saved"), size=[6, 8], cache=cache)
        data.setup()
        assert len(data.train) + len(data.val) == 40 and data.spec.labels == ("blue", "red")
        for split in (data.train, data.val):
            for i in range(len(split)):
                item = split[i]
                assert item["x"][2 * (1 - item["cond"]["label"]), 0, 0] == 1
                assert round(item["x"][1, 0, 0].item() * 255) == int(split.texts.chosen(i)[:2])
    with pytest.raises(DataError, match=r"data.label=clour: no such column; did you mean 'colour'"):
        HuggingFace(str(tmp_path / "saved"), label="clour").setup()


def test_hugging_face_imagefolder(colours: Path) -> None:
    pytest.importorskip("datasets", reason="the datasets library (extra hf) is not installed")
    data = HuggingFace(str(colours), size=[6, 8])
    data.setup()
    assert data.spec.labels == ("blue", "red") and len(data.train) + len(data.val) == 40


def test_a_whole_batch_is_the_collated_items() -> None:
    pixels = torch.arange(5 * 3 * 2 * 4, dtype=torch.uint8).reshape(5, 3, 2, 4)
    data = Pictures(pixels, torch.tensor([0, 1, 0, -1, 1]), flip=True, seed=3)
    for keys in ([(0, 4), (7, 1), (2, 2), (1, 0)], [3, 0]):
        whole, single = data.batch(keys), torch.utils.data.default_collate([data[key] for key in keys])
        assert torch.equal(whole["x"], single["x"]) and torch.equal(whole["index"], single["index"])
        assert torch.equal(whole["cond"]["label"], single["cond"]["label"])
