"""The modality as a whole: contract with several codecs, editing, lengths, interpolation, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from suffuse.testing import ModalityContract, command

TINY = ("data.count=96", "data.batch_size=16", "model.width=16", "conditioner.width=16")


class TestModality(ModalityContract):
    modality = "audio"
    overrides = TINY

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        (folder / "empty").mkdir()
        (folder / "bad").mkdir()
        (folder / "bad" / "a.wav").write_bytes(b"")
        soundfile.write(folder / "bad" / "b.wav", np.full(800, np.nan), 8000, subtype="FLOAT")
        for name, channels in (("good", 1), ("wide", 32)):
            (folder / name).mkdir()
            for i in range(4):
                soundfile.write(folder / name / f"{i}.wav", np.full((800, channels), 0.1), 8000)
        plain = ["~data.count", "~data.kinds", "~data.samples"]
        return [
            (["data=audio/folder", *plain], "data.path is not set"),
            (["data=audio/folder", f"data.path={folder / 'empty'}", *plain], "no sounds in"),
            (["data=audio/folder", f"data.path={folder / 'bad'}", *plain], "cannot be used: a.wav .it is empty"),
            (["data=audio/folder", f"data.path={folder / 'wide'}", *plain], "has 32 channels, at most 16"),
            (["data=audio/folder", f"data.path={folder / 'good'}", "data.rate=0", *plain], "data.rate=0"),
            (
                ["data=audio/folder", f"data.path={folder / 'good'}", "data.label='{a}{b}'", *plain],
                "no pattern of a file",
            ),
            (["data=audio/folder", f"data.path={folder / 'good'}", "data.label='{a}-{b}'", *plain], "does not match"),
            (["data=audio/folder", f"data.path={folder / 'none'}", *plain], "no such folder"),
            (["data.count=0"], "data.count=0"),
        ]

    def compose(self, *overrides: str):
        # The keys of the embedded set are none of a folder's.
        drop = [word[1:] for word in overrides if word.startswith("~")]
        kept = [word for word in self.overrides if not any(word.startswith(f"{key}=") for key in drop)]
        before, self.overrides = self.overrides, tuple(kept) if drop else self.overrides
        try:
            return super().compose(*[word for word in overrides if not word.startswith("~")])
        finally:
            self.overrides = before


class Quiet(ModalityContract):
    """A contract whose bad input another class has shown."""

    modality = "audio"

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        return []


class TestMdct(Quiet):
    overrides = (*TINY, "codec=audio/mdct", "objective=flow", "schedule=flow", "grid=trailing")
    training_steps = 90  # signs, not magnitudes: slower to learn than the other states


class TestWaveform(Quiet):
    overrides = (*TINY, "codec=audio/waveform", "codec.patch=32")


class TestStft(Quiet):
    overrides = (*TINY, "codec=audio/stft", "model=unet", "model.width=8", "model.patch=8", "model.attention=[]")


class TestMel(Quiet):
    overrides = (*TINY, "codec=audio/mel", "codec.iterations=2", "model=dit", "model.width=32", "model.patch=16")


# The commands.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny trained run ``outputs/audio/tiny``."""
    folder = tmp_path_factory.mktemp("audio")
    words = [*TINY, "name=tiny", "steps=4", "num=3", "metrics_num=6", "trainer=cpu", "data.count=64", "sampler.steps=2",
             "codec=audio/mdct", "objective=flow"]  # fmt: skip
    done = command(folder, "train", "modality=audio", *words)
    assert done.returncode == 0, done.stderr
    return folder


def drawn(folder: Path, *words: str) -> list[dict]:
    """Return the manifest of a sampling job, with the samples."""
    given = {word.partition("=")[0] for word in words}
    more = [w for w in ("num=2", "sampler.steps=2") if w.partition("=")[0] not in given]
    done = command(folder, "sample", "ckpt=outputs/audio/tiny", "trainer=cpu", *more, *words)
    assert done.returncode == 0, done.stderr + done.stdout
    out = folder / next(word for word in words if word.startswith("out=")).partition("=")[2]
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return [row | {"y": soundfile.read(out / row["file"])[0]} for row in rows]


