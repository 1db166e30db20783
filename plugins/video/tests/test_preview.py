"""Files and the sheet of clips."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from suffuse.errors import ConfigError
from suffuse_video.files import read
from suffuse_video.preview import Filmstrip, _font, _wrapped

ABOUT = {"fps": 5.0}


def steps(frames: int = 8, side: int = 16) -> torch.Tensor:
    """A clip whose frame t is grey of t / frames."""
    level = torch.arange(frames) / frames
    return level.view(1, -1, 1, 1).expand(3, -1, side, side).clone()


def test_files_say_what_was_asked(tmp_path: Path):
    rows = [{"index": 3, "seed": 9, "caption": "one red circle", "sampler": "heun", "checkpoint": "last.ckpt"}]
    Filmstrip(about=ABOUT).write(steps()[None], rows, tmp_path)
    assert rows[0]["file"] == "00003.mp4" and rows[0]["frames"] == 8 and rows[0]["seconds"] == 1.6
    with av.open(str(tmp_path / "00003.mp4")) as file:
        assert file.metadata["title"] == "one red circle" and "seed 9" in file.metadata["comment"]
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264" and float(stream.average_rate) == 5
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 8 and all(abs(f.mean() - 255 * t / 8) < 3 for t, f in enumerate(frames))
    gif = Image.open(tmp_path / "00003.gif")
    assert gif.n_frames == 8 and gif.info["duration"] == 200
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00003.gif", "00003.mp4"]


def test_formats(tmp_path: Path):
    assert Filmstrip("gif", about=ABOUT).save(steps(), tmp_path / "a").name == "a.gif"
    assert Filmstrip("mp4", about=ABOUT).save(steps(), tmp_path / "b").name == "b.mp4"
    Filmstrip(about=ABOUT).save(steps(1), tmp_path / "c")
    assert {p.name for p in tmp_path.iterdir()} == {"a.gif", "b.mp4", "c.mp4", "c.gif", "c.png"}


def test_the_sheet_shows_every_frame_in_order(tmp_path: Path):
    path = Filmstrip(about=ABOUT).overview(torch.stack([steps(), steps().flip(1)]), ["up", "down"], tmp_path / "o.png")
    pixels = np.asarray(Image.open(path).convert("L"), dtype=float)
    rows = [y for y in range(pixels.shape[0]) if (pixels[y, 10:-10] < 250).mean() > 0.8]
    top, low = rows[3], rows[-3]
    width = 48
    rising, falling = ([pixels[y, 4 + t * (width + 1) + width // 2] for t in range(8)] for y in (top, low))
    assert rising == pytest.approx([255 * t / 8 for t in range(8)], abs=1)
    assert falling == pytest.approx(rising[::-1], abs=1)


def test_long_clips_are_thinned_out_and_broken_values_shown(tmp_path: Path):
    xs = torch.stack([steps(40), torch.full((3, 40, 16, 16), float("nan"))])
    size = Image.open(Filmstrip(frames=5).overview(xs, ["", "x" * 300], tmp_path / "o.png")).size
    assert size[0] < 6 * 50
    many = Filmstrip(most=3).overview(torch.stack([steps(2)] * 5), list("abcde"), tmp_path / "m.png")
    assert Image.open(many).size[1] < 4 * (48 + 25)
    with pytest.raises(ValueError, match="2 clips and 1 captions"):
        Filmstrip().overview(xs, ["a"], tmp_path / "x.png")


def test_grey_clips_and_what_is_no_clip(tmp_path: Path):
    assert Filmstrip(about=ABOUT).save(steps()[:1], tmp_path / "g").stat().st_size > 100
    with pytest.raises(ConfigError, match="is no clip"):
        Filmstrip().save(torch.zeros(3, 8, 8), tmp_path / "a")


def test_media():
    media = Filmstrip(about=ABOUT).media(torch.stack([steps(), steps()]), ["a", "b"])
    assert [type(item).__name__ for item in media] == ["Video", "Video"]


def test_media_are_files_that_w_and_b_can_copy():
    preview = Filmstrip(about=ABOUT)
    first, second = (preview.media(steps()[None], ["a"]) for _ in range(2))
    assert not Path(first[0]._path).exists()  # of the last time, when it was logged
    back = read(second[0]._path, fps=5)
    assert back.shape[1] == 8 and [round(float(v) * 8) for v in back.mean((0, 2, 3))] == list(range(8))


def test_large_frames_are_reduced(tmp_path: Path):
    clip = steps(4, 400)[..., :300]
    path = Filmstrip(about=ABOUT).overview(clip[None], ["a caption"], tmp_path / "o.png")
    width, height = Image.open(path).size
    assert width == 4 * 121 - 1 + 2 * 4 and 160 < height < 200
    pixels = np.asarray(Image.open(path).convert("L"), dtype=float)
    assert [pixels[-20, 4 + 121 * t + 60] for t in range(4)] == pytest.approx([255 * t / 4 for t in range(4)], abs=1)


def test_captions_are_wrapped_and_cut():
    font = _font()
    lines = _wrapped("a three and a seven that bounce off every wall of a dark room", font, 64)
    assert len(lines) == 3 and all(font.getlength(line) <= 64 for line in lines)
    assert lines[0] == "a three and" and lines[-1].endswith("..")
    assert _wrapped("short", font, 64) == ["short"] and _wrapped("", font, 64) == []
    assert _wrapped("w" * 90, font, 64)[0].endswith("..")


def test_the_caption_is_in_the_gif(tmp_path: Path):
    rows = [{"index": 0, "caption": "one red circle"}]
    Filmstrip("gif", about=ABOUT).write(steps()[None], rows, tmp_path)
    assert Image.open(tmp_path / "00000.gif").info["comment"] == b"one red circle" and rows[0]["file"] == "00000.gif"


@pytest.mark.parametrize(
    ("options", "said"),
    [({"format": "avi"}, "preview.format=avi"), ({"format": []}, "preview.format="), ({"frames": 0}, "frames=0"),
     ({"most": 0}, "most=0"), ({"format": ["mp4", "gfi"]}, "did you mean 'gif'")],
)  # fmt: skip
def test_bad_arguments(options, said):
    with pytest.raises(ConfigError, match=said):
        Filmstrip(**options)
