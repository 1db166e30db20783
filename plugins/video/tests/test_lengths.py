"""Clips of lengths of their own: codecs, data, networks and files know the end; given frames are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.nn import DiT
from suffuse.testing import ModalityContract, command
from suffuse_video import ragged
from suffuse_video.codec import Pixels
from suffuse_video.data import Shapes
from suffuse_video.metrics import Attributes
from suffuse_video.metrics.given import Given, compared
from suffuse_video.nn import FoldedUNet
from suffuse_video.preview import Filmstrip
from suffuse_video.ragged import Spans

TINY = (
    "data.count=32", "data.batch_size=8", "model.width=16", "model.depth=1", "model.heads=2", "conditioner.width=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Shapes:
    found = Shapes(count=60, size=16, later=0.0, mask=True, batch_size=8)
    found.setup()
    return found


def test_rendered_clips_end_where_they_end(data: Shapes):
    assert data.spec.about["lengths"] == [4, 5, 6, 7, 8]
    for i in range(4):
        found = data.train[i]["x"]
        n = int(data.train.lengths[i])
        assert int(found["mask"].sum()) == n and found["x"][:, n:].abs().sum() == 0 and found["x"][:, n - 1].sum() > 0
    figures = Attributes()(data.val.batch(list(range(20)))["x"], data.val.batch(list(range(20)))["cond"], data)
    assert figures["right_real"] > 0.9


def test_pixels_of_several_lengths(data: Shapes):
    codec, batch = Pixels(about=data.spec.about), data.train.batch(list(range(12)))["x"]
    state = codec.encode(batch)
    assert torch.equal(state["length"], batch["mask"].sum(1)) and torch.equal(state["mask"], batch["mask"])
    for i, n in enumerate(state["length"].tolist()):
        assert torch.equal(state["x"][i, :, :n], 2 * batch["x"][i, :, :n] - 1) and state["x"][i, :, n:].abs().sum() == 0
    back = codec.decode(state)
    assert (back["x"] - batch["x"]).abs().max() < 1e-6 and torch.equal(back["mask"], batch["mask"])
    lengths = codec.like(torch.arange(200), {}, "cpu")["length"]
    assert set(lengths.tolist()) == {4, 5, 6, 7, 8}
    assert torch.equal(codec.like(torch.arange(7, 9), {}, "cpu")["length"], lengths[7:9])
    turns = Pixels(about=data.spec.about, frames=[5, 12]).like(torch.tensor([2, 3]), {}, "cpu")
    assert turns["length"].tolist() == [5, 12] and turns["x"].shape == (2, 3, 16, 16, 16)
    with pytest.raises(ConfigError, match="one length, give one number"):
        Pixels(about={"frames": 8, "height": 16, "width": 16}, frames=[4, 8])


def test_clips_are_lengthened_for_a_codec_of_whole_groups():
    """A codec of 1 + 4 k frames: the last frame is held, and what was held is cut away again."""
    spans = Spans(lambda x: x[:, :, ::4] * 2, lambda z: (z / 2).repeat_interleave(4, 2)[:, :, 3:], lambda n: (
        1 + -(-(n - 1) // 4) * 4, 1 + -(-(n - 1) // 4)))  # fmt: skip
    clip = torch.arange(1.0, 10)[None, :, None, None].expand(3, -1, 2, 2)
    batch = {name: torch.stack([ragged.item(clip, n)[name] for n in (9, 3, 6)]) for name in ("x", "mask")}
    state = spans.encode(batch)
    assert state["mask"].sum(1).tolist() == [3, 2, 3] and state["length"].tolist() == [9, 3, 6]
    assert state["x"][:, 0, :, 0, 0].tolist() == [[2, 10, 18], [2, 6, 0], [2, 10, 12]]
    back = spans.decode(state, 9)
    assert torch.equal(back["mask"], batch["mask"]) and (back["x"] * ~back["mask"][:, None, :, None, None]).sum() == 0


def test_tubes_do_not_see_padding():
    torch.manual_seed(0)
    shape = {"x": (3, 8, 8, 8), "mask": (8,), "length": ()}
    net = DiT(shape, patch=[4, 4, 4], levels=4, width=32, depth=2, heads=2, placed=8, refine=16)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    mask = torch.arange(16) < torch.tensor([16, 6])[:, None]
    x, noise = torch.randn(2, 3, 16, 8, 8) * mask[:, None, :, None, None], torch.rand(2, 16)
    with torch.no_grad():
        whole = net({"x": x, "mask": mask}, noise)["x"]
        alone = net({"x": x[1:, :, :8], "mask": mask[1:, :8]}, noise[1:, :8])["x"]
    assert (whole[1:, :, :6] - alone[:, :, :6]).abs().max() < 1e-4 * whole.std()
    with pytest.raises(ConfigError, match="masks need attention: model=video/tubes"):
        FoldedUNet(shape)


def test_files_have_their_own_number_of_frames(data: Shapes, tmp_path: Path):
    xs = data.train.batch([0, 1, 2])["x"]
    rows: list[dict[str, Any]] = [{"index": i, "caption": "x"} for i in range(3)]
    Filmstrip(format="gif").write(xs, rows, tmp_path)
    assert [row["frames"] for row in rows] == data.train.lengths[:3].tolist()


def test_given_frames_are_compared_with_what_was_given():
    x = [torch.rand(3, 6, 16, 16), torch.rand(3, 4, 16, 16)]
    same = compared(x, x, 1)
    assert same == {"given_psnr": 100, "given_ssim": 1, "after_psnr": 100, "after_ssim": 1, "given_psnr_least": 100}
    grey = [torch.full((3, n, 16, 16), 0.4) for n in (6, 4)]
    other = [clip.clone() for clip in grey]
    other[0][:, 1:] += 0.2
    other[1][:, :1] += 0.1
    found = compared(other, grey, 1)
    # 0.1 and 0.2 are 26 (of 25.5) and 51 levels: 153 - 102 = 51, 127.5 rounds to even.
    assert found["given_psnr_least"] == pytest.approx(20, abs=0.2) and found["given_psnr"] == pytest.approx(60, abs=0.1)
    assert found["after_psnr"] == pytest.approx((13.98 + 100) / 2, abs=0.01)
    for bad in ({"frames": 0}, {"count": 0}):
        with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
            Given(**bad)


def test_held_out_clips_are_begun_with_their_first_frames(data: Shapes):
    raw, known = Given(frames=2, count=5).begin(Pixels(about=data.spec.about), data)
    items = data.sample(5, held_out=True)
    for i, item in enumerate(items):
        n = int(item["x"]["mask"].sum())
        assert torch.equal(known.known["x"][i, :, :n], 2 * item["x"]["x"][:, :n] - 1)
    assert known.mask["x"][:, :, :2].all() and not known.mask["x"][:, :, 2:].any() and known.mask["mask"].all()
    assert len(raw["text"]) == 5
    assert torch.equal(known.of(torch.tensor([3])).known["length"], known.known["length"][3:4])


class TestVariable(ModalityContract):
    modality = "video"
    overrides = (*TINY, "experiment=video/variable")

    def bad_input(self, folder: Path) -> list[tuple[list[str], str]]:
        return []


def test_a_run(tmp_path: Path):
    """Files of own lengths, given frames that come back exactly, and their figures."""

    def run(*words: str) -> None:
        done = command(tmp_path, *words)
        assert not done.returncode, done.stderr

    common = ("trainer=cpu", "sampler.steps=2", "num=3")
    run("train", "modality=video", "experiment=video/variable", *TINY, *common, "name=v", "steps=2",
        "metrics=video/given", "metrics.count=4")  # fmt: skip
    folder = tmp_path / "outputs" / "video" / "v"
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["given_psnr"] == figures["given_psnr_least"] == 100 and figures["given_ssim"] == 1
    assert figures["after_psnr"] < 40 and figures["metrics_num"] == 4
    run("sample", "ckpt=outputs/video/v", "frames=[5,9]", "out=turns", *common)
    rows = [json.loads(line) for line in (tmp_path / "turns" / "manifest.jsonl").read_text().splitlines()]
    assert [row["frames"] for row in rows] == [5, 9, 5]
