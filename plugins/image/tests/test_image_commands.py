"""Text to image and everything around it by the commands: what is kept stays, what shares a seed is alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from suffuse.testing.command import Done, command

SMALL = [
    "modality=image", "trainer=cpu", "data=image/shapes_text", "data.count=64", "conditioner=text_learned",
    "conditioner.width=32", "conditioner.heads=2", "model.width=16", "steps=3", "every.preview=0", "every.validate=0",
    "every.checkpoint=0", "num=2", "val_num=8", "sampler.steps=3", "metrics=none",
]  # fmt: skip


def ran(folder: Path, *words: str) -> Done:
    done = command(folder, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def drawn(folder: Path, run: str, *words: str) -> tuple[list[dict], Path]:
    out = folder / f"out-{abs(hash(words)) % 10**8}"
    ran(folder, "sample", f"ckpt=outputs/image/{run}", "trainer=cpu", f"out={out}", *words)
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()], out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of text to image, and a picture of its own size."""
    folder = tmp_path_factory.mktemp("image")
    ran(folder, "train", *SMALL, "name=t")
    rows, columns = np.mgrid[:32, :32]
    Image.fromarray(np.stack([columns * 8, rows * 8, 0 * rows + 128], -1).astype(np.uint8)).save(folder / "in.png")
    hole = np.zeros((32, 32), np.uint8)
    hole[8:24, 8:24] = 255
    Image.fromarray(hole).save(folder / "hole.png")
    return folder


def test_prompts(run: Path) -> None:
    rows, out = drawn(run, "t", "num=2", "condition.text=[a red circle above a blue square,three green squares]")
    assert [row["caption"] for row in rows] == ["a red circle above a blue square", "three green squares"]
    assert pixels(out / rows[0]["file"]).shape == (32, 32, 3)
    drawn(run, "t", "num=1", "condition.text=a red circle", "guidance.negative.text=a blue square", "guidance=2")


def test_inpainting_keeps_what_is_not_white(run: Path) -> None:
    rows, out = drawn(run, "t", "num=2", "init=in.png", "mask=hole.png")
    a, b = (pixels(out / row["file"]) for row in rows)
    kept = np.asarray(Image.open(run / "hole.png")) == 0
    assert np.abs(a - pixels(run / "in.png"))[kept].max() <= 1 and np.abs(b - a)[kept].max() <= 1
    assert np.abs(a - b)[~kept].mean() > 1


def test_outpainting_and_other_sizes(run: Path) -> None:
    rows, out = drawn(run, "t", "num=1", "init=in.png", "mask=outside", "height=48", "width=64", "place=left")
    x = pixels(out / rows[0]["file"])
    assert x.shape == (48, 64, 3) and np.abs(x[8:40, :32] - pixels(run / "in.png")).max() <= 1
    rows, out = drawn(run, "t", "num=1", "height=32", "width=64")
    assert pixels(out / rows[0]["file"]).shape == (32, 64, 3)


def test_variations(run: Path) -> None:
    near, far = (drawn(run, "t", "num=2", "init=in.png", f"strength={s}", "sampler.steps=8") for s in (0.15, 0.9))
    gaps = [np.abs(pixels(out / rows[0]["file"]) - pixels(run / "in.png")).mean() for rows, out in (near, far)]
    assert gaps[0] < gaps[1]


def test_a_grid_of_captions_by_seeds(run: Path) -> None:
    words = ["condition.text=[a red circle,a blue square]", "num=4", "seed=3"]
    rows, out = drawn(run, "t", *words, "share_seeds=true")
    assert [row["seed"] for row in rows] == [3, 3, 4, 4]
    alone, own = drawn(run, "t", "condition.text=a blue square", "num=2", "seed=3")
    for shared, single in ((rows[1], alone[0]), (rows[3], alone[1])):
        assert np.abs(pixels(out / shared["file"]) - pixels(own / single["file"])).max() <= 1
    rows, _ = drawn(run, "t", "condition.text=[a red circle,a blue square]", "num=3", "interpolate=true")
    assert [row["weight"] for row in rows] == [0, 0.5, 1]


def test_a_mistake_is_one_clear_line(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(np.full((32, 31), 255, np.uint8)).save(run / "narrow.png")
    for words, said in (
        (["init=in.png", "mask=narrow.png"], "mask=narrow.png: it has 31 x 32 pixels"),
        (["init=in.png", "mask=outside"], "needs height= or width="),
        (["height=31"], "not divisible"),
        (["share_seeds=true"], "give several values"),
        (["condition.image=in.png"], "no such condition"),
        (["condition.txt=a"], "did you mean 'text'"),
    ):
        done = command(run, "sample", "ckpt=outputs/image/t", "num=1", "trainer=cpu", "out=never", *words)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    text = f"condition.text={'a red ' * 20}"
    ran(run, "sample", "ckpt=outputs/image/t", "num=1", "trainer=cpu", "out=long", text)
    assert "16 of its 40 words are read, without: a red a red" in caplog.text


def test_super_resolution_as_a_second_stage(run: Path) -> None:
    hint = "data.hint={_target_: suffuse_image.hints.LowRes, factor: 4}"
    inner = ["conditioner.inner.width=32", "conditioner.inner.heads=2"]
    words = [word for word in SMALL if not word.startswith("conditioner")]
    ran(run, "train", *words, "conditioner=image", *inner, "conditioner.noise=0.5", hint, "name=sr")
    Image.open(run / "in.png").resize((8, 8)).save(run / "small.png")
    rows, out = drawn(run, "sr", "num=2", "condition.image=small.png", "condition.text=a red circle",
                      "condition.image_noise=0.1", "guidance=2")  # fmt: skip
    assert rows[0]["condition"]["image_noise"] == pytest.approx(0.1)
    assert pixels(out / rows[1]["file"]).shape == (32, 32, 3)
    done = command(run, "sample", "ckpt=outputs/image/sr", "num=1", "trainer=cpu", "out=never")
    assert done.returncode == 1 and "condition.image is not set" in done.stderr


def test_latents_are_encoded_once_and_drawn_from(run: Path) -> None:
    own = [w for w in SMALL if not w.startswith(("conditioner", "model.width", "metrics"))]
    ran(run, "train", *own, "task=autoencoder", "model.width=8", "name=ae", "metrics_num=8")
    figures = json.loads((run / "outputs/image/ae/metrics.json").read_text())
    assert {"psnr", "ssim", "rfid", "rfid_real"} <= set(figures)
    words = [*SMALL, "codec=latent", "codec.ckpt=outputs/image/ae", "name=l"]
    ran(run, "suffuse", "encode", *words, "shard=30")
    done = ran(run, "train", *words, "cache=true")
    assert "cache: train" not in done.stdout
    rows, out = drawn(run, "l", "num=2", "init=in.png", "mask=outside", "width=64")
    assert pixels(out / rows[0]["file"]).shape == (32, 64, 3)


def test_captions_that_are_not_there(run: Path) -> None:
    Image.open(run / "in.png").save(run / "one.png")
    (run / "pets").mkdir()
    for name in ("a", "b", "c"):
        Image.open(run / "in.png").save(run / "pets" / f"{name}.png")
    (run / "pets" / "metadata.csv").write_text("file_name,title\na.png,x\nb.png,y\nc.png,z\n")
    words = ["modality=image", "data=image/folder", "data.path=pets", "conditioner=text_learned", "name=p"]
    done = command(run, "train", *words, "data.text=titel")
    assert done.returncode == 1 and "data.text=titel" in done.stderr and "did you mean 'title'" in done.stderr
