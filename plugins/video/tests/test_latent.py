"""Latents of clips: autoencoders of diffusers, made tiny and reloaded from a folder, and of ours; tiles; figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from suffuse.data import Data, Spec
from suffuse.errors import CheckpointError, ConfigError
from suffuse.testing import command
from suffuse_video.codec import Latent
from suffuse_video.codec.sizes import nearest
from suffuse_video.codec.tiles import Tiled
from suffuse_video.metrics import Reconstruction
from suffuse_video.metrics.reconstruction import ssim
from torch import Tensor
from torch.utils.data import Dataset

_LTX = dict.fromkeys(("spatio_temporal_scaling", "decoder_spatio_temporal_scaling"), (True, True))
_DC = {
    f"{half}_{name}": value for half in ("encoder", "decoder")
    for name, value in (
        ("block_out_channels", (8, 8, 8)), ("layers_per_block", (1, 1, 1)), ("qkv_multiscales", ((), (), ())),
    )
}  # fmt: skip
CLIPS: dict[str, dict[str, Any]] = {
    "AutoencoderKLWan": {
        "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [True, True],
        "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0], "scale_factor_spatial": 4,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 4, "block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "patch_size": 1,
        "down_block_types": ("LTXVideoDownBlock3D",) * 2, "layers_per_block": (1, 1, 1), "upsample_factor": (1, 1),
        "decoder_layers_per_block": (1, 1, 1), "decoder_inject_noise": (False,) * 3, "upsample_residual": (False,) * 2,
    } | _LTX,
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4, "block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("HunyuanVideoDownBlock3D",) * 3, "up_block_types": ("HunyuanVideoUpBlock3D",) * 3,
        "spatial_compression_ratio": 4, "scaling_factor": 0.5,
    },
    "AutoencoderKLCogVideoX": {
        "latent_channels": 4, "block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("CogVideoXDownBlock3D",) * 3, "up_block_types": ("CogVideoXUpBlock3D",) * 3,
        "temporal_compression_ratio": 4,
    },
}  # fmt: skip
PICTURES: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "latent_channels": 4, "block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "scaling_factor": 0.5, "shift_factor": 0.25,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1),
    },
    "AutoencoderDC": {"latent_channels": 4, "attention_head_dim": 4} | _DC,
}  # fmt: skip
ALL = CLIPS | PICTURES
ABOUT = {"frames": 9, "height": 16, "width": 24, "fps": 8.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    """A function that returns a family's network and the folder that it was saved in."""
    diffusers, found = pytest.importorskip("diffusers"), {}

    def get(name: str) -> tuple[Any, Path]:
        if name not in found:
            torch.manual_seed(0)
            network = getattr(diffusers, name)(**ALL[name]).eval().requires_grad_(False)
            folder = tmp_path_factory.mktemp(name)
            network.save_pretrained(folder, safe_serialization=True)
            found[name] = network, folder
        return found[name]

    return get


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(2, 3, 9, 16, 24, generator=torch.Generator().manual_seed(0))


def theirs(network: Any, x: Tensor) -> Tensor:
    """Return the latents that diffusers gives, frame by frame where it takes pictures."""
    if type(network).__name__ in CLIPS:
        return network.encode(2 * x - 1).latent_dist.mean
    frames = [network.encode(2 * frame - 1) for frame in x.unbind(2)]
    return torch.stack([f.latent_dist.mean if hasattr(f, "latent_dist") else next(iter(f.values())) for f in frames], 2)


