"""Fréchet audio distance, with a tiny CLAP model that the test makes: what is counted, not what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError
from suffuse_audio.data import Clips
from suffuse_audio.metrics import Fad

pytest.importorskip("transformers")
RATE = 8000


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random CLAP model of 8 features that hears a second at 16 kHz."""
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

    audio = ClapAudioConfig(
        spec_size=64, num_mel_bins=16, patch_size=4, patch_stride=[4, 4], window_size=4, patch_embeds_hidden_size=8,
        depths=[1, 1], num_attention_heads=[1, 2], hidden_size=16, projection_dim=8, num_hidden_layers=2,
    )  # fmt: skip
    text = ClapTextConfig(
        vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, projection_dim=8
    )
    path = tmp_path_factory.mktemp("clap")
    torch.default_generator.manual_seed(0)
    ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=8)).save_pretrained(
        path
    )
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=16_000, hop_length=128, max_length_s=1, fft_window_size=256,
        frequency_max=8000, truncation="rand_trunc",
    ).save_pretrained(path)  # fmt: skip
    return path


class Tones(Data):
    """Tones of any pitch in a little noise."""

    def __init__(self, train: int = 80, val: int = 40) -> None:
        super().__init__()
        self.sizes = (train, val)

    def setup(self) -> None:
        self.spec = Spec(about={"rate": RATE, "channels": 1, "samples": 4096})
        self.train, self.val = (Clips((tones(n, i) * 32767).to(torch.int16)) for i, n in enumerate(self.sizes))


def tones(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    f = 200 + 2000 * torch.rand(count, 1, 1, generator=random)
    return 0.5 * torch.sin(2 * torch.pi * f * torch.arange(4096) / RATE) + 0.02 * torch.randn(
        count, 1, 4096, generator=random
    )


@pytest.fixture(scope="module")
def data() -> Tones:
    made = Tones()
    made.setup()
    return made


def test_near_what_is_like_it_and_far_from_noise(clap: Path, data: Tones):
    fad = Fad(str(clap), batch=7)
    itself = torch.stack([data.train[i]["x"] for i in range(80)])
    whole = Tones(80, 80)
    whole.setup()
    assert fad(itself, {}, whole)["fad"] == pytest.approx(0, abs=1e-9)
    like = fad(tones(40, 9), {}, data)
    noise = fad(0.3 * torch.randn(40, 1, 4096, generator=torch.Generator().manual_seed(0)), {}, data)
    assert noise["fad"] > 5 * like["fad"] > 0 and noise["fad_real"] == like["fad_real"] and like["fad_num"] == 40
    assert 0.2 < like["fad"] / like["fad_real"] < 5


def test_it_is_the_distance_of_the_models_own_features(clap: Path, data: Tones):
    from transformers import ClapFeatureExtractor, ClapModel

    model, extractor = ClapModel.from_pretrained(clap).eval(), ClapFeatureExtractor.from_pretrained(clap)

    def features(x: torch.Tensor) -> np.ndarray:
        import torchaudio

        rows = [torchaudio.functional.resample(row[0], RATE, 16_000).numpy() for row in x]
        read = extractor(rows, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            out = model.get_audio_features(**read)
        return (out if isinstance(out, torch.Tensor) else out.pooler_output).double().numpy()

    samples = tones(40, 5)
    a, b = features(samples), features(torch.stack([data.train[i]["x"] for i in range(80)]))
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(np.real(linalg.sqrtm(one @ two)))
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one) + np.trace(two) - 2 * cross
    assert a.shape == (40, 8)
    assert Fad(str(clap), batch=16)(samples, {}, data)["fad"] == pytest.approx(wanted, rel=1e-4)


def test_it_repeats_and_hears_any_shape(clap: Path, data: Tones):
    fad = Fad(str(clap), reference=20)
    stereo = torch.cat([tones(6, 3)] * 2, 1)
    long = torch.cat([tones(6, 3)] * 5, 2)  # longer than the model hears: nothing is cropped at random
    assert fad(stereo, {}, data) == pytest.approx(fad(tones(6, 3), {}, data), abs=1e-5)
    assert fad(long, {}, data) == fad(long, {}, data)
    # Resampled at another length, equal up to rounding.
    assert torch.allclose(fad.clap(long, RATE), fad.clap(long[..., :9000], RATE), rtol=0, atol=1e-5)
    with pytest.raises(DataError, match="1 sounds are too few"):
        fad(tones(1, 0), {}, data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "path is not set; give a folder with a CLAP model"), ({"path": "none"}, "none: no such folder"),
        ({"batch": 0, "path": "x"}, "batch=0"), ({"reference": 1, "path": "x"}, "reference=1"),
    ],
)  # fmt: skip
def test_what_it_refuses(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        Fad(**options)
