"""Data: the embedded set, folders, shards, torchaudio's and Hugging Face's sets."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from suffuse.data import PositionStream
from suffuse.errors import ConfigError, DataError
from suffuse.text import captions_of, words
from suffuse_audio.data import Folder, HuggingFace, Rendered, Shards, TorchAudio
from suffuse_audio.data.decode import chance
from suffuse_audio.data.pattern import Pattern, chosen
from suffuse_audio.grammar import by_caption, held_out, sounds


def tone(f: float, seconds: float = 0.5, rate: int = 8000, level: float = 0.5) -> np.ndarray:
    """Return a sine."""
    return level * np.sin(2 * np.pi * f * np.arange(round(seconds * rate)) / rate)


def peak(x: torch.Tensor, rate: int) -> float:
    """Return the loudest frequency of a clip."""
    return float(torch.fft.rfft(x.mean(0)).abs().argmax()) * rate / x.shape[-1]


# The embedded set.


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    data = Rendered(count=300)
    data.setup()
    return data


def test_items_are_functions_of_their_index(rendered: Rendered):
    again = Rendered(count=120, seed=5)
    again.setup()
    for i in (0, 7, 119):
        assert torch.equal(again.train[i]["x"], rendered.train[i]["x"])
        assert torch.equal(again.train[i]["cond"]["text"], rendered.train[i]["cond"]["text"])
    assert not torch.equal(rendered.train[0]["x"], rendered.train[1]["x"])


def test_every_caption_is_read_to_its_end(rendered: Rendered):
    longest = max(len(words(sound.caption)) for sound in sounds())
    assert longest <= rendered.spec.about["words"] <= longest + 2


def test_no_held_out_combination_is_trained_on(rendered: Rendered):
    known = by_caption()
    assert all(not held_out(known[text]) for text in rendered.train.captions)
    new = [held_out(known[text]) for text in rendered.val.captions]
    assert sum(new) == len(new) // 2 and new[0] != new[1]
    share = sum(map(held_out, sounds())) / len(sounds())
    assert 0.1 < share < 0.16
    # Every value of every attribute is trained on in some combination.
    for kind in ("note", "chord", "slide", "drum"):
        every = [s for s in sounds() if s.kind == kind]
        seen = [s for s in every if not held_out(s)]
        for name in every[0].names:
            assert {s[name] for s in seen} == {s[name] for s in every}


def test_prompts_mix_kinds_and_new_combinations(rendered: Rendered):
    prompts = rendered.spec.about["prompts"]
    known = by_caption()
    assert len(set(prompts)) == len(prompts) > 250
    assert {known[p].kind for p in prompts[:8]} == {"note", "chord", "slide", "drum"}
    assert 0.2 < np.mean([held_out(known[p]) for p in prompts[:100]]) < 0.3


def test_a_batch_is_its_items(rendered: Rendered):
    batch = rendered.train.batch([3, 1])
    for row, index in enumerate((3, 1)):
        item = rendered.train[index]
        assert torch.equal(batch["x"][row], item["x"]) and torch.equal(batch["cond"]["text"][row], item["cond"]["text"])


@pytest.mark.parametrize(("options", "said"), [({"count": 0}, "data.count=0"), ({"kinds": ["hum"]}, "no kind 'hum'")])
def test_bad_arguments_of_the_embedded_set(options, said):
    with pytest.raises(ConfigError, match=said):
        Rendered(**options)


# Folders.


def folder(path: Path, **options: Any) -> Folder:
    data = Folder(path=str(path), **({"rate": 8000, "seconds": 0.5} | options))
    data.setup()
    return data


def test_subfolders_are_classes(tones: Path):
    data = folder(tones)
    assert data.spec.labels == ("high", "low") and len(data.train) + len(data.val) == 20
    for split in (data.train, data.val):
        for i in range(len(split)):
            item = split[(0, i) if split.epochs else i]
            assert item["x"].shape == (1, 4096) and item["x"].abs().max() <= 0.91
            wanted = 1000 if item["cond"]["label"] == 0 else 200
            assert abs(peak(item["x"], 8000) - wanted) < 5


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_and_rates(tones: Path, channels: int):
    data = folder(tones, rate=22_050, channels=channels)
    item = data.val[0]
    assert item["x"].shape == (channels, 11_264) and data.spec.about["rate"] == 22_050
    assert abs(peak(item["x"], 22_050) - (1000 if item["cond"]["label"] == 0 else 200)) < 5


def test_streaming_yields_what_memory_does(tones: Path):
    kept, streamed = folder(tones, normalise="none"), folder(tones, normalise="none", cache=False)
    for i in range(len(kept.val)):
        a, b = kept.val[i]["x"], streamed.val[i]["x"]
        # Resampled whole or by stretches: the same but at the very end of a stretch.
        assert (a - b)[:, :-16].abs().max() < 2e-3
        assert kept.val[i]["cond"] == streamed.val[i]["cond"]


def test_another_stretch_in_each_epoch(tmp_path: Path):
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.linspace(-0.5, 0.5, 40_000), 8000, subtype="FLOAT")
    for cache in (True, False):
        data = folder(tmp_path, cache=cache, normalise="none", val_fraction=0.25)
        firsts = [float(data.train[(epoch, 0)]["x"][0, 0]) for epoch in range(50)]
        assert len(set(firsts)) > 45 and -0.5 <= min(firsts) < -0.3 and 0.2 < max(firsts) < 0.41
        assert firsts[7] == float(data.train[(7, 0)]["x"][0, 0])
        assert abs(float(data.val[0]["x"][0, 0]) + 0.5) < 1e-3  # held-out sounds are always the same stretch
    assert 0.49 < np.mean([chance(1, i) for i in range(20_000)]) < 0.51


def test_classes_in_the_names(tmp_path: Path):
    for digit in range(3):
        for speaker in ("ann", "bob_x"):
            for i in range(6):
                soundfile.write(tmp_path / f"{digit}_{speaker}_{i}.wav", tone(300 + 100 * digit), 8000)
    data = folder(tmp_path, label="{label}_{speaker}_{index}", held_out={"index": "0-1"})
    assert data.spec.labels == ("0", "1", "2") and (len(data.train), len(data.val)) == (24, 12)
    assert all(s.name.endswith(("_0.wav", "_1.wav")) for s in data.val.sounds)
    both = folder(tmp_path, label="{label}_{speaker}_{index}", held_out={"index": [2], "speaker": ["ann"]})
    assert len(both.val) == 3
    with pytest.raises(DataError, match="holds out 0 of 36"):
        folder(tmp_path, label="{label}_{speaker}_{index}", held_out={"index": 9})
    with pytest.raises(DataError, match="does not match"):
        folder(tmp_path, label="{label}-{speaker}")
    with pytest.raises(ConfigError, match="did you mean 'index'"):
        folder(tmp_path, label="{label}_{speaker}_{index}", held_out={"indx": 1})


@pytest.mark.parametrize("text", ["label", "{a}{b}", "{a}_{a}", "{a_", ""])
def test_patterns_that_are_none(text):
    with pytest.raises(ConfigError, match="no pattern"):
        Pattern(text)


def test_patterns():
    found = Pattern("{label}_{speaker}_{index}")
    assert found("7_jackson_32") == {"label": "7", "speaker": "jackson", "index": "32"} and found("7-a") is None
    assert Pattern("take {n} ({label})")("take 3 (bell)") == {"n": "3", "label": "bell"}
    assert chosen({"index": "04"}, {"index": "0-4"}) and chosen({"index": "4"}, {"index": 4})
    assert not chosen({"index": "14"}, {"index": "0-4"}) and not chosen({}, {"index": 1})


def test_captions(tmp_path: Path):
    rows = ["file_name,text"]
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.wav", tone(300), 8000)
        rows.append(f'{i}.wav,"a tone, number {i}"')
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    data = folder(tmp_path)
    item = data.train[(0, 0)]
    assert captions_of(item["cond"]["text"][None])[0].startswith("a tone, number") and data.spec.labels == ()
    assert data.spec.about["text"] and len(data.spec.about["prompts"]) == 6
    beside = tmp_path / "beside"
    beside.mkdir()
    for i in range(3):
        soundfile.write(beside / f"{i}.wav", tone(300), 8000)
        (beside / f"{i}.txt").write_text(f"sound {i}\n")
    assert set(folder(beside).spec.about["prompts"]) == {"sound 0", "sound 1", "sound 2"}


def test_timing(tmp_path: Path):
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", tone(300, 2.0 + i), 8000)
    data = folder(tmp_path, timing=True, val_fraction=0.25)
    assert data.spec.scalars == ("seconds_start", "seconds_total")
    for i in range(3):
        cond = data.train[(3, i)]["cond"]
        assert cond["seconds_total"] in (2, 3, 4, 5) and 0 <= cond["seconds_start"] <= cond["seconds_total"] - 0.5


def test_damaged_files_are_counted(tones: Path, caplog: pytest.LogCaptureFixture):
    (tones / "low" / "bad.wav").write_bytes(b"")
    soundfile.write(tones / "low" / "silent.wav", np.zeros(800), 8000)
    with pytest.raises(DataError, match=r"2 of \d+ sounds cannot be used: low/bad.wav .it is empty.") as caught:
        folder(tones)
    assert "data.max_bad" in str(caught.value) and "\n" not in str(caught.value)
    data = folder(tones, max_bad=0.1)
    assert len(data.train) + len(data.val) == 20 and "left out" in caplog.text


def test_a_file_that_breaks_later(tones: Path):
    data = folder(tones, cache=False, max_bad=0.2)
    data.train.sounds[2].source.write_bytes(b"x" * 100)  # type: ignore[union-attr]
    assert data.train[(0, 2)]["index"] == 3 and data.train[(0, 1)]["index"] == 1
    for sound in data.train.sounds:
        sound.source.write_bytes(b"x" * 100)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="cannot be used"):
        [data.train[(0, i)] for i in range(len(data.train))]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"path": None}, "data.path is not set"), ({"val_fraction": 1.0}, "data.val_fraction"),
     ({"max_bad": 1}, "max_bad"), ({"held_out": {"index": 1}}, "needs data.label")],
)  # fmt: skip
def test_bad_arguments_of_folders(tmp_path: Path, options, said):
    with pytest.raises(ConfigError, match=said):
        Folder(**({"path": str(tmp_path)} | options))


def test_empty_folders(tmp_path: Path):
    with pytest.raises(DataError, match=r"no sounds in .*\.wav"):
        folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        folder(tmp_path / "none")


def test_spoken_digits(real: Path):
    data = folder(
        real / "fsdd" / "recordings", seconds=1.024, label="{label}_{speaker}_{index}", held_out={"index": "0-4"}
    )
    assert (len(data.train), len(data.val)) == (2700, 300) and data.spec.labels == tuple("0123456789")


# Shards.


def shard(path: Path, numbers: range, captions: bool = True) -> None:
    with tarfile.open(path, "w") as tar:
        for n in numbers:
            buffer = io.BytesIO()
            soundfile.write(buffer, tone(200 + 10 * n, 0.3), 8000, format="FLAC")
            files = {"flac": buffer.getvalue(), "cls": str(n % 2).encode()}
            if captions:
                files["json" if n % 2 else "txt"] = (
                    json.dumps({"text": f"tone {n}"}).encode() if n % 2 else f"tone {n}".encode()
                )
            for end, raw in files.items():
                entry = tarfile.TarInfo(f"{n:04d}.{end}")
                entry.size = len(raw)
                tar.addfile(entry, io.BytesIO(raw))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    pytest.importorskip("webdataset")
    for k in range(5):
        shard(tmp_path / f"s-{k:02d}.tar", range(12 * k, 12 * k + 12))
    return tmp_path


def stream(path: Path, **options: Any) -> Shards:
    data = Shards(
        path=str(path / "s-{00..04}.tar"), rate=8000, seconds=0.25, labels=["even", "odd"],
        **({"batch_size": 4, "buffer": 8} | options),
    )  # fmt: skip
    data.setup()
    return data


def batches(data: Shards, count: int, **where: int) -> list[dict[str, Any]]:
    found = iter(data.train_loader(**where))
    return [next(found) for _ in range(count)]


def test_an_epoch_has_every_sound_once(shards: Path):
    data = stream(shards)
    assert len(data.val) == 12 and data.spec.about["text"]
    found = batches(data, 24)
    texts = [captions_of(b["cond"]["text"]) for b in found]
    flat = [t for b in texts for t in b]
    assert found[0]["x"].shape == (4, 1, 2048)
    # 48 sounds to train on; the buffer lets few of the next epoch in early.
    assert len(set(flat[:48])) > 40 and {t for t in flat} == {f"tone {n}" for n in range(48)}
    assert flat[:48] != sorted(flat[:48], key=lambda t: int(t.split()[1]))
    for batch in found[:3]:
        for x, text, label in zip(batch["x"], captions_of(batch["cond"]["text"]), batch["cond"]["label"], strict=True):
            n = int(text.split()[1])
            assert abs(peak(x, 8000) - (200 + 10 * n)) < 5 and int(label) == n % 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on(shards: Path, workers: int):
    data = stream(shards, workers=workers)
    whole = batches(data, 11)
    for start in (1, 4, 7):
        for got, wanted in zip(batches(data, 4, start=start), whole[start : start + 4], strict=True):
            assert torch.equal(got["x"], wanted["x"]) and torch.equal(got["cond"]["text"], wanted["cond"]["text"])


def test_ranks_share_the_shards(shards: Path):
    data = stream(shards)
    seen = [{t for b in batches(data, 4, rank=r, world=2) for t in captions_of(b["cond"]["text"])} for r in (0, 1)]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 32
    many = [{t for b in batches(data, 1, rank=r, world=8) for t in captions_of(b["cond"]["text"])} for r in range(8)]
    assert sum(map(len, many)) == len(set().union(*many))  # more ranks than shards share them


def test_damaged_shards(shards: Path):
    pytest.importorskip("webdataset")
    with pytest.raises(ConfigError, match=r"no such file .*s-05"):
        Shards(path=str(shards / "s-{00..05}.tar"))
    with pytest.raises(ConfigError, match="no range"):
        Shards(path=str(shards / "s-{b..a}.tar"))
    with pytest.raises(ConfigError, match="one shard cannot be split"):
        Shards(path=str(shards / "s-00.tar"))
    raw = (shards / "s-04.tar").read_bytes()
    (shards / "s-04.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(DataError, match=r"data\.path"):
        stream(shards)
    (shards / "s-04.tar").write_bytes(raw)
    with tarfile.open(shards / "s-04.tar", "w") as tar:
        entry = tarfile.TarInfo("1.flac")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"12345"))
    with pytest.raises(DataError, match="1 of 1 sounds cannot be used"):
        stream(shards)


# Sets of others.


def test_torchaudio_sets(tmp_path: Path):
    root = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    for word in ("yes", "no"):
        (root / word).mkdir(parents=True)
        for i in range(4):
            soundfile.write(root / word / f"{i:08x}_nohash_0.wav", tone(500, 1.0, 16_000), 16_000)
    (root / "validation_list.txt").write_text("yes/00000003_nohash_0.wav\nno/00000003_nohash_0.wav\n")
    (root / "testing_list.txt").write_text("")
    data = TorchAudio("SPEECHCOMMANDS", root=str(tmp_path))
    data.setup()
    assert data.spec.labels == ("no", "yes") and (len(data.train), len(data.val)) == (6, 2)
    assert data.train[(0, 0)]["x"].shape == (1, 16_384)
    spoken = tmp_path / "waves_yesno"
    spoken.mkdir()
    for name in ("0_1_1_0_0_0_1_1", "1_1_1_1_0_0_0_0", "0_0_0_0_1_1_1_1"):
        soundfile.write(spoken / f"{name}.wav", tone(300, 1.0), 8000)
    other = TorchAudio("YESNO", root=str(tmp_path), rate=8000, val_fraction=0.3)
    other.setup()
    assert "no yes yes no no no yes yes" in other.spec.about["prompts"] and len(other.train) + len(other.val) == 3
    with pytest.raises(ConfigError, match="did you mean 'GTZAN'"):
        TorchAudio("GTZANN")
    with pytest.raises(DataError, match="no LJSPEECH there"):
        TorchAudio("LJSPEECH", root=str(tmp_path)).setup()


def test_hugging_face(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    paths = []
    for i in range(12):
        soundfile.write(tmp_path / f"{i}.wav", tone(300), 8000)
        paths.append(str(tmp_path / f"{i}.wav"))
    rows = {"audio": [{"bytes": None, "path": p} for p in paths], "label": [0, 1] * 6, "text": ["x", "y"] * 6}
    # Encoding would need torchcodec; the stored form needs nothing.
    table = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    table.cast_column("label", datasets.ClassLabel(names=["a", "b"])).save_to_disk(str(tmp_path / "set"))
    data = HuggingFace(str(tmp_path / "set"), rate=8000, seconds=0.5)
    data.setup()
    assert data.spec.labels == ("a", "b") and len(data.train) + len(data.val) == 12
    item = data.train[(0, 0)]
    assert item["x"].shape == (1, 4096) and captions_of(item["cond"]["text"][None])[0] == "xy"[item["cond"]["label"]]
    with pytest.raises(DataError, match="did you mean 'label'"):
        HuggingFace(str(tmp_path / "set"), label="lable").setup()
    with pytest.raises(DataError, match=r"data\.split=trian.*did you mean 'train'"):
        HuggingFace(str(tmp_path / "set"), split="trian").setup()


def test_hugging_face_is_missing(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'suffuse-audio\[hf\]'"):
        HuggingFace("x").setup()
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        HuggingFace()


def test_the_stream_of_positions_is_the_cores(tones: Path):
    data = folder(tones, batch_size=3)
    order = next(iter(PositionStream(len(data.train), 3, 0, epochs=True)))
    assert next(iter(data.train_loader()))["index"].tolist() == [i for _, i in order]
