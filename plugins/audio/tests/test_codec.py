"""Codecs: exact ways back, laws of the transforms, lengths, and where a column hears."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from suffuse.errors import ConfigError, DataError
from suffuse_audio.codec import Latent, Magnitude, Mdct, Mel, Picture, Stft, Waveform
from suffuse_audio.codec.griffin_lim import griffin_lim
from suffuse_audio.grammar import sounds
from suffuse_audio.listen import listen
from suffuse_audio.metrics import Reconstruction
from suffuse_audio.spans import kept, spans
from suffuse_audio.synth import render

ABOUT = {"rate": 8000, "channels": 2, "samples": 4096}
EXACT = [
    (Mdct, {"size": 64}), (Mdct, {"size": 128, "power": 0.5}), (Mdct, {"size": 256}), (Waveform, {"patch": 1}),
    (Waveform, {"patch": 8}), (Stft, {}), (Stft, {"size": 512, "hop": 64, "power": 1.0}),
    (Stft, {"size": 64, "hop": 16}),
]  # fmt: skip
LOSSY = [(Magnitude, {}), (Mel, {}), (Picture, {"bins": 64})]


def made(kind: Any, options: dict[str, Any], x: torch.Tensor | None = None, **about: Any) -> Any:
    """Return a codec that has measured `x`."""
    facts = ABOUT | about
    if x is not None:
        facts = facts | {"codec": kind(about=facts, **options).measure(x)}
    return kind(about=facts, **options)


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.2 * torch.randn(3, 2, 4096, generator=generator)


@pytest.mark.parametrize(("kind", "options"), EXACT)
def test_the_way_back_is_exact(kind, options, x):
    codec = made(kind, options, x)
    assert (codec.decode(codec.encode(x)) - x).abs().max() <= codec.tolerance <= 1e-5
    assert (codec.decode(codec.encode(torch.zeros(1, 2, 4096)))).abs().max() == 0


@pytest.mark.parametrize(("kind", "options"), [(Mdct, {}), (Stft, {}), (Waveform, {}), *LOSSY, (Picture, {})])
def test_the_spectrum_comes_back(kind, options):
    """Every codec states how much it loses of described sounds, and half of it would be too little to say."""
    sounded = torch.stack([torch.from_numpy(render(s, i)) for i, s in enumerate(sounds()[::26])])[:, None]
    codec = made(kind, options, sounded, channels=1, samples=8192)
    data: Any = SimpleNamespace(val=[{"x": row} for row in sounded])
    found = Reconstruction()(codec.decode(codec.encode(sounded)), {}, data)["log_spectral"]
    assert found <= codec.decibels and (codec.tolerance <= 1e-5 or found > codec.decibels / 2)


@pytest.mark.parametrize(("kind", "options"), [*EXACT, *LOSSY[:2]])
def test_states_have_unit_deviation(kind, options, x):
    spread = made(kind, options, x).encode(x).double().square().mean().sqrt()
    assert 0.8 < spread < 1.01


@pytest.mark.parametrize("size", [64, 128])
def test_the_mdct_is_orthonormal(size, x):
    codec = made(Mdct, {"size": size})
    c = codec.transform(x.double())
    assert c.shape == (3, 2, size, 4096 // size)
    torch.testing.assert_close(c.square().sum(), x.double().square().sum(), rtol=1e-6, atol=0)
    assert (codec.inverse(c) - x.double()).abs().max() < 1e-6
    # Its matrix on one frame's worth of unit impulses has orthonormal rows.
    short = Mdct(size=size, about={"rate": 8000, "channels": 1, "samples": 4 * size})
    rows = short.transform(torch.eye(4 * size, dtype=torch.float64)[:, None]).flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4 * size, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_mdct_is_its_equation():
    size, y = 16, torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = Mdct(size=size, about={"rate": 8000, "channels": 1, "samples": 64}).transform(y[None, None])[0, 0]
    for i in range(4):
        for k in (0, 3, 15):
            total = 0.0
            for n in range(2 * size):
                w = math.sin(math.pi * (n + 0.5) / (2 * size))
                total += (
                    w
                    * float(y[(i * size + n - size // 2) % 64])
                    * math.cos(math.pi / size * (n + 0.5 + size / 2) * (k + 0.5))
                )
            assert float(found[k, i]) == pytest.approx(math.sqrt(2 / size) * total, abs=1e-6)


@pytest.mark.parametrize(("f", "size"), [(440.0, 64), (1234.0, 128)])
def test_a_tone_is_in_its_bin(f, size):
    t = torch.arange(4096) / 8000
    c = Mdct(size=size, about=ABOUT | {"channels": 1}).transform(torch.sin(2 * torch.pi * f * t)[None, None])[0, 0]
    assert abs(int(c.square().mean(1).argmax()) - f / (8000 / (2 * size))) < 1


@pytest.mark.parametrize(("kind", "options"), EXACT + LOSSY)
def test_a_column_hears_only_what_it_says(kind, options):
    """An impulse reaches no column farther away than the codec's overlap."""
    codec = made(kind, options | ({"levels": 0} if kind is Picture else {}), channels=1)
    silence = codec.encode(torch.zeros(1, 1, 4096))
    for place in (1000, 2048, 3001):
        y = torch.zeros(1, 1, 4096)
        y[..., place] = 0.9
        moved = (codec.encode(y) - silence).abs().amax(tuple(range(silence.ndim - 1))) > 1e-6
        first = torch.arange(len(moved)) * codec.frame - codec.overlap
        may = (first <= place) & (place < first + codec.frame + 2 * codec.overlap)
        if kind in (Magnitude, Mel, Picture):
            may = (first - codec.frame <= place) & (place < first + 2 * codec.frame + 2 * codec.overlap)
        assert moved.any() and not (moved & ~may).any()


