"""The cache of states: what is read is what would have been encoded, and an interrupted filling goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from suffuse.cache import Cached, Precomputed, _fill, cached, key, part
from suffuse.captions import Captions
from suffuse.codec import Identity
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError
from suffuse.state import leaves
from suffuse.text import captions_of
from torch import Tensor


class _Items(torch.utils.data.Dataset[Any]):
    def __init__(self, x: Tensor, bad: int | None = None) -> None:
        self.x, self.bad, self.read = x, bad, list[int]()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        self.read.append(i)
        if i == self.bad:
            raise KeyboardInterrupt
        return {"x": self.x[i], "cond": {"label": i % 3, "size": i / 7}, "index": 100 + i}


class _Data(Data):
    def __init__(self, n: int = 150) -> None:
        super().__init__(batch_size=8, seed=3)
        x = torch.randn(n + 20, 2, 5, generator=torch.Generator().manual_seed(0))
        self.train, self.val, self.spec = _Items(x[:n]), _Items(x[n:]), Spec(("a", "b", "c"), ("size",))


class _Codec(Identity):
    calls = 0

    def encode(self, x: Tensor) -> Tensor:
        self.calls += len(x)
        return super().encode(x)  # type: ignore[return-value]


def test_what_is_read_is_what_would_have_been_encoded(tmp_path: Path) -> None:
    data, codec = _Data(), _Codec(scale=2.0, shift=0.5)
    found, through = cached(data, codec, tmp_path / "c")
    assert isinstance(found, Cached) and isinstance(through, Precomputed) and codec.calls == 170
    for plain, read in ((data.train_loader(3), found.train_loader(3)), (data.val_loader(), found.val_loader())):
        for a, b, _ in zip(plain, read, range(4), strict=False):
            assert torch.equal(codec.encode(a["x"]), through.encode(b["x"]))
            assert torch.equal(a["index"], b["index"]) and torch.equal(a["cond"]["label"], b["cond"]["label"])
            assert torch.equal(a["cond"]["size"], b["cond"]["size"])
    assert torch.equal(through.decode(torch.ones(1)), codec.decode(torch.ones(1))) and through.scale == 2.0
    assert not hasattr(through, "like")


def test_named_fields_are_kept_as_they_are(tmp_path: Path) -> None:
    class Fields(_Codec):
        def encode(self, x: Tensor) -> Any:
            length = (x[:, 0, 0] > 0).long() + 4
            inner = {"half": x.half(), "length": length}
            return {"x": super().encode(x), "mask": torch.arange(5) < length[:, None], "inner": inner}

    data, codec = _Data(), Fields(scale=2.0)
    found, through = cached(data, codec, tmp_path, shard=64)
    assert len(list((tmp_path / "train").glob("states-00001.*.npy"))) == 4
    for plain, read in ((data.train_loader(3), found.train_loader(3)), (data.val_loader(), found.val_loader())):
        for a, b, _ in zip(plain, read, range(4), strict=False):
            wanted, got = codec.encode(a["x"]), through.encode(b["x"])
            assert list(got) == ["x", "mask", "inner"] and list(got["inner"]) == ["half", "length"]
            for x, y in zip(leaves(wanted), leaves(got), strict=True):
                assert torch.equal(x, y) and (x.dtype == y.dtype or y.dtype == torch.float32)
    assert found.train[7]["x"]["mask"].dtype == torch.bool and found.train[7]["x"]["inner"]["half"].shape == (2, 5)


def test_a_full_folder_is_not_filled_again(tmp_path: Path) -> None:
    cached(_Data(), _Codec(), tmp_path)
    again = _Codec()
    cached(_Data(), again, tmp_path)
    assert again.calls == 0


def test_an_interrupted_filling_goes_on(tmp_path: Path) -> None:
    data, codec = _Data(), _Codec()
    data.train.bad = 130  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        cached(data, codec, tmp_path, shard=32)
    assert codec.calls == 128 and not (tmp_path / "train" / "split.json").exists()
    data.train.bad = None  # type: ignore[attr-defined]
    again = _Codec()
    found, _ = cached(data, again, tmp_path, shard=32)
    assert again.calls == 150 - 128 + 20
    assert torch.equal(torch.from_numpy(np.concatenate(found.train.states[""])), data.train.x)  # type: ignore[attr-defined]
    assert found.train[140]["index"] == 240 and found.train[5]["cond"]["label"] == 2
    assert all(isinstance(part, np.memmap) for part in found.train.states[""])  # type: ignore[attr-defined]


def test_processes_share_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codecs = [_Codec() for _ in range(3)]

    def run(rank: int) -> None:
        _fill(_Data().train, codecs[rank], tmp_path, "x", 16)

    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert part() == (rank, 3)
        run(rank)
    # Shards 0 to 9 of 150 items, the last of 6.
    assert [codec.calls for codec in codecs] == [16 * 3 + 6, 48, 48]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 20 and names[0] == "items-00000.pt" and names[-1] == "states-00009.npy"
    monkeypatch.delenv("RANK")
    assert part() == (0, 1)


def test_captions_are_chosen_anew_from_a_cache(tmp_path: Path) -> None:
    data = _Data()
    data.train.texts = Captions([[f"{i} a", f"{i} b"] for i in range(150)])  # type: ignore[attr-defined]
    data.train.epochs = data.train.still = True  # type: ignore[attr-defined]
    found, _ = cached(data, _Codec(), tmp_path)
    drawn = {text for epoch in range(20) for text in captions_of(found.train.batch([(epoch, 7)])["cond"]["text"])}  # type: ignore[attr-defined]
    assert drawn == {"7 a", "7 b"} and found.train.epochs  # type: ignore[attr-defined]
    assert captions_of(found.train[7]["cond"]["text"][None]) == ["7 a"]
    batch = next(iter(found.train_loader()))
    assert batch["cond"]["text"].shape[0] == 8 and set(batch["cond"]) == {"label", "size", "text"}


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    data = _Data()
    data.train.epochs = True  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="augmented anew in every epoch"):
        cached(data, _Codec(), tmp_path)

    class Ragged(_Codec):
        def encode(self, x: Tensor) -> Any:
            self.calls += 1
            return {"a": x[:, :, : 3 + self.calls % 2]}

    with pytest.raises(ConfigError, match=r"states of this codec are \(2, 3\) in some batches and \(2, 4\) in others"):
        cached(_Data(), Ragged(), tmp_path / "f")
    data = _Data()
    data.train.x[70] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="in the states of items 64 to 127"):
        cached(data, _Codec(), tmp_path / "n")


def test_the_key_follows_what_decides_the_content() -> None:
    cfg: dict[str, Any] = {"data": {"_target_": "x", "batch_size": 4}, "codec": {"_target_": "y"}, "seed": 0}
    first = key(cfg, _Data(), _Codec())
    assert first == key({**cfg, "data": {**cfg["data"], "batch_size": 9}}, _Data(), _Codec())
    assert first != key({**cfg, "seed": 1}, _Data(), _Codec())
    assert first != key({**cfg, "codec": {"_target_": "z"}}, _Data(), _Codec())
    assert first != key(cfg, _Data(149), _Codec())

    class Files(_Data):
        def fingerprint(self) -> str:
            return "sizes and times"

    assert first != key(cfg, Files(), _Codec())


def test_a_run_from_the_cache_is_the_same_run(local, tiny: list[str], tmp_path: Path) -> None:
    for name, more in (("plain", []), ("kept", ["cache=true"]), ("elsewhere", [f"cache={tmp_path / 'c'}"])):
        done = local("train", *tiny, f"name={name}", *more)
        assert done.returncode == 0, done.stderr
    runs = [tmp_path / "outputs/image" / name for name in ("plain", "kept", "elsewhere")]
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in runs]
    for other in states[1:]:
        assert all(torch.equal(value, other[name]) for name, value in states[0].items())
    assert len(list((tmp_path / "outputs/image/cache").iterdir())) == len(list((tmp_path / "c").iterdir())) == 1
