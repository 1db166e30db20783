"""The real commands on published models: sample, edit, train, export, and back into diffusers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from suffuse.checkpoint import read

QUICK = ["trainer=cpu", "num=2", "sampler.steps=2"]
TRAIN = [
    "data=image/folder", "data.size=32", "data.batch_size=4", "every.log=1", "every.validate=0", "every.preview=0",
    "preview_num=2", "val_num=2", "metrics=none", "optimizer.lr=1e-2", "lr_schedule.warmup=0", *QUICK,
]  # fmt: skip


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float64)


def manifest(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two folders of a few pictures."""
    root = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate(("blue", "red")):
        (root / colour).mkdir()
        for i in range(4):
            noise = np.random.default_rng(i).integers(0, 80, (36, 36, 3))
            noise[..., 2 * (1 - number)] += 150
            Image.fromarray(noise.astype(np.uint8)).save(root / colour / f"{i}.png")
    return root


def noise_of(seeds, shape):
    from suffuse.noise import KeyedNoise

    return KeyedNoise(torch.tensor(seeds)).normal(torch.empty(len(seeds), *shape), 0, 0)


def drawn(pipe, prompt, seeds, shape=(4, 16, 16), **how):
    """Return what diffusers draws of the noise of our seeds, in [0, 255]."""
    pipe.set_progress_bar_config(disable=True)
    found = pipe([prompt] * len(seeds), latents=noise_of(seeds, shape), output_type="np", **how)
    return np.round(255 * found.images)


def test_sample(local, folder, loaded, tmp_path):
    """The files are the pipeline's pictures; a size of one's own; a sample is its seed's."""
    how = ["condition.text=a red cat", "guidance=3", "guidance.negative.text=blurry", *QUICK]
    result = local("sample", f"pretrained={folder('sd')}", *how, "seed=5", "out=a", "height=40", "width=24")
    assert result.returncode == 0, result.stderr
    rows = manifest(tmp_path / "a")
    assert [row["seed"] for row in rows] == [5, 6] and rows[0]["condition"] == {"text": "a red cat"}
    assert (rows[0]["sampler"], rows[0]["grid"], rows[0]["height"]) == ("ddim", "diffusers", 40)
    wanted = drawn(
        loaded("sd"), "a red cat", [5, 6], (4, 20, 12), num_inference_steps=2, guidance_scale=3.0, height=40, width=24,
        negative_prompt=["blurry"] * 2,
    )  # fmt: skip
    for row, picture in zip(rows, wanted, strict=True):
        assert np.abs(pixels(tmp_path / "a" / row["file"]) - picture).max() <= 1
    again = local("sample", f"pretrained={folder('sd')}", *how, "seed=6", "num=1", "out=b", "height=40", "width=24")
    assert (
        again.returncode == 0 and np.abs(pixels(tmp_path / "b/00000.png") - pixels(tmp_path / "a/00001.png")).max() <= 1
    )


def test_our_samplers_and_grids(local, folder, tmp_path):
    for words in (["sampler=unipc", "grid=karras"], ["sampler=heun", "grid=trailing"], ["guidance=apg"]):
        out = f"out={'-'.join(words).replace('=', '-')}"
        result = local("sample", f"pretrained={folder('sd')}", "condition.text=red", *words, *QUICK, out)
        assert result.returncode == 0, result.stderr
        assert pixels(tmp_path / out.removeprefix("out=") / "00000.png").std() > 1


def test_sounds(local, folder, tmp_path):
    import soundfile

    words = [f"pretrained={folder('audio')}", "condition.text=a bell", "seconds=0.01", *QUICK, "out=s"]
    result = local("sample", *words)
    assert result.returncode == 0, result.stderr
    sound, rate = soundfile.read(tmp_path / "s/00000.wav")
    assert sound.shape == (40, 2) and rate == 4000 and sound.std() > 0.01


