"""Sounds of lengths of their own: codecs transform each as if it were alone; data, files and commands know its end."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from suffuse.data import Data
from suffuse.errors import ConfigError
from suffuse_audio import ragged
from suffuse_audio.codec import Magnitude, Mdct, Mel, Picture, Stft, Waveform
from suffuse_audio.data import Folder, Rendered, Shards
from suffuse_audio.metrics import Attributes, Features

ABOUT = {"rate": 8000, "channels": 2, "samples": 4096, "lengths": [1000, 2500, 4096]}
KINDS = [
    (Mdct, {"size": 64}), (Waveform, {"patch": 8}), (Stft, {}), (Magnitude, {}), (Mel, {}), (Picture, {"bins": 64}),
]  # fmt: skip
LENGTHS = [4096, 1000, 2501, 1000]


def made(kind: Any, options: dict[str, Any], **more: Any) -> Any:
    batch = sounds()
    facts = ABOUT | {"codec": kind(about=ABOUT, **options).measure(batch)}
    return kind(about=facts, **options, **more)


def sounds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parts = [ragged.item(0.2 * torch.randn(2, n, generator=generator), 4096) for n in LENGTHS]
    return {name: torch.stack([part[name] for part in parts]) for name in ("x", "mask")}


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_sound_in_a_batch_is_the_sound_alone(kind, options):
    """Its state, and what comes back, are those of the sound by itself; exact codecs give it back to the sample."""
    codec, batch = made(kind, options), sounds()
    state = codec.encode(batch)
    assert list(state) == ["x", "mask", "length"] and state["length"].tolist() == LENGTHS
    back = codec.decode(state)
    assert torch.equal(back["mask"], batch["mask"]) and back["x"].shape == batch["x"].shape
    for i, n in enumerate(LENGTHS):
        columns = -(-max(n, codec.least) // codec.frame)
        assert int(state["mask"][i].sum()) == columns and bool(state["mask"][i, :columns].all())
        alone = torch.nn.functional.pad(batch["x"][i : i + 1, :, :n], (0, columns * codec.frame - n))
        wanted = codec.analyse(alone)
        assert (state["x"][i, :, :columns] - wanted[0].movedim(-1, 1)).abs().max() < 1e-4
        assert state["x"][i, :, columns:].abs().sum() == 0
        heard = codec.synthesise(wanted)[0, :, :n]
        assert (back["x"][i, :, :n] - heard).abs().max() < 1e-3 * max(1.0, float(heard.abs().max()))
        assert back["x"][i, :, n:].abs().sum() == 0
    if codec.tolerance <= 1e-5:
        assert (back["x"] - batch["x"]).abs().max() <= codec.tolerance


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_is_behind_the_end_is_not_measured(kind, options):
    """The same sounds with more silence behind give the same figures, and a state of unit scale where they are."""
    batch = sounds()
    wider = {name: torch.nn.functional.pad(leaf, (0, 4096)) for name, leaf in batch.items()}
    assert kind(about=ABOUT, **options).measure(batch) == kind(about=ABOUT, **options).measure(wider)
    joined = ragged.clips(batch, 4096)
    assert joined.shape == (2, 2, 4096)
    assert torch.equal(joined.transpose(0, 1).flatten(1), torch.cat(ragged.each(batch), -1)[:, : 2 * 4096])


def test_lengths_are_asked_for_or_drawn_by_seed():
    seeds = torch.arange(400)
    drawn = made(Mdct, {"size": 64}).like(seeds, {}, "cpu")
    share = [(drawn["length"] == n).double().mean().item() for n in ABOUT["lengths"]]
    assert sum(share) == 1 and min(share) > 0.25 and drawn["x"].shape == (400, 128, 64)
    again = made(Mdct, {"size": 64}).like(seeds[7:9], {}, "cpu")
    assert torch.equal(again["length"], drawn["length"][7:9]) and again["x"].shape == (2, 128, 64)
    assert torch.equal(again["mask"].sum(1), -(-again["length"] // 64))
    one = made(Mdct, {"size": 64}, seconds=0.3).like(seeds[:3], {}, "cpu")
    assert one["length"].tolist() == [2400] * 3 and one["mask"].sum(1).tolist() == [38] * 3
    turns = made(Mdct, {"size": 64}, seconds=[0.3, 0.8]).like(torch.tensor([4, 5, 7]), {}, "cpu")
    assert turns["length"].tolist() == [2400, 6400, 6400] and turns["x"].shape[2] % 16 == 0
    assert made(Mdct, {"size": 64}, seconds=[0.3, 0.8]).implied["seconds_total"] == [0.3, 0.8]
    # A model that is told seconds_total: the condition is the length.
    said = {"seconds_total": torch.tensor([0.25, float("nan"), 9.0]), "seconds_start": torch.zeros(3)}
    told = made(Mdct, {"size": 64}).like(seeds[:3], said, "cpu")["length"].tolist()
    assert told == [2000, int(drawn["length"][1]), 4096]
    with pytest.raises(ConfigError, match="one length, give one number"):
        Mdct(size=64, about={"samples": 4096}, seconds=[1.0, 2.0])
    with pytest.raises(ConfigError, match=r"seconds=\[1.0, -1\] must be"):
        Mdct(size=64, about=ABOUT, seconds=[1.0, -1])


def test_a_file_is_opened_at_its_own_length(tmp_path: Path):
    y = 0.5 * np.sin(2 * np.pi * 440 * np.arange(3000) / 8000)
    soundfile.write(tmp_path / "a.wav", np.stack([y, y], 1), 8000, subtype="FLOAT")
    codec = made(Mdct, {"size": 64})
    known, stays = codec.open(str(tmp_path / "a.wav"), "0.1-0.2")
    assert known["length"].tolist() == [3000] and int(known["mask"].sum()) == 47
    assert (codec.decode(known)["x"][0, 0, :3000] - torch.from_numpy(y).float()).abs().max() < 1e-5
    kept = stays["x"][0, 0]
    columns = torch.arange(len(kept))
    assert torch.equal(kept, ((columns + 1) * 64 + 32 <= 800) | (columns * 64 - 32 >= 1600))
    assert stays["mask"].all() and stays["length"].all() and stays["x"].shape == known["x"].shape
    longer, _ = made(Mdct, {"size": 64}, seconds=0.5).open(str(tmp_path / "a.wav"), None)
    assert longer["length"].tolist() == [4000]
    with pytest.raises(ConfigError, match="one sound; ask for one length"):
        made(Mdct, {"size": 64}, seconds=[0.5, 1.0]).open(str(tmp_path / "a.wav"), None)


# Data.


@pytest.mark.parametrize("cache", [True, False])
def test_files_keep_their_lengths(tones: Path, cache: bool):
    """Short ones are not followed by silence that counts; long ones are cut to the run's length."""
    data = Folder(str(tones), rate=8000, seconds=0.768, mask=True, cache=cache, batch_size=4, timing=True)
    data.setup()
    for k, sound in enumerate(data.train.sounds):
        found = data.train[(0, k)]
        wanted = min(round((0.3 + 0.1 * int(Path(sound.name).stem)) * 8000), 6144)
        x, mask = found["x"]["x"], found["x"]["mask"]
        assert x.shape == (1, 6144) and abs(int(mask.sum()) - wanted) <= 600  # lossy formats are a block off
        assert (x[:, ~mask] == 0).all() and x[:, mask][:, -400:].abs().max() > 0.1
    about = data.spec.about
    assert about["lengths"][0] >= 2400 and about["lengths"][-1] == 6144 and about["lengths"] == sorted(about["lengths"])
    batch = next(iter(data.train_loader()))
    assert batch["x"]["x"].shape == (4, 1, 6144) and batch["x"]["mask"].dtype == torch.bool