@pytest.mark.parametrize("name", ALL)
def test_latents_are_those_of_diffusers(saved, x, name) -> None:
    network, folder = saved(name)
    plain = Latent(path=str(folder), about=ABOUT, batch=1)
    wanted = theirs(network, x)
    torch.testing.assert_close(plain.encode(x), wanted, atol=1e-5, rtol=0)
    assert wanted.shape[1:] == plain.shape and plain.coder.latent == 4
    assert plain.coder.factor == ((4, 4, 4) if name in CLIPS else (1, 4, 4))
    assert plain.shape == ((4, 3, 4, 6) if name in CLIPS else (4, 9, 4, 6))
    codec = Latent(path=str(folder), about=ABOUT | {"codec": plain.measure(x)})
    z = codec.encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3, 4)), torch.ones(4), atol=1e-3, rtol=0)
    back = network.decode(wanted if name in CLIPS else wanted.transpose(1, 2).flatten(0, 1)).sample
    back = back if name in CLIPS else back.unflatten(0, (2, 9)).transpose(1, 2)
    torch.testing.assert_close(codec.decode(z), (back / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
    assert not any(p.requires_grad for p in codec.parameters()) and not codec.training
    # Another length at sampling, and a clip of one frame.
    longer = Latent(path=str(folder), about=ABOUT, frames=17)
    assert longer.like(torch.arange(3), {}, "cpu").shape == (3, 4, 5 if name in CLIPS else 17, 4, 6)
    one = codec.encode(x[:, :, :1])
    assert one.shape == (2, 4, 1, 4, 6) and codec.decode(one).shape == (2, 3, 1, 16, 24)
    # The first frame does not know of later ones; a group norm over the whole of it does.
    if name in ("AutoencoderKLWan", "AutoencoderKLLTXVideo", *PICTURES):
        torch.testing.assert_close(one, z[:, :, :1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "facts", "said"),
    [
        ("AutoencoderKLWan", {"frames": 8}, r"clips of 8 frames and 16 x 24 pixels .* frames=5 or 9 would"),
        ("AutoencoderKLLTXVideo", {"frames": 6, "height": 18}, r"frames=5 or 9 and height=16 or 20 would"),
        ("AutoencoderKLHunyuanVideo", {"width": 30}, r"; width=28 or 32 would"),
        ("AutoencoderKLCogVideoX", {"frames": 6}, r"; frames=1 or 8 would"),
        ("AutoencoderKL", {"frames": 7, "height": 3}, r"; height=4 would"),
    ],
)
def test_sizes_that_do_not_fit(saved, name, facts, said) -> None:
    folder = saved(name)[1]
    with pytest.raises(ConfigError, match=said) as caught:
        Latent(path=str(folder), about=ABOUT | facts)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"codec.path={folder}")


def test_sizes_asked_for_and_seen_later(saved, x) -> None:
    folder = str(saved("AutoencoderKLWan")[1])
    with pytest.raises(ConfigError, match=r"clips of 6 frames.* frames=5 or 9 would"):
        Latent(path=folder, about=ABOUT, frames=6)
    with pytest.raises(ConfigError, match=r"frames=0 must be a whole number"):
        Latent(path=folder, about=ABOUT, frames=0)
    with pytest.raises(ConfigError, match=r"clips of 8 frames"):
        Latent(path=folder, about=ABOUT).encode(x[:, :, :8])
    assert nearest(lambda n: n % 4 == 1, 3) == [1, 5] and nearest(lambda n: n % 4 == 1, 9) == [9]
    assert nearest(lambda n: n == 500, 9) == []


def test_statistics_that_come_with_it(saved, x) -> None:
    for name, mean, scale in (
        ("AutoencoderKLWan", [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]),
        ("AutoencoderKLLTXVideo", [0.0] * 4, [1.0] * 4),
        ("AutoencoderKLHunyuanVideo", [0.0] * 4, [2.0] * 4),
        ("AutoencoderKL", [0.25] * 4, [2.0] * 4),
    ):
        network, folder = saved(name)
        stats = Latent(path=str(folder), about=ABOUT, statistics="own").measure(x)
        assert stats["mean"] == pytest.approx(mean) and stats["scale"] == pytest.approx(scale)
        z = Latent(path=str(folder), about=ABOUT | {"codec": stats}, statistics="own").encode(x)
        wanted = (theirs(network, x) - torch.tensor(mean).view(4, 1, 1, 1)) / torch.tensor(scale).view(4, 1, 1, 1)
        torch.testing.assert_close(z, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_large_frames_in_tiles(saved, name) -> None:
    """A class that can be told a size tiles by itself; what it gives is what diffusers gives."""
    network, folder = saved(name)
    about = ABOUT | {"height": 48, "width": 40}
    x = torch.rand(1, 3, 9, 48, 40, generator=torch.Generator().manual_seed(0))
    tiled = Latent(path=str(folder), about=about, tile=32)
    z, whole = tiled.encode(x), theirs(network, x)
    assert z.shape == whole.shape and (z - whole).abs().max() > 1e-4
    back = tiled.decode(z)
    assert back.shape == x.shape
    assert torch.corrcoef(torch.stack([z.flatten(), whole.flatten()]))[0, 1] > 0.5
    if name in ("AutoencoderKL", "AutoencoderTiny"):
        assert isinstance(tiled.coder.model, Tiled)
    else:
        own = type(network).from_pretrained(folder, low_cpu_mem_usage=False)
        sides = {"tile_sample_min_height": 32, "tile_sample_min_width": 32}
        part = "tile_overlap_factor" if name == "AutoencoderKLCogVideoX" else "tile_sample_stride"
        share = 0.25 if name == "AutoencoderKLCogVideoX" else 24
        own.enable_tiling(**sides, **{f"{part}_height": share, f"{part}_width": share})
        with torch.no_grad():
            torch.testing.assert_close(z, theirs(own, x), atol=1e-5, rtol=0)
            wanted = own.decode(z if name in CLIPS else z.transpose(1, 2).flatten(0, 1)).sample
        wanted = wanted if name in CLIPS else wanted.unflatten(0, (1, 9)).transpose(1, 2)
        torch.testing.assert_close(back, (wanted / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"codec.tile=24 must be a multiple of 16 pixels"):
        Latent(path=str(folder), about=about, tile=24)


class _Local(torch.nn.Module):
    """Space to depth and back: an autoencoder that sees nothing beyond a patch."""

    def encode(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(x.transpose(1, 2), 4).transpose(1, 2) ** 3

    def decode(self, z: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(z.transpose(1, 2), 4).transpose(1, 2) * 2


@pytest.mark.parametrize("size", [(16, 16), (20, 36), (64, 8)])
def test_tiles_of_what_sees_no_further_are_exact(size) -> None:
    x, local = torch.randn(2, 3, 3, *size), _Local()
    tiled = Tiled(local, (4, 4), 16)
    z = tiled.encode(x)
    torch.testing.assert_close(z, local.encode(x))
    torch.testing.assert_close(tiled.decode(z), local.decode(z))


def test_a_pipeline_and_what_is_no_autoencoder(saved, tmp_path: Path, x) -> None:
    network, folder = saved("AutoencoderKLWan")
    network.save_pretrained(tmp_path / "pipe/vae", safe_serialization=True)
    inside = Latent(path=str(tmp_path / "pipe"), about=ABOUT)
    stats = inside.measure(x)
    torch.testing.assert_close(inside.encode(x), theirs(network, x), atol=1e-5, rtol=0)
    network.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, made in (("unknown", {"_class_name": "NoSuchThing"}), ("other", {"_class_name": "AutoencoderOobleck"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(made))
    for options, said in (
        ({"path": None}, r"give either codec.ckpt.* or codec.path"),
        ({"ckpt": "a"}, r"give either codec.ckpt.* or codec.path"),
        ({"path": str(tmp_path / "none")}, r"no such folder; allow the hub with codec.download=true"),
        ({"path": str(empty)}, "cannot load an autoencoder"),
        ({"path": str(tmp_path / "pickled")}, "cannot load an autoencoder"),
        ({"path": str(tmp_path / "unknown")}, "diffusers knows no class NoSuchThing"),
        ({"path": str(tmp_path / "other")}, "cannot load an autoencoder"),
        ({"batch": 0}, "codec.batch=0"),
        ({"tile": True}, "codec.tile=True"),
        ({"statistics": "mine"}, "codec.statistics=mine is neither"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            Latent(**({"path": str(folder), "about": ABOUT} | options))
        assert "\n" not in str(caught.value)
    with torch.no_grad():
        network = type(network).from_pretrained(folder)
        next(network.parameters()).add_(1)
    network.save_pretrained(tmp_path / "pipe/vae", safe_serialization=True)
    with pytest.raises(CheckpointError, match=r"codec.path=.* not those that this model was trained on"):
        Latent(path=str(tmp_path / "pipe"), about=ABOUT | {"codec": stats})


def test_without_diffusers_the_extra_is_named(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(saved("AutoencoderKLWan")[1])
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install 'suffuse-video\[latent\]'"):
        Latent(path=folder, about=ABOUT)


def test_a_picture_that_is_given_stays(saved, tmp_path: Path) -> None:
    """Frames 1 on are made anew: of a causal autoencoder the first latent, which sees frame 0 alone, is kept."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    network, folder = saved("AutoencoderKLWan")
    state, kept = Latent(path=str(folder), about=ABOUT).open(str(tmp_path / "first.png"), "1-")
    assert kept is not None and kept.shape == state.shape == (1, 4, 3, 4, 6)
    assert kept[:, :, 0].all() and not kept[:, :, 1:].any()
    picture = torch.from_numpy(pixels / 255).float().permute(2, 0, 1)[None, :, None]
    torch.testing.assert_close(state[:, :, :1], theirs(network, picture), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"mask=0,2,5-: it reaches into every latent of \(4, 4, 4\) entries"):
        Latent(path=str(folder), about=ABOUT | {"frames": 9}).open(str(tmp_path / "first.png"), "0,2,5-")


@pytest.fixture(scope="module", autouse=True)
def _trust():
    """What is defined in a test is of no installed package, so a checkpoint that names it needs trust."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUFFUSE_TRUST", "1")
        yield


class Drifting(Data):
    """Clips of a disc of light that drifts; 96 of them, 8 frames of 24 x 24."""

    def setup(self) -> None:
        """Make them."""
        self.train, self.val = _Discs(64, 0), _Discs(16, 1)
        self.spec = Spec(about={"frames": 8, "height": 24, "width": 24, "fps": 8.0})


class _Discs(Dataset[Any]):
    def __init__(self, count: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        start, speed = torch.rand(count, 2, 1, 1, 1, generator=random), torch.randn(count, 2, 1, 1, 1, generator=random)
        t, y, x = torch.meshgrid(torch.arange(8.0), torch.arange(24.0), torch.arange(24.0), indexing="ij")
        at = 24 * start + speed * t
        away = ((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2).sqrt()
        self.x = (4 - away).clamp(0, 1)[:, None] * torch.tensor([0.9, 0.6, 0.3]).view(1, 3, 1, 1, 1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "cond": {}, "index": i}


def test_the_figures_of_known_errors() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    data = Drifting()
    data.setup()
    x = torch.stack([data.val[i]["x"] for i in range(16)])
    same = Reconstruction()(x, {}, data)
    assert same["psnr"] == pytest.approx(100) and same["ssim"] == pytest.approx(1) and same["flicker"] == 0
    # A constant error of 0.1 is 20 dB and stands still; one that alternates changes by 0.2 per frame.
    constant = Reconstruction()(x + 0.1, {}, data)
    assert constant["psnr"] == pytest.approx(20, abs=1e-4) and constant["flicker"] == pytest.approx(0, abs=1e-7)
    sign = torch.tensor([1.0, -1.0] * 4).view(1, 1, 8, 1, 1)
    alternating = Reconstruction()(x + 0.1 * sign, {}, data)
    assert alternating["psnr"] == pytest.approx(20, abs=1e-4) and alternating["flicker"] == pytest.approx(0.2, abs=1e-6)
    noisy = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    a, b = (part.transpose(1, 2).flatten(0, 1) for part in (noisy, x))
    # The other implementation means over mirrored borders as well, so its map is cut to where a window fits.
    options = {"data_range": 1.0, "reduction": "none", "return_full_image": True}
    wanted = functional.structural_similarity_index_measure(a.double(), b.double(), **options)[1][..., 5:-5, 5:-5]
    torch.testing.assert_close(ssim(a, b), wanted.flatten(1).mean(1), atol=1e-6, rtol=0)
    assert 0.1 < Reconstruction()(noisy, {}, data)["ssim"] < 0.9
    assert ssim(a[:, :, :7, :9], b[:, :, :7, :9]).shape == (128,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an autoencoder ``ae`` was trained for some steps."""
    path = tmp_path_factory.mktemp("ae")
    runs(
        path, "train", "task=autoencoder", "name=ae", "steps=8", "num=4", "metrics_num=8", "model.width=16",
        "model.multipliers=[1,1]", "model.factors=[[2,1,1]]",
    )  # fmt: skip
    return path


def runs(path: Path, task: str, *words: str) -> str:
    """Run a job of the command line in `path`, in this process, and return what it prints."""
    if task == "train":
        words = (
            "modality=video", "~data", "+data._target_=test_latent.Drifting", "+data.batch_size=8", "every.validate=8",
            "every.preview=8", "val_num=8", "preview_num=4", "trainer=cpu", *words,
        )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        done = command(path, task, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_run_of_an_autoencoder(folder: Path) -> None:
    run = folder / "outputs/video/ae"
    figures = json.loads((run / "metrics.json").read_text())
    assert {"psnr", "ssim", "flicker", "val/loss"} <= set(figures)
    rows = [json.loads(line) for line in (run / "samples/final/manifest.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["data", "reconstruction"] * 2


def test_its_latents_are_diffused_from_a_cache(folder: Path) -> None:
    said = runs(
        folder, "train", "codec=latent", "codec.ckpt=outputs/video/ae", "name=l", "steps=3", "num=2",
        "metrics=none", "cache=true", "model=video/dit_s", "model.width=32",
        "model.heads=2", "model.depth=1", "conditioner=none", "sampler.steps=2",
    )  # fmt: skip
    assert "shape (4, 4, 12, 12)" in said and "cache: train, 64 items" in said
    assert len(list((folder / "outputs/video/cache").iterdir())) == 1
    runs(folder, "sample", "ckpt=outputs/video/l", "num=2", "frames=16", "out=long", "sampler.steps=2")
    assert len((folder / "long/manifest.jsonl").read_text().splitlines()) == 2


def test_latents_of_ours(folder: Path) -> None:
    ckpt, about = str(folder / "outputs/video/ae"), {"frames": 8, "height": 24, "width": 24, "fps": 8.0}
    x = _Discs(3, 2).x
    first = Latent(ckpt=ckpt, about=about)
    codec = Latent(ckpt=ckpt, about=about | {"codec": first.measure(x)}, tile=16)
    z = first.encode(x)
    assert z.shape == (3, 4, 4, 12, 12) and first.coder.factor == (2, 2, 2)
    model = first.coder.model
    torch.testing.assert_close(z, model.encode(2 * x - 1))
    torch.testing.assert_close(first.decode(z), (model.decode(z) / 2 + 0.5).clamp(0, 1))
    assert isinstance(codec.coder.model, Tiled) and codec.encode(x).shape == z.shape
    assert codec.decode(codec.encode(x)).shape == x.shape
    with pytest.raises(ConfigError, match=r"codec.ckpt=.* 24 x 21 pixels .* frames=6 or 8 and width=20 or 22 would"):
        Latent(ckpt=ckpt, about=about | {"frames": 7, "width": 21})
    with pytest.raises(ConfigError, match=r"codec.statistics=own: codec.ckpt=.* has none"):
        Latent(ckpt=ckpt, about=about, statistics="own")
    with pytest.raises(CheckpointError, match="not those that this model was trained on"):
        Latent(ckpt=ckpt, about=about | {"codec": {"mean": [0.0] * 4, "scale": [1.0] * 4, "autoencoder": "x"}})
