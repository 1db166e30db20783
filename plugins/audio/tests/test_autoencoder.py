"""Autoencoders of sounds: the loss, the figures, the task on the command line, and its latents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from suffuse.errors import CheckpointError, ConfigError
from suffuse.testing import command
from suffuse_audio.codec import Latent
from suffuse_audio.data import Rendered
from suffuse_audio.loss import MultiResolutionSTFT
from suffuse_audio.metrics import Reconstruction

SMALL = ["model.width=16", "model.multipliers=[1,1]", "model.latent=4", "data.count=96", "trainer=cpu"]


def test_the_distance_of_a_louder_sound_is_known():
    """Twice as loud: |S - 2 S| / |S| = 1 and |log S - log 2 S| = log 2, wherever there is sound."""
    x = torch.randn(3, 1, 4096, generator=torch.Generator().manual_seed(0))
    loss = MultiResolutionSTFT(sizes=[256, 64], floor=1e-9)
    assert torch.allclose(loss(2 * x, x), torch.full((3,), 1 + float(np.log(2))), atol=1e-4)
    assert loss(x, x).abs().max() == 0


def test_the_distance_is_that_of_plain_sums():
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 2048, generator=random), torch.randn(2, 2, 2048, generator=random)
    window = torch.hann_window(128)

    def magnitudes(z: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(z, (64, 64))
        frames = padded.unfold(-1, 128, 32) * window
        return (torch.fft.rfft(frames).abs() ** 2 * (2 / window.sum()) ** 2 + 1e-6).sqrt().flatten(1)

    a, b = magnitudes(y), magnitudes(x)
    wanted = (b - a).norm(dim=1) / b.norm(dim=1) + (a.log() - b.log()).abs().mean(1)
    assert torch.allclose(MultiResolutionSTFT(sizes=[128])(y, x), wanted, rtol=1e-4)


def test_silence_has_a_gradient():
    y = torch.zeros(1, 1, 2048, requires_grad=True)
    MultiResolutionSTFT()(y, torch.zeros(1, 1, 2048)).sum().backward()
    assert torch.isfinite(y.grad).all()
    for sizes in ([], [8], [64.0]):
        with pytest.raises(ConfigError, match="must be whole numbers of at least 16"):
            MultiResolutionSTFT(sizes=sizes)


def test_the_figures_of_known_errors():
    data = Rendered(count=40)
    data.setup()
    x = torch.stack([data.val[i]["x"] for i in range(len(data.val))])
    figures = Reconstruction()
    same = figures(x, {}, data)
    assert same["si_sdr"] > 80 and same["log_spectral"] == 0 and same["stft"] == 0
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    noise = noise - x * (noise * x).sum(2, keepdim=True) / x.square().sum(2, keepdim=True)
    noise = noise * (x.square().sum(2, keepdim=True) / noise.square().sum(2, keepdim=True)).sqrt()
    assert figures(3 * (x + 0.1 * noise), {}, data)["si_sdr"] == pytest.approx(20, abs=1e-3)
    half = figures(0.5 * x, {}, data)
    assert half["si_sdr"] > 80 and 1 < half["log_spectral"] < 6.03


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an autoencoder ``ae`` and a model of its latents ``l`` were trained for some steps."""
    path = tmp_path_factory.mktemp("ae")
    runs(path, "train", "task=autoencoder", "name=ae", "steps=6", "num=4", "metrics_num=8", *SMALL)
    return path


def runs(path: Path, task: str, *words: str) -> str:
    """Run a job of the command line in `path` and return what it prints."""
    modality = ["modality=audio", "every.validate=6", "every.preview=6", "val_num=8"] if task == "train" else []
    done = command(path, task, *modality, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_run_of_an_autoencoder(folder: Path):
    run = folder / "outputs/audio/ae"
    figures = json.loads((run / "metrics.json").read_text())
    assert {"si_sdr", "log_spectral", "stft", "val/loss"} <= set(figures)
    rows = [json.loads(line) for line in (run / "samples/final/manifest.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["data", "reconstruction"] * 2
    x, rate = soundfile.read(run / "samples/final" / rows[0]["file"])
    assert rate == 8000 and len(x) == 8192


def test_its_latents_are_diffused_from_a_cache(folder: Path):
    said = runs(
        folder, "train", "codec=latent", "codec.ckpt=outputs/audio/ae", "name=l", "steps=3", "num=2", "metrics_num=4",
        "cache=true", "model.width=16", "conditioner.width=16", "data.count=96", "sampler.steps=2", "trainer=cpu",
    )  # fmt: skip
    assert "shape (4, 256)" in said and "cache: train, 96 items" in said
    assert len(list((folder / "outputs/audio/cache").iterdir())) == 1
    runs(folder, "sample", "ckpt=outputs/audio/l", "num=2", "seconds=0.5", "out=short")
    x, _ = soundfile.read(folder / "short/00000.wav")
    assert len(x) == 4000
    runs(folder, "sample", "ckpt=outputs/audio/l", "num=1", "init=short/00000.wav", "mask=0.5-0.8", "out=edited")


def test_latents_of_ours(folder: Path):
    ckpt = str(folder / "outputs/audio/ae")
    about = {"rate": 8000, "channels": 1, "samples": 8192}
    x = torch.randn(2, 1, 8192) * 0.1
    first = Latent(ckpt=ckpt, about=about)
    codec = Latent(ckpt=ckpt, about=about | {"codec": first.measure(x)})
    z = codec.encode(x)
    assert z.shape == (2, 4, 256) and codec.frame == 32
    assert torch.allclose(z.std((0, 2)), torch.ones(4), atol=1e-3)
    wanted = first.coder.decode(first.coder.encode(x))
    assert torch.allclose(codec.decode(z), wanted, atol=1e-5)
    for change, said in (
        ({"channels": 2}, "made for 1 channels"), ({"rate": 16_000}, "made for 8000 Hz; set data.rate=8000"),
        ({"samples": 8200}, "32 samples make a latent"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            Latent(ckpt=ckpt, about=about | change)
    with pytest.raises(CheckpointError, match="not those that this model was trained on"):
        Latent(ckpt=ckpt, about=about | {"codec": {"mean": [0.0] * 4, "scale": [1.0] * 4, "autoencoder": "x"}})
    with pytest.raises(ConfigError, match=r"give either codec.ckpt.* or codec.path"):
        Latent(ckpt=ckpt, path=ckpt, about=about)
