"""The modality as a whole: contract, commands, other lengths, given frames, files."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from suffuse.testing import ModalityContract, command
from suffuse_video.data import Shapes

TINY = ("data.count=96", "data.batch_size=8", "model.width=32", "model.depth=2", "model.heads=2", "model.placed=16",
        "model.refine=8", "conditioner.width=16")  # fmt: skip


class TestModality(ModalityContract):
    modality = "video"
    overrides = TINY

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        return [(["data.count=0"], "data.count=0"), (["data.size=4"], "data.size=4")]


class TestDiT(ModalityContract):
    modality = "video"
    overrides = ("data.count=96", "data.batch_size=8", "conditioner.width=16", "model=video/dit", "model.width=32",
                 "model.depth=2", "model.heads=2", "model.placed=16", "model.attention=axial",
                 "model.patch=[2,4,4]", "model.levels=2")  # fmt: skip


class TestUNet(ModalityContract):
    """The core's own three-dimensional U-Net, no special case."""

    modality = "video"
    overrides = ("data.count=32", "data.batch_size=4", "conditioner.width=16", "model=unet", "model.width=16",
                 "model.patch=[1,2,2]", "model.factors=[[1,2,2]]", "model.attention=[1]")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny trained run ``outputs/video/tiny`` and a clip ``in.mp4``."""
    folder = tmp_path_factory.mktemp("video")
    words = [*TINY, "name=tiny", "steps=3", "num=3", "metrics_num=6", "trainer=cpu", "sampler.steps=2"]
    done = command(folder, "train", "modality=video", *words)
    assert done.returncode == 0, done.stderr
    data = Shapes(count=4, size=16)
    data.setup()
    write(data.train[0]["x"], folder / "in.mp4")
    return folder


def write(x: torch.Tensor, path: Path) -> None:
    from suffuse_video.files import write_mp4

    write_mp4(x, path, fps=8.0)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def drawn(folder: Path, *words: str) -> tuple[list[dict], Path]:
    """Return the manifest of a sampling job and where it is."""
    given = {word.partition("=")[0] for word in words}
    more = [w for w in ("num=2", "sampler.steps=2") if w.partition("=")[0] not in given]
    done = command(folder, "sample", "ckpt=outputs/video/tiny", "trainer=cpu", *more, *words)
    assert done.returncode == 0, done.stderr + done.stdout
    out = folder / next(word for word in words if word.startswith("out=")).partition("=")[2]
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()], out


def test_a_run_ends_in_clips(run: Path):
    final = run / "outputs" / "video" / "tiny" / "samples" / "final"
    figures = json.loads((run / "outputs" / "video" / "tiny" / "metrics.json").read_text())
    assert frames_of(final / "00000.mp4").shape[0] == 8 and (final / "overview.png").stat().st_size > 1000
    assert figures["right_real"] == 1 and 0 <= figures["right"] < 0.5


def test_prompts_and_lengths(run: Path):
    rows, out = drawn(run, "condition.text=one red diamond moving left slowly", "frames=20", "out=long")
    assert [row["caption"].split(",")[0] for row in rows] == ["one red diamond moving left slowly"] * 2
    long = frames_of(out / rows[0]["file"])
    assert len(long) == 20
    _, short = drawn(run, "condition.text=one red diamond moving left slowly", "frames=5", "out=short")
    assert len(frames_of(short / "00000.mp4")) == 5
    for bad, said in (("frames=0", "frames=0"), ("frmes=3", "did you mean 'frames'"),
                      ("window.overlap=9", "window.overlap=9")):  # fmt: skip
        done = command(run, "sample", "ckpt=outputs/video/tiny", "frames=30", bad) if "window" in bad else command(
            run, "sample", "ckpt=outputs/video/tiny", bad)  # fmt: skip
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def states(run: Path, frames: int, mask: str, windows: dict | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is drawn with given frames, before it is a file, and the clip that they come from."""
    from suffuse.build import build
    from suffuse.checkpoint import read
    from suffuse.codec import implied
    from suffuse.edit import Edit
    from suffuse.model import Model, Recipe
    from suffuse.rollout import Window

    saved = read(run / "outputs" / "video" / "tiny" / "checkpoints" / "last.ckpt")
    cfg = saved["suffuse"]["config"]
    cfg["sampler"]["steps"] = 2
    model = Model.load(saved)
    codec = build(cfg["codec"], "codec", about=model.facts.about, frames=frames)
    known, kept = codec.open(str(run / "in.mp4"), mask)
    raw = model.conditioner.parse(implied(codec, model.conditioner), 2)
    seeds = torch.arange(2)
    like = codec.like(seeds, raw, "cpu")
    return model.draw(Recipe.build(cfg), seeds, raw, like, Edit(known, kept), None, Window(**(windows or {}))), known


def test_given_frames_stay_exactly(run: Path):
    """Image to video, the other way round, between keyframes, and beyond the training length: one mechanism."""
    for frames, mask, given in ((8, "1-", [0]), (8, "-6", [7]), (8, "1-6", [0, 7]), (8, "0,2-3,5-", [1, 4]),
                                (20, "4-", [0, 1, 2, 3]), (20, "1-18", [0, 19])):  # fmt: skip
        x, known = states(run, frames, mask)
        assert x.shape[2] == frames
        assert torch.equal(x[:, :, given], known[:, :, given].expand(2, -1, -1, -1, -1)), mask
        rest = [t for t in range(frames) if t not in given]
        assert (x[0, :, rest] - known[0, :, rest]).abs().amax((0, 2, 3)).min() > 1e-3, mask


def test_the_first_window_does_not_depend_on_the_length(run: Path):
    short, _ = states(run, 8, "1-")
    long, _ = states(run, 16, "1-")
    assert torch.equal(short, long[:, :, :8])
    other, _ = states(run, 16, "1-", {"overlap": 2})
    assert torch.equal(other[:, :, :8], short) and not torch.equal(other, long)


def test_a_clip_as_init(run: Path):
    rows, out = drawn(run, "init=in.mp4", "mask=1-", "num=1", "out=i2v")
    assert rows[0]["init"] == "in.mp4" and rows[0]["mask"] == "1-"
    first = frames_of(out / rows[0]["file"])[0].astype(float)
    scale = first.shape[0] // 16
    wanted = frames_of(run / "in.mp4")[0].astype(float)
    small = first[scale // 2 :: scale, scale // 2 :: scale]
    shown = wanted[wanted.shape[0] // 32 :: wanted.shape[0] // 16, wanted.shape[1] // 32 :: wanted.shape[1] // 16]
    assert 10 * np.log10(255**2 / np.square(small - shown).mean()) > 30
    drawn(run, "init=in.mp4", "strength=0.5", "num=1", "out=varied")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mask=1-"], "mask=1- needs init="), (["init=none.mp4", "mask=1-"], "init=none.mp4"),
        (["init=bad.mp4", "mask=1-"], "init=bad.mp4"), (["init=in.mp4", "mask=x"], "names no frames"),
        (["init=in.mp4", "strength=0.5", "frames=20"], "strength="), (["interpolate=true", "frames=20"], "interpolate"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(run: Path, words: list[str], said: str):
    (run / "bad.mp4").write_bytes(b"not a clip")
    done = command(run, "sample", "ckpt=outputs/video/tiny", "num=1", "trainer=cpu", "out=never", *words)
    assert done.returncode == 1 and said in done.stderr and done.stderr.strip().count("\n") == 0, done.stderr
    assert not (run / "never").exists()
