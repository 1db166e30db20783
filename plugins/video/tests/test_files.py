"""Files: which frames are read, at which size, and what is said of files that cannot be."""

from __future__ import annotations

import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from suffuse_video.files import ClipError, probe, read, suffixes, write_mp4
from suffuse_video.timeline import Wanted, chosen, fraction

from .conftest import film, numbers

VIDEOS = [".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One film of 40 frames, 10 per second, per container."""
    folder = tmp_path_factory.mktemp("films")
    return {end: film(folder / f"film{end}", fps=25 if end == ".mpg" else 10) for end in VIDEOS}


# What is read.


@pytest.mark.parametrize("end", VIDEOS)
def test_head(films: dict[str, Path], end: str):
    head, rate = probe(films[end]), 25 if end == ".mpg" else 10
    assert head.size == (32, 48) and head.fps == pytest.approx(rate, rel=0.03) and not head.still
    assert abs(head.frames - 40) <= (2 if end == ".mpg" else 0) and head.seconds == pytest.approx(40 / rate, abs=0.09)
    assert probe(films[end].read_bytes()) == head and probe(str(films[end])) == head


@pytest.mark.parametrize("end", VIDEOS)
def test_seeking_lands_on_the_frame(films: dict[str, Path], end: str):
    rate = 25 if end == ".mpg" else 10
    for first in (0, 1, 11, 12, 13, 23, 24, 31, 36):
        for fps in (None, rate):
            clip = read(films[end], 4, fps=fps, start=first / rate)
            assert numbers(clip) == list(range(first, first + 4)), (first, fps)
    assert clip.shape == (3, 4, 32, 48) and clip.dtype == torch.float32 and clip.min() >= 0 and clip.max() <= 1


@pytest.mark.parametrize("end", VIDEOS)
def test_whole_file(films: dict[str, Path], end: str):
    for source in (films[end], films[end].read_bytes()):
        assert numbers(read(source)) == list(range(40))


def test_only_the_stretch_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from suffuse_video import container

    path, seen = film(tmp_path / "long.mp4", 200, first=0, colour=(0.3, 0.3, 0.3)), []
    plain = container._Reading._shown

    def counted(self, *how):
        for frame in plain(self, *how):
            seen.append(frame[0])
            yield frame

    monkeypatch.setattr(container._Reading, "_shown", counted)
    read(path, 4, fps=10, start=15.0)
    assert len(seen) <= 12 + 5 and min(seen) >= 14.3


def test_rates(films: dict[str, Path]):
    path = films[".mp4"]
    assert numbers(read(path, 5, fps=5)) == [0, 2, 4, 6, 8]
    assert numbers(read(path, 5, fps=5, start=0.1)) == [1, 3, 5, 7, 9]
    assert numbers(read(path, 6, fps=20)) == [0, 0, 1, 1, 2, 2]
    # Frames 0, 1.25, 2.5, 3.75, 5 of the file: the nearest, of two equally near ones the earlier.
    assert numbers(read(path, 5, fps=8)) == [0, 1, 2, 4, 5]
    assert numbers(read(path, 4, fps=30, start=1)) == [10, 10, 11, 11]
    assert numbers(read(path, fps=2)) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert numbers(read(path, fps=2, start=3)) == [30, 35]
    assert numbers(read(path, 3, start=0.96)) == [10, 11, 12]


def test_behind_the_end(films: dict[str, Path]):
    path = films[".mp4"]
    for fps in (None, 10):
        assert numbers(read(path, 5, fps=fps, start=3.8)) == [38, 39, 39, 39, 39]
        assert numbers(read(path, 5, fps=fps, start=3.8, short="repeat")) == [38, 39, 0, 1, 2]
        assert numbers(read(path, 2, fps=fps, start=3.8, short="error")) == [38, 39]
        with pytest.raises(ClipError, match="it has 40 frames, a clip needs 43"):
            read(path, 5, fps=fps, start=3.8, short="error")
        assert numbers(read(path, 3, fps=fps, start=100)) == [39, 39, 39]
    assert numbers(read(path, 13, fps=2.5, short="repeat"))[9:] == [36, 0, 4, 8]
    with pytest.raises(ValueError, match="fit=fill"):
        read(path, fit="fill")


@pytest.mark.parametrize("end", [".mp4", ".mkv"])
def test_varying_rate(tmp_path: Path, end: str):
    # Ten frames in a second, then five in five seconds.
    times = [*range(0, 1000, 100), *range(1000, 6000, 1000)]
    path = film(tmp_path / f"varying{end}", 15, times=times, gop=4)
    # Matroska says no number of frames, so it is worked out from a rate that is none.
    assert (probe(path).frames == 15 or end == ".mkv") and 4.9 < probe(path).seconds < 6.1
    assert numbers(read(path, 5, fps=1)) == [0, 10, 11, 12, 13]
    assert numbers(read(path, 5, fps=10)) == [0, 1, 2, 3, 4]
    assert numbers(read(path, 8, fps=10, start=0.7)) == [7, 8, 9, 10, 10, 10, 10, 10]
    assert numbers(read(path, 4, fps=2, start=2)) == [11, 11, 12, 12]
    assert numbers(read(path, 4, start=0.8)) == [8, 9, 10, 11]


@pytest.mark.parametrize("fps", [23.976, 29.97, 59.94])
def test_broadcast_rates_do_not_drift(tmp_path: Path, fps: float):
    path = film(tmp_path / "tv.mp4", 60, fps, colour=(1, 1, 1), first=0)
    assert numbers(read(path, 8, fps=fps, start=50 / fps), 0) == list(range(50, 58))
    assert fraction(fps) == Fraction(round(fps) * 1000, 1001) and fraction(12.5) == Fraction(25, 2)


def test_no_timestamps(tmp_path: Path):
    path = film(tmp_path / "raw.h264", 30, 25)
    assert probe(path).frames == 30
    assert numbers(read(path, 4, start=12 / 25)) == [12, 13, 14, 15]
    assert numbers(read(path, 3, fps=12.5, start=0.8)) == [20, 22, 24]


def test_frames_without_timestamps_are_counted(films: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    from suffuse_video import container

    class Timeless:
        pts = None

        def __init__(self, frame):
            self.frame = frame

        def __getattr__(self, name):
            return getattr(self.frame, name)

    class File:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def decode(self, stream):
            return map(Timeless, self.file.decode(stream))

    enter = container._Reading.__enter__

    def entered(self):
        enter(self)
        self.container = File(self.container)
        return self

    monkeypatch.setattr(container._Reading, "__enter__", entered)
    assert numbers(read(films[".mp4"], 4, fps=10, start=2.5)) == [25, 26, 27, 28]


def test_times_are_those_of_the_first_frame(tmp_path: Path):
    # A stream that starts five seconds in: what is shown first is frame 0 at time 0.
    path = film(tmp_path / "late.mkv", 20, times=[5000 + 100 * i for i in range(20)])
    assert numbers(read(path, 3, fps=10)) == [0, 1, 2] and numbers(read(path, 3, fps=10, start=1.5)) == [15, 16, 17]


# Sizes.


def test_fits(tmp_path: Path):
    path = film(tmp_path / "wide.mp4", 2, size=(32, 64))
    crop, box, flat = (read(path, 1, 32, fit=fit)[:, 0] for fit in ("crop", "letterbox", "stretch"))
    assert crop.shape == box.shape == flat.shape == (3, 32, 32)
    # The white quarter covers 32 of 64 columns: 16 of the middle 32, and 16 of 32 after stretching.
    assert (crop[0, 8, :14] > 0.9).all() and (crop[0, 8, 18:] < 0.3).all()
    assert (flat[0, 8, :14] > 0.9).all() and (flat[0, 8, 18:] < 0.3).all()
    assert (box[:, :8] == 0).all() and (box[:, 24:] == 0).all() and box[0, 12, 4] > 0.9
    assert (read(path, 1, 32, fit="letterbox", background="#ff0000")[0, 0, :8] == 1).all()
    assert read(path, 2, (10, 20)).shape == (3, 2, 10, 20)
    plain = read(path, 1)
    assert torch.equal(read(path, 1, (32, 64), fit="letterbox"), plain)  # nothing is resampled


@pytest.mark.parametrize(
    ("matrix", "corner", "size"),
    [((0, 1, -1, 0), (0, -1), (48, 32)), ((-1, 0, 0, -1), (-1, -1), (32, 48)), ((0, -1, 1, 0), (-1, 0), (48, 32)),
     ((-1, 0, 0, 1), (0, -1), (32, 48))],
)  # fmt: skip
def test_rotation(tmp_path: Path, matrix, corner, size):
    path = film(tmp_path / "plain.mp4", 3)
    raw = bytearray(path.read_bytes())
    at = raw.find(b"tkhd") + 44
    a, b, c, d = (65536 * v for v in matrix)
    raw[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(raw)
    assert probe(path).size == size
    clip = read(path)
    assert clip.shape == (3, 3, *size)
    bright = clip[0, 0] > 0.9
    assert bright[corner] and bright.float().mean() == pytest.approx(0.25, abs=0.03)
    assert not bright[-1 - corner[0], corner[1]] and not bright[corner[0], -1 - corner[1]]


def test_pixels_that_are_not_square(tmp_path: Path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe(path).size == (32, 64) and read(path).shape == (3, 1, 32, 64)


# What cannot be read.


def test_damaged_files(tmp_path: Path, films: dict[str, Path]):
    empty, text, sound, cut = (tmp_path / name for name in ("empty.mp4", "text.mp4", "sound.mp4", "cut.mp4"))
    empty.write_bytes(b"")
    text.write_text("no video at all\n" * 50)
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16_000))
    cut.write_bytes(films[".mp4"].read_bytes()[:2000])
    for path, reason in (
        (empty, "it is empty"), (text, "it is no video or picture"), (sound, "it has sound and no pictures"),
        (cut, "it is no video or picture, or is damaged"), (tmp_path / "none.mp4", "there is no such file"),
    ):  # fmt: skip
        for call in (probe, read):
            with pytest.raises(ClipError, match=reason) as caught:
                call(path)
            assert "\n" not in str(caught.value)
    with pytest.raises(ClipError, match="it is empty"):
        probe(b"")
    picture = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(picture)
    picture.write_bytes(picture.read_bytes()[:3000])
    with pytest.raises(ClipError, match="truncated"):
        read(picture)


def test_a_file_that_was_cut(tmp_path: Path):
    whole = write_mp4(torch.rand(3, 60, 32, 32, generator=torch.Generator().manual_seed(0)), tmp_path / "a.mp4", 10)
    cut = tmp_path / "b.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    # Its head is whole, and so is its beginning.
    assert probe(cut).frames == 60 and torch.equal(read(cut, 8, fps=10), read(whole, 8, fps=10))
    with pytest.raises(ClipError, match=r"truncated|damaged"):
        read(cut, 8, fps=10, start=5)
    with pytest.raises(ClipError, match=r"truncated|damaged"):
        read(cut)


def test_no_frames(tmp_path: Path):
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(ClipError, match="it has no frames"):
        probe(path)


def test_cover_art_is_no_video(tmp_path: Path):
    # An album's cover is stored as a stream of one picture.
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(ClipError, match="it has sound and no pictures"):
        read(path)


# The timeline alone.


def test_chosen_frames():
    shown = [(Fraction(t), t) for t in (0, 2, 3, 7)]
    for times in ([0, 1, 1.5, 2.5, 2.6, 5, 5.1, 100], [5.1, 0, 2.6, 1]):
        wanted = [min((0, 2, 3, 7), key=lambda u: (abs(t - u), u)) for t in times]
        assert chosen(shown, [Fraction(t) for t in times], lambda t: t) == wanted
    with pytest.raises(ClipError, match="no frames"):
        chosen([], [Fraction(0)], lambda t: t)


def test_each_frame_is_converted_once():
    made = []
    shown = ((Fraction(i), i) for i in range(10**9))
    found = chosen(shown, [Fraction(n, 10) for n in range(30)], lambda i: made.append(i) or i)
    assert made == [0, 1, 2, 3] and len(found) == 30


@pytest.mark.parametrize("short", ["hold", "repeat"])
def test_wanted_times(short: str):
    times = Wanted(Fraction(1), 5, Fraction(2), short).times(4, Fraction(2))
    # Behind the end of a file that is held there is nothing but its last frame.
    last = [2, Fraction(5, 2), 3] if short == "hold" else [0, Fraction(1, 2), 1]
    assert times == [1, Fraction(3, 2), *last]


def test_suffixes():
    assert {".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".webp", ".png", ".jpg"} <= suffixes()
    assert not {".txt", ".wav", ".csv"} & suffixes()
