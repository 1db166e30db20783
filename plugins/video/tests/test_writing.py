"""Clips that are written and read again."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from suffuse_video.files import probe, read, write_gif, write_mp4, write_png


def picture(frames: int = 6, height: int = 24, width: int = 32) -> torch.Tensor:
    """Return a smooth clip whose colours move."""
    t, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij")
    return torch.stack([(3 * x + 2 * t).sin(), (4 * y - t).cos(), (2 * x * y + 3 * t).sin()]) * 0.45 + 0.5


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


@pytest.mark.parametrize("fps", [8, 12.5, 29.97])
def test_mp4_round_trip(tmp_path: Path, fps: float):
    clip = picture()
    path = write_mp4(clip, tmp_path / "a" / "clip.mp4", fps, title="a red square", comment="seed 3, last.ckpt")
    head = probe(path)
    assert (head.frames, head.height, head.width) == (6, 96, 128) and head.fps == pytest.approx(fps, rel=1e-4)
    back = read(path, fps=fps)
    assert psnr(back[..., 1::4, 1::4], clip) > 44 and psnr(back[..., 2::4, 2::4], clip) > 44
    assert psnr(back[..., ::4, ::4], clip) > 38  # colours have half the resolution: at the edges they run
    # No level is lost on the way: FFmpeg's own conversion makes everything darker by one of 255.
    assert (back - clip.repeat_interleave(4, 2).repeat_interleave(4, 3)).mean((1, 2, 3)).abs().max() < 0.0012
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "a red square" and container.metadata["comment"] == "seed 3, last.ckpt"
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p" and stream.codec_context.name in ("h264", "libx264")
        assert stream.codec_context.colorspace == 1
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]
    again = write_mp4(clip, tmp_path / "b.mp4", fps, title="a red square", comment="seed 3, last.ckpt")
    assert again.read_bytes() == path.read_bytes()


def test_odd_sides_repeat_their_edge(tmp_path: Path):
    clip = picture(3, 131, 137)
    path = write_mp4(clip, tmp_path / "odd.mp4", 8)
    back = read(path)
    assert back.shape == (3, 3, 132, 138) and psnr(back[..., :131, :137], clip) > 38
    assert (back[..., 131, :] - back[..., 130, :]).abs().max() < 0.06
    assert read(write_mp4(clip[..., :3, :5], tmp_path / "tiny.mp4", 8, least=0)).shape[2:] == (4, 6)


def test_mp4_of_what_is_no_number(tmp_path: Path):
    clip = torch.full((3, 2, 16, 16), float("nan"))
    clip[:, 1] = 7.0
    back = read(write_mp4(clip, tmp_path / "nan.mp4", 8))
    assert back[:, 0].max() < 0.02 and back[:, 1].min() > 0.98


def test_gif_round_trip(tmp_path: Path):
    clip = picture()
    path = write_gif(clip, tmp_path / "clip.gif", 8, comment="a red square")
    # 12.5 hundredths of a second are 12 and 13 in turns.
    assert probe(path).frames == 6 and probe(path).seconds == pytest.approx(0.75, abs=0.011)
    assert psnr(read(path)[..., ::4, ::4], clip) > 30
    with Image.open(path) as image:
        assert image.info["loop"] == 0 and image.info["comment"] == b"a red square" and image.size == (128, 96)
    with Image.open(write_gif(clip, tmp_path / "once.gif", 8, loop=False)) as image:
        assert "loop" not in image.info
    few = torch.zeros(3, 4, 8, 8)
    few[0, torch.arange(4), torch.arange(4)] = 1
    assert torch.equal(read(write_gif(few, tmp_path / "few.gif", 10, least=0)), few)  # few colours are exact
    assert probe(write_gif(few[:, :1], tmp_path / "one.gif", 10)).frames == 1


def test_png(tmp_path: Path):
    frame = (picture(1)[:, 0] * 255).round() / 255
    assert torch.equal(read(write_png(frame, tmp_path / "a.png"))[:, 0], frame)
