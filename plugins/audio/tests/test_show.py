"""Previews and metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError
from suffuse.text import encoded
from suffuse_audio.data import Clips, Rendered
from suffuse_audio.grammar import held_out, sounds
from suffuse_audio.metrics import Attributes, Features
from suffuse_audio.preview import Sounds, faded, loop
from suffuse_audio.synth import render

ABOUT = {"rate": 8000, "channels": 1, "samples": 8192}


def wave(*frequencies: float) -> torch.Tensor:
    t = torch.arange(8192) / 8000
    return torch.stack([0.5 * torch.sin(2 * torch.pi * f * t) for f in frequencies])[:, None]


def test_the_sheet_shows_pitch(tmp_path: Path):
    path = Sounds(about=ABOUT, columns=2).overview(wave(300, 2500), ["low", "high"], tmp_path / "o.png")
    pixels = np.asarray(Image.open(path).convert("L"), dtype=float)
    height, width = pixels.shape
    spectrograms = pixels[int(0.45 * height) :]
    # The bright line is below the middle for the low tone and above it for the high one.
    rows = [
        int(half.max(1)[5:-5].argmax())
        for half in (spectrograms[:, 20 : width // 2 - 20], spectrograms[:, width // 2 + 20 : -20])
    ]
    assert rows[0] > rows[1]
    assert [p.name for p in tmp_path.iterdir()] == ["o.png"]


def test_the_sheet_of_many(tmp_path: Path):
    path = Sounds(about=ABOUT, most=5).overview(
        wave(*range(200, 900, 100)), [str(i) for i in range(7)], tmp_path / "o.png"
    )
    assert Image.open(path).size[0] > 300
    with pytest.raises(ValueError, match="2 sounds and 1 captions"):
        Sounds(about=ABOUT).overview(wave(1, 2), ["a"], tmp_path / "x.png")


def test_silence_and_nan_are_shown(tmp_path: Path):
    xs = torch.cat([torch.zeros(1, 1, 8192), torch.full((1, 1, 8192), float("nan"))])
    assert Sounds(about=ABOUT).overview(xs, ["", "x" * 200], tmp_path / "o.png").is_file()
    y, _ = soundfile.read(Sounds(about=ABOUT).save(xs[1], tmp_path / "a"))
    assert np.abs(y).max() == 0


def test_loud_sounds_are_made_softer(tmp_path: Path):
    x = wave(300)[0] * 5
    show, row = Sounds(about=ABOUT), {"index": 0, "seed": 0, "caption": "loud"}
    show.write(x[None], [row], tmp_path)
    y, _ = soundfile.read(tmp_path / "00000.wav")
    assert np.abs(y - x[0].numpy() / 2.5).max() < 1e-3 and row["peak"] == pytest.approx(2.5, abs=1e-3)
    show.write(x[None], [row | {"mask": "0-1"}], tmp_path)  # what was kept stays as loud as it was
    assert np.abs(soundfile.read(tmp_path / "00000.wav")[0] - x[0].numpy().clip(-1, 1)).max() < 1e-3


def test_media():
    media = Sounds(about=ABOUT).media(wave(300, 400), ["a", "b"])
    assert [type(item).__name__ for item in media] == ["Audio", "Audio"]


def test_a_loop_has_no_seam():
    t = torch.arange(8000) / 8000
    x = torch.sin(2 * torch.pi * 3.37 * t)[None]  # ends elsewhere than it starts
    whole = loop(x, 800)
    assert whole.shape == (1, 7200) and torch.equal(whole[:, 800:], x[:, 800:7200])
    twice = torch.cat([whole, whole], -1)
    assert twice.diff().abs().max() < 2 * x.diff().abs().max() < (x[0, 0] - x[0, -1]).abs()
    assert torch.equal(loop(x, 0), x) and loop(x, 10**6).shape == (1, 4000)


def test_joining():
    a, b = torch.ones(1, 100), -torch.ones(1, 100)
    joined = faded(a, b, 50)
    assert joined.shape == (1, 150) and joined[0, :50].min() == 1 and joined[0, 100:].max() == -1
    assert (joined[0, 50:100].diff() < 0).all() and faded(a, b, 0).shape == (1, 200)


@pytest.mark.parametrize(
    ("options", "said"), [({"format": "mp3"}, "format=mp3"), ({"loop": -1}, "loop=-1"), ({"most": 0}, "most=0")]
)
def test_bad_arguments(options, said):
    with pytest.raises(ConfigError, match=said):
        Sounds(**options)


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    data = Rendered(count=80)
    data.setup()
    return data


def test_attributes_of_true_sounds(rendered: Rendered):
    chosen = sounds()[::5]
    xs = torch.stack([torch.from_numpy(render(s, i))[None] for i, s in enumerate(chosen)])
    cond = {"text": torch.stack([encoded(s.caption) for s in chosen])}
    figures = Attributes()(xs, cond, rendered)
    assert figures["right"] == figures["right_held_out"] == figures["right_drum"] == 1
    assert figures["right_swapped"] < 0.1 and figures["cents"] < 9 and figures["clean"] > 0.95
    wrong = torch.cat([xs[1:], xs[:1]])
    assert Attributes()(wrong, cond, rendered)["right"] < 0.05
    half = torch.where((torch.arange(len(xs)) % 2 == 0)[:, None, None], xs, wrong)
    seen = [i for i, s in enumerate(chosen) if not held_out(s)]
    wanted = np.mean([i % 2 == 0 for i in seen])
    assert Attributes()(half, cond, rendered)["right"] == pytest.approx(wanted, abs=0.05)


def test_attributes_need_captions(rendered: Rendered):
    with pytest.raises(DataError, match="metrics=audio/features"):
        Attributes()(wave(300), {"label": torch.zeros(1)}, rendered)


class Two(Data):
    """Low and high tones in noise."""

    def setup(self) -> None:
        self.spec = Spec(labels=("low", "high"), about=ABOUT)
        self.train, self.val = self._made(160, 0), self._made(60, 1)

    @staticmethod
    def _made(count: int, seed: int) -> Clips:
        random = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        f = torch.where(labels == 0, 250.0, 1500.0) * (1 + 0.1 * torch.rand(count, generator=random))
        x = wave(*f.tolist()) + 0.1 * torch.randn(count, 1, 8192, generator=random)
        return Clips((x.clamp(-1, 1) * 32767).to(torch.int16), labels)


def test_features():
    data, metrics = Two(), Features(train_steps=30)
    data.setup()
    xs, labels = data._made(40, 5).samples.float() / 32767, torch.arange(40) % 2
    good = metrics(xs, {"label": labels}, data)
    assert good["agreement_real"] > 0.95 and good["agreement"] > 0.9 and good["agreement_worst"] > 0.8
    bad = metrics(xs, {"label": 1 - labels}, data)
    assert bad["agreement"] < 0.1 and bad["frechet"] == pytest.approx(good["frechet"])
    noise = metrics(torch.randn(40, 1, 8192), {"label": labels}, data)
    assert noise["frechet"] > 5 * good["frechet"] and 0.5 < good["frechet"] / good["frechet_real"] < 3
    one, two = (Features(train_steps=2)(xs, {"label": labels}, data) for _ in range(2))
    assert one == two
    with pytest.raises(DataError, match="needs classes"):
        data.spec = Spec(about=ABOUT)
        Features()(xs, {}, data)
    with pytest.raises(ConfigError, match="train_steps=0"):
        Features(train_steps=0)