def test_a_run_ends_in_sounds(run: Path):
    final = run / "outputs" / "audio" / "tiny" / "samples" / "final"
    y, rate = soundfile.read(final / "00000.wav")
    figures = json.loads((run / "outputs" / "audio" / "tiny" / "metrics.json").read_text())
    assert rate == 8000 and len(y) == 8192 and (final / "overview.png").stat().st_size > 5000
    assert figures["right_real"] > 0.97 and figures["right"] < 0.5 and figures["clean_real"] > 0.9


def test_prompts(run: Path):
    rows = drawn(run, "condition.text=[a sine wave, a drum]", "num=3", "out=prompts")
    assert [row["caption"] for row in rows] == ["a sine wave", "a drum", "a sine wave"]
    assert rows[0]["condition"] == {"text": "a sine wave"} and rows[0]["seconds"] == 1.024
    one = drawn(run, "condition.text=a drum (loud), then nothing", "num=1", "out=one")
    assert one[0]["caption"] == "a drum (loud), then nothing"
    with soundfile.SoundFile(run / "one" / "00000.wav") as file:
        assert file.title == one[0]["caption"] and "seed 0" in file.comment


def test_other_lengths(run: Path):
    assert [len(row["y"]) for row in drawn(run, "seconds=2.5", "out=long")] == [20_000] * 2
    assert len(drawn(run, "seconds=0.3", "num=1", "out=short")[0]["y"]) == 2400
    for bad, said in (
        ("seconds=-1", "seconds=-1"),
        ("seconds=x", "seconds=x"),
        ("secnods=1", "did you mean 'seconds'"),
    ):
        done = command(run, "sample", "ckpt=outputs/audio/tiny", bad)
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1


def test_inpainting_keeps_the_rest(run: Path):
    t = np.arange(8192) / 8000
    y = 0.5 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(run / "in.wav", y, 8000, subtype="FLOAT")
    for row in drawn(run, "init=in.wav", "mask=0.4-0.6", "out=inpainted"):
        # A frame and its overlap on either side of the gap may change.
        outside = np.r_[0 : 3200 - 256, 4800 + 256 : 8192]
        assert np.abs(row["y"][outside] - y[outside]).max() < 1e-3
        assert np.abs(row["y"][3300:4700] - y[3300:4700]).max() > 0.05
        assert row["init"] == "in.wav" and row["mask"] == "0.4-0.6"
    longer = drawn(run, "init=in.wav", "mask=1-", "seconds=2", "num=1", "out=continued")[0]["y"]
    assert len(longer) == 16_000 and np.abs(longer[:7700] - y[:7700]).max() < 1e-3 and np.abs(longer[9000:]).max() > 0