@pytest.mark.parametrize(("kind", "options"), EXACT + LOSSY)
def test_other_lengths(kind, options, x):
    codec = made(kind, options, x)
    longer = kind(about=ABOUT | {"codec": codec.stats}, seconds=1.3, **options)
    like = longer.like(torch.arange(2), {}, "cpu")
    assert longer.decode(torch.zeros_like(like)).shape == (2, 2, 10_400)
    assert like.shape[-1] % 16 == 0 and longer.implied == {"seconds_start": 0.0, "seconds_total": 1.3}
    same = codec.like(torch.arange(2), {}, "cpu")
    assert same.shape[1:] == codec.encode(x).shape[1:]


@pytest.mark.parametrize(("codec", "limit"), [((Mel, {}), 4.0), ((Picture, {"bins": 128, "size": 512}), 4.5)])
def test_what_a_mel_spectrogram_loses(codec, limit):
    """Log-spectral distance of a sound with a melody, in decibels above -60."""
    t = torch.arange(8192) / 8000
    y = sum(0.2 * torch.sin(2 * torch.pi * f * t) * torch.exp(-3 * (t - s).clamp(min=0)) * (t >= s)
            for f, s in ((262.0, 0.0), (330.0, 0.25), (392.0, 0.5), (523.0, 0.75)))[None, None]  # fmt: skip
    codec = made(*codec, y, channels=1, samples=8192)
    back = codec.decode(codec.encode(y))

    def log(v: torch.Tensor) -> torch.Tensor:
        window = torch.hann_window(512)
        return 20 * torch.stft(v[0], 512, 128, window=window, return_complex=True).abs().clamp(min=0.05).log10()

    assert float((log(back) - log(y)).square().mean(1).sqrt().mean()) < limit


def test_griffin_lim_finds_a_consistent_phase():
    t = torch.arange(4096) / 8000
    y = torch.sin(2 * torch.pi * (300 * t + 200 * t**2))[None]
    window = torch.hann_window(256)
    wanted = torch.stft(y, 256, 64, window=window, return_complex=True).abs()
    errors = []
    for n in (1, 10, 60):
        found = griffin_lim(wanted[None, ..., :-1], 256, 64, n, 4096)[0]
        again = torch.stft(found, 256, 64, window=window, return_complex=True).abs()
        errors.append(float((again - wanted).norm() / wanted.norm()))
    assert errors[2] < 0.15 and errors[2] < errors[1] < errors[0]