def test_augmented_sounds_end_where_they_end(tones: Path):
    data = Folder(str(tones), rate=8000, seconds=0.768, mask=True, augment={"noise": -20})
    data.setup()
    found = data.train[(1, 0)]["x"]
    assert (found["x"][:, ~found["mask"]] == 0).all() and (found["x"][:, found["mask"]] != 0).float().mean() > 0.99


def test_rendered_sounds_have_lengths():
    data = Rendered(count=64, mask=True, batch_size=8)
    data.setup()
    lengths = data.train.lengths
    assert 0.6 * 8192 - 1 <= int(lengths.min()) < 5600 and 7500 < int(lengths.max()) <= 8192
    for i in range(5):
        found = data.train[i]["x"]
        assert int(found["mask"].sum()) == int(lengths[i]) and found["x"][:, lengths[i] :].abs().sum() == 0
    again = data.train.batch([3, 1])
    assert torch.equal(again["x"]["x"][1], data.train[1]["x"]["x"])
    assert torch.equal(again["x"]["mask"][0], data.train[3]["x"]["mask"])
    fixed = Rendered(count=4)
    fixed.setup()
    assert "lengths" not in fixed.spec.about and fixed.train[0]["x"].shape == (1, 8192)


def test_shards_keep_their_lengths(tmp_path: Path):
    pytest.importorskip("webdataset")
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for i in range(6):
                buffer = io.BytesIO()
                soundfile.write(buffer, np.full(1000 + 500 * i, 0.3), 8000, format="WAV")
                entry = tarfile.TarInfo(f"{shard}{i}.wav")
                entry.size = len(buffer.getvalue())
                tar.addfile(entry, io.BytesIO(buffer.getvalue()))
    data = Shards(str(tmp_path), text=False, rate=8000, seconds=0.384, mask=True, batch_size=6)
    data.setup()
    assert data.spec.about["lengths"] == [1000, 1500, 2000, 2500, 3000, 3072]
    batch = next(iter(data.train_loader()))
    assert set(batch["x"]["mask"].sum(1).tolist()) <= {1000, 1500, 2000, 2500, 3000, 3072}
    assert torch.equal(batch["x"]["x"][:, 0] != 0, batch["x"]["mask"])


def test_figures_of_sounds_of_several_lengths():
    """Real sounds are all right at their own lengths; with silence behind they are compared, lengths and all."""
    data = Rendered(count=40, mask=True)
    data.setup()
    rows = data.train.batch(list(range(40)))
    figures = Attributes()(rows["x"], rows["cond"], data)
    assert figures["right"] == 1 and figures["right_real"] == 1 and figures["clean"] > 0.9

    class Two(Data):
        def __init__(self, split: Any) -> None:
            self.train = self.val = split
            self.spec = data.spec.__class__(labels=("a", "b"), about=data.spec.about)

    class Labelled(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"x": data.train[i]["x"], "cond": {"label": i % 2}, "index": i}

    found = Features(train_steps=8)(rows["x"], {"label": torch.arange(40) % 2}, Two(Labelled()))
    assert found["frechet"] < 1e-2 * found["frechet_real"] + 1e-2  # the samples are the held-out sounds