def test_variations_by_strength(run: Path):
    t = np.arange(8192) / 8000
    y = 0.5 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(run / "in2.wav", y, 8000, subtype="FLOAT")
    apart = []
    for strength in (0.1, 0.5, 1.0):
        row = drawn(run, "init=in2.wav", f"strength={strength}", "num=1", "sampler.steps=20", f"out=v{strength}")[0]
        apart.append(float(np.sqrt(np.mean((row["y"] - y) ** 2))))
    assert apart[0] < apart[1] < apart[2] and apart[0] < 0.05


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mask=0-1"], "mask=0-1 needs init="), (["strength=0.5"], "strength=0.5 needs init="),
        (["init=none.wav", "strength=0.5"], "init=none.wav: no such file"), (["init=none.wav"], "init= needs mask="),
        (["init=bad.wav", "strength=0.5"], "init=bad.wav: it is empty"), (["init=ok.wav", "strength=2"], "strength=2"),
        (["init=ok.wav", "mask=5-6"], "starts behind the sound"), (["init=ok.wav", "mask=abc"], "no stretch of time"),
        (["seed_to=4"], "seed_to= belongs to interpolate=true"), (["preview.format=ogg"], "preview.format=ogg"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(run: Path, words: list[str], said: str):
    (run / "bad.wav").write_bytes(b"")
    soundfile.write(run / "ok.wav", np.full(8192, 0.1), 8000)
    done = command(run, "sample", "ckpt=outputs/audio/tiny", "num=1", "out=never", *words)
    assert done.returncode == 1 and said in done.stderr and done.stderr.strip().count("\n") == 0, done.stderr
    assert not (run / "never").exists()


def test_between_two_prompts(run: Path):
    how = ["interpolate=true", "condition.text=[a sine wave,a drum]", "num=3"]
    rows = drawn(run, *how, "out=between")
    assert [row["weight"] for row in rows] == [0, 0.5, 1] and {row["seed"] for row in rows} == {0}
    assert rows[1]["caption"] == "a sine wave → a drum 50 %"
    ends = [
        drawn(run, f"condition.text={t}", "num=1", f"out=end{i}")[0]["y"]
        for i, t in enumerate(("a sine wave", "a drum"))
    ]
    # Float rounding differs with the batch, and 16 bits round.
    assert np.abs(rows[0]["y"] - ends[0]).max() < 1e-3 and np.abs(rows[2]["y"] - ends[1]).max() < 1e-3
    seeds = drawn(run, *how, "seed_to=7", "out=seeds")
    other = drawn(run, "condition.text=a drum", "seed=7", "num=1", "out=seven")[0]["y"]
    assert np.abs(seeds[0]["y"] - ends[0]).max() < 1e-3 and np.abs(seeds[2]["y"] - other).max() < 1e-3
    assert {row["seed_to"] for row in seeds} == {7}


def test_loops_and_joins(run: Path):
    rows = drawn(run, "preview.loop=0.1", "preview.joined=0.05", "num=3", "out=loops")
    assert [len(row["y"]) for row in rows] == [8192 - 800] * 3
    joined, _ = soundfile.read(run / "loops" / "joined.wav")
    assert len(joined) == 3 * 8192 - 2 * 400 - 400


def test_metrics_that_cannot_be_made_stop_a_run_before_it_starts(tmp_path: Path):
    words = ["metrics=audio/fad", f"metrics.path={tmp_path / 'clap'}", "data.count=8", "name=x"]
    done = command(tmp_path, "train", "modality=audio", *words)
    assert done.returncode == 1 and "clap: no such folder" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "outputs" / "audio" / "x" / "checkpoints").exists()


def test_stereo_flac(tmp_path: Path):
    for i in range(6):
        left, right = (0.4 * np.sin(2 * np.pi * f * np.arange(4000) / 8000) for f in (300, 600))
        soundfile.write(tmp_path / f"{i}.flac", np.stack([left, right], 1), 8000)
    words = ["data=audio/folder", f"data.path={tmp_path}", "data.rate=8000", "data.seconds=0.5", "data.channels=2",
             "data.batch_size=4", "data.timing=true",
             "metrics=none", "model.width=16", "name=s", "steps=2", "num=2", "preview.format=flac",
             "sampler.steps=2", "trainer=cpu"]  # fmt: skip
    done = command(tmp_path, "train", "modality=audio", *words)
    assert done.returncode == 0, done.stderr
    y, _ = soundfile.read(tmp_path / "outputs" / "audio" / "s" / "samples" / "final" / "00001.flac")
    # A length that is asked for is a condition too.
    done = command(tmp_path, "sample", "ckpt=outputs/audio/s", "num=1", "seconds=0.3", "trainer=cpu", "out=short")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "short" / "manifest.jsonl").read_text())
    assert row["condition"]["seconds_total"] == pytest.approx(0.3) and row["seconds"] == 0.3
    assert y.shape == (4096, 2) and not torch.equal(torch.from_numpy(y[:, 0]), torch.from_numpy(y[:, 1]))


def test_spoken_digits_train(real: Path, tmp_path: Path):
    words = ["experiment=audio/fsdd", f"data.path={real / 'fsdd' / 'recordings'}", "model.width=8", "steps=2", "num=2",
             "metrics=none", "sampler.steps=2", "trainer=cpu", "name=f"]  # fmt: skip
    done = command(tmp_path, "train", "modality=audio", *words)
    assert done.returncode == 0, done.stderr
    assert "2,700 items, 300 held out" in done.stdout + done.stderr