def test_magnitudes_are_enough_for_described_sounds():
    """Every kind of the embedded set is heard as before after its phases were found again."""
    chosen = sounds()[::9]
    x = torch.stack([torch.from_numpy(render(s, i)) for i, s in enumerate(chosen)])[:, None]
    codec = made(Magnitude, {}, x, channels=1, samples=8192)
    heard = [listen(y[0].numpy(), s) for y, s in zip(codec.decode(codec.encode(x)), chosen, strict=True)]
    assert np.mean([h.values == s.values for h, s in zip(heard, chosen, strict=True)]) > 0.97
    tonal = [h.clean for h, s in zip(heard, chosen, strict=True) if s.kind in ("note", "chord")]
    assert np.mean(tonal) > 0.99 and min(tonal) > 0.95


def test_full_scale_is_zero_decibels():
    t = torch.arange(8192) / 8000
    log = made(Magnitude, {}, channels=1, samples=8192)._log(torch.sin(2 * torch.pi * 500 * t)[None, None])
    assert abs(float(log[..., 8:24].max())) < 1e-3 and float(log.min()) == pytest.approx(-3.0)


def test_riffusion_pictures(tmp_path: Path, x):
    from PIL import Image

    for channels in (1, 2):
        codec = made(Picture, {"bins": 64}, x[:, :channels], channels=channels)
        state = codec.encode(x[:, :channels])
        path = codec.write(state[0], tmp_path / f"{channels}.png")
        with Image.open(path) as image:
            assert (
                image.size == (32, 64)
                and image.getexif()[11060] == 4000
                and bool(image.getexif()[11005]) == (channels == 2)
            )
        assert (codec.read(path) - state[0]).abs().max() < 1 / 200
    # Another scale is understood: half the amplitudes are a lighter picture.
    half = made(Picture, {"bins": 64}, x[:, :1] / 2, channels=1)
    quiet = half.encode(x[:1, :1] / 2)[0]
    read = made(Picture, {"bins": 64}, x[:, :1], channels=1).read(half.write(quiet, tmp_path / "half.png"))
    wanted = made(Picture, {"bins": 64}, x[:, :1], channels=1).encode(x[:1, :1] / 2)[0]
    assert (read - wanted).abs().max() < 0.02
    state, mask = codec.open(str(path), "0.2-0.3")
    assert state.shape == (1, 2, 64, 32) and (state[0] - codec.read(path)).abs().max() == 0 and mask is not None
    assert mask[..., :8].all() and not mask[..., 13:18].any()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no spectrogram image"):
        codec.read(tmp_path / "bad.png")
    with pytest.raises(DataError, match="64 pixels high"):
        made(Picture, {"bins": 32}, x).read(path)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Mdct, {"size": 63}, "codec.size=63"), (Mdct, {"size": 100}, "does not divide"),
        (Mdct, {"power": 0}, "codec.power=0"),
        (Waveform, {"patch": 0}, "codec.patch=0"), (Stft, {"size": 256, "hop": 256}, "codec.hop=256"),
        (Stft, {"power": 2}, "codec.power=2"), (Mel, {"bins": 0}, "codec.bins=0"), (Mel, {"hop": 300}, "codec.hop=300"),
        (Picture, {"hop": 100}, "codec.hop=100"), (Mdct, {"seconds": -1}, "seconds=-1"),
        (Mdct, {"seconds": "x"}, "seconds=x"), (Magnitude, {"hop": 512}, "codec.hop=512"),
        (Magnitude, {"floor": 3}, "codec.floor=3"),
    ],
)  # fmt: skip
def test_bad_arguments(kind, options, said):
    with pytest.raises(ConfigError, match=said):
        kind(about=ABOUT, **options)