def test_editing(local, folder, tmp_path):
    """Variations, a mask file, and a picture that is extended: what is kept comes back, what is not is new."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).resize((33, 33)).save(tmp_path / "init.png")
    mask = np.zeros((33, 33), dtype=np.uint8)
    mask[:, 16:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = [f"pretrained={folder('sd')}", "condition.text=red", *QUICK]
    back = pixels(tmp_path / "init.png")
    for name, more in {
        "vary": ["strength=0.5"],
        "part": ["mask=mask.png"],
        "wide": ["mask=outside", "height=48", "width=64"],
    }.items():
        result = local("sample", *words, "init=init.png", *more, f"out={name}")
        assert result.returncode == 0, result.stderr
        assert manifest(tmp_path / name)[0]["init"] == "init.png"
    assert pixels(tmp_path / "vary/00000.png").shape == (32, 32, 3)
    assert pixels(tmp_path / "wide/00000.png").shape == (48, 64, 3) and back.shape == (33, 33, 3)
    # The tiny autoencoder loses nearly everything, but of what is kept both samples have the same.
    for name, kept in (("part", np.s_[:, :10]), ("wide", np.s_[16:32, 22:42])):
        a, b = (pixels(tmp_path / name / f"0000{i}.png") for i in (0, 1))
        new = np.ones(a.shape[:2], dtype=bool)
        new[kept] = False
        assert np.abs(a - b)[kept].mean() < 0.5 * np.abs(a - b)[new].mean()
    for more, text in (
        (["mask=outside"], "mask=outside needs height= or width="),
        (["mask=gone.png"], "mask=gone.png: no such file"),
        (["strength=0.5", "height=41"], "height=41 must be a multiple of 2"),
    ):
        result = local("sample", *words, "init=init.png", *more, "out=x")
        assert result.returncode == 1 and text in result.stderr, result.stderr


def test_tiles(ours, folder):
    whole, tiled = (ours(folder("sd"), *words).codec for words in ((), ("tiled=true",)))
    z = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(0))
    a, b = whole.decode(z), tiled.decode(z)
    assert tiled.vae.use_tiling and not whole.vae.use_tiling and a.shape == b.shape == (1, 3, 80, 80)
    assert 0 < (a - b).abs().mean() < 0.1


def test_train_all_weights_and_export(local, folder, pictures, tmp_path):
    from diffusers import StableDiffusionPipeline

    start = [f"pretrained={folder('sd')}", f"data.path={pictures}", *TRAIN, "name=x", "steps=3", "every.preview=3"]
    result = local("train", *start)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "outputs/image/x"
    assert (run / "previews/step-000003.png").is_file()
    result = local("sample", f"ckpt={run}", "condition.text=red", *QUICK, "guidance=3", "out=s")
    assert result.returncode == 0, result.stderr
    result = local("suffuse", "export", f"ckpt={run}", "to=diffusers", "out=there")
    assert result.returncode == 0, result.stderr
    assert not list((tmp_path / "there").rglob("*.bin")) and not list(tmp_path.glob(".there*"))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "there", requires_safety_checker=False)
    wanted = drawn(pipe, "red", [0, 1], num_inference_steps=2, guidance_scale=3.0)
    for i in (0, 1):
        assert np.abs(pixels(tmp_path / f"s/0000{i}.png") - wanted[i]).max() <= 1
    result = local("sample", f"pretrained={tmp_path / 'there'}", "condition.text=red", *QUICK, "guidance=3", "out=t")
    assert result.returncode == 0 and np.abs(pixels(tmp_path / "t/00001.png") - wanted[1]).max() <= 1
    untouched = StableDiffusionPipeline.from_pretrained(folder("sd"))
    assert np.abs(drawn(untouched, "red", [0, 1], num_inference_steps=2, guidance_scale=3.0) - wanted).max() > 3
    # A folder that is there already is left alone; other words are answered.
    for words, text in (
        (["to=diffusers", "out=there"], "out=there is there already"),
        (["to=lora"], "this run trained all weights"),
        (["to=diffuser"], "to=diffuser: no such format; did you mean 'diffusers'?"),
        (["form=x"], "unknown key 'form'"),
    ):
        result = local("suffuse", "export", f"ckpt={run}", *words)
        assert result.returncode == 1 and text in result.stderr, result.stderr


def test_train_adapters_and_export(local, folder, pictures, tmp_path, loaded):
    """Adapters: small checkpoints, frozen weights, resumed to the bit, exported merged and alone."""
    from diffusers import StableDiffusionPipeline

    words = [
        f"pretrained={folder('sd')}",
        f"data.path={pictures}",
        *TRAIN,
        "model.lora=4",
        "every.checkpoint=2",
        "keep=9",
    ]
    words += ["steps=4"]
    assert (result := local("train", *words, "name=l")).returncode == 0, result.stderr
    run, other = (tmp_path / f"outputs/image/{name}" for name in "lm")
    # Continued from the middle it ends with the same bits.
    shutil.copytree(run, other)
    middle = min((other / "checkpoints").glob("step-*.ckpt"))
    assert read(middle)["suffuse"]["step"] == 2
    middle.replace(other / "checkpoints/last.ckpt")
    assert (result := local("train", *words, "name=m", "ckpt=auto")).returncode == 0, result.stderr
    assert "step-00002" not in result.stdout and "at step 2" in result.stdout
    saved, resumed = (read(at / "checkpoints/last.ckpt") for at in (run, other))
    state = saved["state_dict"]
    assert state and all("lora_" in key for key in state)
    assert all(torch.equal(value, resumed["state_dict"][key]) for key, value in state.items())
    assert any(value.abs().max() > 0 for key, value in state.items() if "lora_B" in key)
    assert (run / "checkpoints/last.ckpt").stat().st_size < 400_000 < (folder("sd") / "unet").stat().st_size + 10**6
    result = local("sample", f"ckpt={run}", "condition.text=red", *QUICK, "guidance=3", "out=s")
    assert result.returncode == 0, result.stderr
    found = np.stack([pixels(tmp_path / f"s/0000{i}.png") for i in (0, 1)])
    for to in ("diffusers", "lora", "safetensors"):
        assert (result := local("suffuse", "export", f"ckpt={run}", f"to={to}")).returncode == 0, result.stderr
    how = {"num_inference_steps": 2, "guidance_scale": 3.0}
    merged = StableDiffusionPipeline.from_pretrained(run / "export/diffusers")
    assert not any("lora" in name for name, _ in merged.unet.named_parameters())
    assert np.abs(drawn(merged, "red", [0, 1], **how) - found).max() <= 1
    apart = loaded("sd")
    plain = drawn(apart, "red", [0, 1], **how)
    apart.load_lora_weights(run / "export/lora")
    assert np.abs(drawn(apart, "red", [0, 1], **how) - found).max() <= 1 and np.abs(plain - found).max() > 3


def test_where_the_folder_is_now(local, folder, pictures, tmp_path):
    here = Path(shutil.copytree(folder("ddpm"), tmp_path / "here"))
    words = [f"pretrained={here}", f"data.path={pictures}", *TRAIN, "data.size=16", "name=d", "steps=1"]
    assert (result := local("train", *words)).returncode == 0, result.stderr
    run = tmp_path / "outputs/image/d"
    here.rename(tmp_path / "there")
    result = local("sample", f"ckpt={run}", *QUICK, "out=a")
    assert result.returncode == 1 and f"pretrained={here}: no such folder" in result.stderr
    result = local("sample", f"ckpt={run}", f"pretrained={tmp_path / 'there'}", *QUICK, "out=a")
    assert result.returncode == 0, result.stderr


def test_mistakes(local, folder, trained, tmp_path):
    for words, text in (
        ([f"pretrained={tmp_path}"], "no pipeline of diffusers"),
        (["pretrained=nobody/nothing"], "neither a folder nor in the hub's local cache"),
        ([f"pretrained={folder('sd')}", "condition.label=1"], "condition.label: this model knows no such condition"),
        ([f"pretrained={folder('sd')}", "seconds=1"], "takes no seconds"),
        ([f"ckpt={trained}", "tiled=true"], "a model of modality=image takes no tiled"),
        ([f"ckpt={trained}", f"pretrained={folder('sd')}"], "pretrained= beside ckpt= is for runs that were started"),
        ([f"pretrained={folder('sd')}", "height=33"], "height=33 must be a multiple of 2"),
    ):
        result = local("sample", *words, *QUICK, "out=x")
        assert result.returncode == 1 and text in result.stderr, result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    result = local("suffuse", "export", f"ckpt={trained}", "to=diffusers")
    assert result.returncode == 1 and "was not started with pretrained=" in result.stderr
    result = local("suffuse", "export", f"ckpt={trained}", "to=safetensors", "out=mine")
    assert result.returncode == 0, result.stderr
    from safetensors.torch import load_file

    state = read(trained / "checkpoints/last.ckpt")["state_dict"]
    found = load_file(tmp_path / "mine/model.safetensors")
    assert {f"model.{key}" for key in found} == set(state)
    assert all(torch.equal(value, state[f"model.{key}"]) for key, value in found.items())
    assert json.loads((tmp_path / "mine/config.json").read_text())["config"]["modality"]["name"] == "image"
