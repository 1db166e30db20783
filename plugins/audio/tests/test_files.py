"""Files: formats, rates, damage, and stretches that are read by seeking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from suffuse.errors import ConfigError, DataError, SuffuseError
from suffuse_audio import dsp
from suffuse_audio.data.decode import Decoder
from suffuse_audio.files import SoundError, info, load, mixed, read, write


def tone(f: float, seconds: float = 0.5, rate: int = 8000, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """Return a sine (samples, channels); channel c is c octaves up."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([level * np.sin(2 * np.pi * f * 2**c * t) for c in range(channels)], 1)


@pytest.mark.parametrize("end", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("rate", [8000, 44_100])
def test_formats(tmp_path: Path, end: str, rate: int):
    soundfile.write(tmp_path / f"a.{end}", tone(500, 0.5, rate, 2), rate)
    x, found = load(tmp_path / f"a.{end}")
    assert found == rate and x.shape[0] == 2 and abs(x.shape[1] - rate // 2) < 3000
    spectrum = torch.fft.rfft(x[0] * torch.hann_window(x.shape[1])).abs()
    assert abs(float(spectrum.argmax()) * rate / x.shape[1] - 500) < 5
    assert info(tmp_path / f"a.{end}").channels == 2
    assert load((tmp_path / f"a.{end}").read_bytes())[0].shape == x.shape


@pytest.mark.parametrize("kind", ["PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE"])
def test_depths(tmp_path: Path, kind: str):
    y = tone(300)
    soundfile.write(tmp_path / "a.wav", y, 8000, subtype=kind)
    assert np.abs(load(tmp_path / "a.wav")[0][0].numpy() - y[:, 0]).max() < (0.01 if kind == "PCM_U8" else 1e-4)


def broken(folder: Path) -> dict[str, Path]:
    """Return files that cannot be used, by the reason that must be given."""
    soundfile.write(folder / "good.wav", tone(300, 2.0), 8000)
    raw = (folder / "good.wav").read_bytes()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is not a sound")
    (folder / "cut.wav").write_bytes(raw[: len(raw) // 2])
    (folder / "head.wav").write_bytes(raw[:44])
    soundfile.write(folder / "none.wav", np.zeros((0, 1)), 8000)
    nan = tone(300)
    nan[100] = np.nan
    soundfile.write(folder / "nan.wav", nan, 8000, subtype="FLOAT")
    soundfile.write(folder / "many.wav", tone(100, 0.1, channels=32), 8000)
    soundfile.write(folder / "silent.wav", np.zeros(8000), 8000)
    rate = bytearray(raw)
    rate[24:28] = (0).to_bytes(4, "little")
    (folder / "rate.wav").write_bytes(bytes(rate))
    (folder / "wrong.mp3").write_text("#!/bin/sh\necho no")
    return {
        "is empty": folder / "empty.wav", "(not recogni|unknown|unimplemented)": folder / "text.wav",
        "has no samples": folder / "none.wav", "NaN": folder / "nan.wav", "32 channels": folder / "many.wav",
        "silent": folder / "silent.wav", "(sample rate|incomplete)": folder / "rate.wav", "": folder / "wrong.mp3",
    }  # fmt: skip


def test_damage_is_named(tmp_path: Path):
    for reason, path in broken(tmp_path).items():
        with pytest.raises(SoundError, match=f"(?i){reason}") as caught:
            Decoder(8000, 1.024).whole(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_the_content_decides_not_the_ending(tmp_path: Path):
    """A WAV file that is called MP3 is read; the ending only says which files of a folder are looked at."""
    soundfile.write(tmp_path / "a.wav", tone(300), 8000)
    for name in ("a.mp3", "a.flac", "a.opus"):
        (tmp_path / name).write_bytes((tmp_path / "a.wav").read_bytes())
        assert torch.equal(load(tmp_path / name)[0], load(tmp_path / "a.wav")[0])


def test_a_file_that_was_cut(tmp_path: Path):
    """libsndfile believes the file's length; whatever is there is a sound, and nothing crashes."""
    path = broken(tmp_path)["is empty"].parent / "cut.wav"
    x, _ = load(path)
    assert abs(x.shape[1] - 8000) < 50
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 80_000), 8000)
    raw = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(raw[: len(raw) // 3])
    with pytest.raises(SoundError):
        load(tmp_path / "cut.flac")


def test_stretches_are_parts_of_the_whole(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 40_000), 8000, subtype="FLOAT")
    decoder = Decoder(8000, 1.024, normalise="none")
    whole = decoder.whole(tmp_path / "a.wav")
    for place in (0.0, 0.37, 0.9999):
        start = round(place * (40_000 - 8192))
        assert torch.equal(decoder.stretch(tmp_path / "a.wav", place), whole[:, start : start + 8192])
        assert torch.equal(decoder.fitted(whole, place), whole[:, start : start + 8192])


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_resampled_stretches(tmp_path: Path, rate: int):
    soundfile.write(tmp_path / "a.wav", tone(700, 5.0, rate), rate, subtype="FLOAT")
    decoder = Decoder(8000, 1.024, normalise="none")
    whole, part = decoder.whole(tmp_path / "a.wav"), decoder.stretch(tmp_path / "a.wav", 0.5)
    start = round(0.5 * (5 * 8000 - 8192))
    best = min(float((part - whole[:, s : s + 8192]).abs()[:, 50:-50].max()) for s in range(start - 2, start + 3))
    assert best < 0.12  # less than a sample of shift


def test_a_long_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000 * 60) + 0.1, 8000)
    seen = []
    plain = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda s, frames=-1, *a, **k: (seen.append(frames), plain(s, frames, *a, **k))[1]
    )
    Decoder(8000, 1.024).stretch(tmp_path / "a.wav", 0.7)
    assert 0 < seen[0] < 9000


def test_short_sounds_are_followed_by_silence(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", tone(300, 0.25), 8000)
    x = Decoder(8000, 1.0).stretch(tmp_path / "a.wav", 0.9)
    assert (
        x.shape == (1, 8192)
        and x[:, 2000:].abs().max() == 0
        and x[:, :2000].abs().max() == pytest.approx(0.9, abs=1e-3)
    )


def test_channels():
    x = torch.stack([torch.ones(4), torch.zeros(4), -torch.ones(4)])
    assert mixed(x[:2], 1).tolist() == [[0.5] * 4] and mixed(x[:1], 2).tolist() == [[1.0] * 4] * 2
    assert mixed(x, 2).tolist() == x[:2].tolist()


@pytest.mark.parametrize("seconds", [0.2, 3.0])
def test_loudness(tmp_path: Path, seconds: float):
    """A full-scale sine of 997 Hz is -3.01 LUFS (ITU-R BS.1770-4, annex 1); 20 dB less is -23.01."""
    for level, wanted in ((1.0, -3.01), (0.1, -23.01)):
        y = torch.from_numpy(tone(997, seconds, 48_000, level=level).T.copy()).float()
        # torchaudio's weighting filter is 0.27 dB below the standard's at this frequency.
        assert dsp.loudness(y, 48_000) == pytest.approx(wanted, abs=0.3)
    assert dsp.loudness(torch.zeros(1, 48_000), 48_000) == float("-inf")
    soundfile.write(tmp_path / "a.wav", tone(997, 2.0, 16_000, level=0.02), 16_000)
    x = Decoder(16_000, 2.048, normalise="lufs", lufs=-20.0).whole(tmp_path / "a.wav")
    assert dsp.loudness(x, 16_000) == pytest.approx(-20, abs=0.3)
    loud = Decoder(16_000, 2.048, normalise="lufs", lufs=0.0).whole(tmp_path / "a.wav")
    assert float(loud.abs().max()) == pytest.approx(0.9, abs=1e-3)  # as far as the peak allows


@pytest.mark.parametrize("end", ["wav", "flac"])
def test_writing(tmp_path: Path, end: str):
    y = torch.from_numpy(tone(300, channels=2).T.copy()).float()
    path = write(tmp_path / "deep" / f"a.{end}", y * 3, 8000, title="a tone", comment="seed 1")
    x, rate = load(path)
    assert rate == 8000 and (x - (y * 3).clamp(-1, 1)).abs().max() < 1e-3
    with soundfile.SoundFile(path) as file:
        assert file.title == "a tone" and file.comment == "seed 1" and file.subtype == "PCM_16"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_reading_for_an_option(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"init=.*no such file"):
        read(str(tmp_path / "x.wav"), 8000, 1, "init")
    (tmp_path / "x.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"init=.*it is empty"):
        read(str(tmp_path / "x.wav"), 8000, 1, "init")


@pytest.mark.parametrize(
    "error", [ImportError("libc10_cuda.so"), OSError("undefined symbol"), RuntimeError("CUDA 13.2")]
)
def test_a_torchaudio_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, error: Exception):
    import builtins

    plain = builtins.__import__

    def broken_import(name: str, *args: object, **more: object) -> object:
        if name.startswith("torchaudio"):
            raise error
        return plain(name, *args, **more)  # type: ignore[arg-type]

    dsp.torchaudio.cache_clear()
    monkeypatch.setattr(builtins, "__import__", broken_import)
    with pytest.raises(SuffuseError, match=r"torchaudio does not import beside torch.*pip install"):
        dsp.torchaudio()
    monkeypatch.undo()
    dsp.torchaudio.cache_clear()
    assert dsp.torchaudio().functional


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rate": 0}, "data.rate=0"), ({"seconds": 0}, "data.seconds=0"), ({"channels": 3}, "data.channels=3"),
     ({"normalise": "loud"}, "data.normalise=loud"), ({"level": 2}, "data.level=2")],
)  # fmt: skip
def test_bad_arguments(options, said):
    with pytest.raises(ConfigError, match=said):
        Decoder(**options)