def test_spans():
    assert spans("2.0-3.5", 4) == [(2.0, 3.5)] and spans("-0.5, 3-", 4) == [(0.0, 0.5), (3.0, 4)]
    for bad, said in (
        ("", "no stretch"),
        ("x", "no stretch"),
        ("-", "no stretch"),
        ("3-2", "ends before"),
        ("5-6", "behind"),
    ):
        with pytest.raises(ConfigError, match=said):
            spans(bad, 4)
    mask = kept([(1.0, 2.0)], 8, 4000, 0, 8000)
    assert mask.tolist() == [True, True, False, False, True, True, True, True]
    assert kept([(1.0, 2.0)], 8, 4000, 100, 8000).tolist() == [True, False, False, False, False, True, True, True]


def test_opening_a_file(tmp_path: Path, x):
    codec = made(Mdct, {"size": 64}, x)
    soundfile.write(tmp_path / "a.wav", x[0].T.numpy(), 8000, subtype="FLOAT")
    state, mask = codec.open(str(tmp_path / "a.wav"), "0.2-0.3")
    assert (codec.decode(state)[0] - x[0]).abs().max() < 1e-5
    columns = torch.arange(64)
    assert torch.equal(mask[0, 0], ((columns * 64 + 96) <= 1600) | ((columns * 64 - 32) >= 2400))
    # What is kept of the state is enough to keep the samples that lie outside.
    other = torch.where(mask, state, torch.randn_like(state))
    assert (codec.decode(other)[0, :, :1500] - x[0, :, :1500]).abs().max() < 1e-5
    assert codec.open(str(tmp_path / "a.wav"), None)[1] is None
    with pytest.raises(ConfigError, match="no such file"):
        codec.open(str(tmp_path / "none.wav"), None)
    with pytest.raises(ConfigError, match="everything would be made anew"):
        codec.open(str(tmp_path / "a.wav"), "0-9")
    soundfile.write(tmp_path / "short.wav", np.full(800, 0.5), 16_000)
    assert codec.decode(codec.open(str(tmp_path / "short.wav"), None)[0])[0, :, 600:].abs().max() < 1e-5


@pytest.fixture
def oobleck(tmp_path: Path) -> Path:
    """A tiny autoencoder as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=16, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=16,
        decoder_input_channels=8, audio_channels=2, sampling_rate=8000,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae", safe_serialization=True)
    return tmp_path / "vae"


def test_pretrained_latents(oobleck: Path, x):
    codec = made(Latent, {"path": str(oobleck), "batch": 2}, x)
    z = codec.encode(x)
    assert z.shape == (3, 8, 512) and codec.frame == 8
    torch.testing.assert_close(z.mean((0, 2)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2)), torch.ones(8), atol=1e-3, rtol=0)
    with torch.no_grad():
        vae = codec.coder.vae
        wanted = vae.decode(vae.encode(x).latent_dist.mean).sample
    torch.testing.assert_close(codec.decode(z), wanted[..., :4096], atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in codec.parameters())
    longer = Latent(path=str(oobleck), about=ABOUT | {"codec": codec.stats}, seconds=0.7)
    assert longer.like(torch.arange(2), {}, "cpu").shape == (2, 8, 704)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"channels": 1}, "made for 2 channels"),
        ({"rate": 16_000}, "made for 8000 Hz"),
        ({"samples": 4100}, "8 samples make"),
    ],
)
def test_latents_that_do_not_fit(oobleck: Path, about, said):
    with pytest.raises(ConfigError, match=said):
        Latent(path=str(oobleck), about=ABOUT | about)


def test_no_autoencoder(tmp_path: Path):
    pytest.importorskip("diffusers")
    for path, said in (
        (None, "give either codec.ckpt"),
        (str(tmp_path / "x"), "no such folder"),
        (str(tmp_path), "cannot load"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            Latent(path=path, about=ABOUT)
        assert "\n" not in str(caught.value)
