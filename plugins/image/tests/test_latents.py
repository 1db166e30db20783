"""Latents of pictures: of one's own autoencoder and of the families of diffusers, in tiles, and the figures of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.model import fit_codec
from suffuse.tiles import Tiled
from suffuse_image.data import ShapesText
from suffuse_image.latent import Latent
from suffuse_image.loss import LPIPS
from suffuse_image.reconstruction import Reconstruction, ssim

diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}


def kl() -> Any:
    up = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(**SMALL, **up, layers_per_block=1, scaling_factor=0.5, shift_factor=0.25)


def tiny() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    )  # fmt: skip


def dc() -> Any:
    return diffusers.AutoencoderDC(
        latent_channels=4, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), encoder_block_types="ResBlock",
        decoder_block_types="ResBlock", encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
        upsample_block_type="interpolate", downsample_block_type="Conv", decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vae")
    for name, make in (("kl", kl), ("tiny", tiny), ("dc", dc)):
        torch.manual_seed(0)
        make().save_pretrained(root / name)
    kl().save_pretrained(root / "pipeline" / "vae")
    return root


@pytest.fixture(scope="module")
def data() -> ShapesText:
    found = ShapesText(count=40, batch_size=4)
    found.setup()
    return found


@pytest.mark.parametrize("name", ["kl", "tiny", "dc", "pipeline"])
def test_families_of_diffusers(folders: Path, data: ShapesText, name: str) -> None:
    spec = data.spec
    codec = fit_codec({"_target_": "suffuse_image.latent.Latent", "path": str(folders / name), "batch": 3}, data)
    x = torch.stack([data.train[i]["x"] for i in range(8)])
    z = codec.encode(x)
    assert z.shape == (8, 4, 16, 16) and codec.decode(z).shape == x.shape
    # What is stored are the moments of these latents, so states are standard.
    items = torch.stack([item["x"] for item in data.sample(512)])
    whole = codec.encode(items).transpose(0, 1).flatten(1)
    assert whole.mean(1).abs().max() < 1e-3 and (whole.std(1) - 1).abs().max() < 1e-3
    stats = data.spec.about["codec"]
    assert set(stats) == {"mean", "scale", "autoencoder"}
    network = codec.coder.model.network
    with torch.no_grad():
        out = network.encode(2 * x - 1)
        plain = out.latent_dist.mode() if hasattr(out, "latent_dist") else getattr(out, "latent", None)
        plain = out.latents if plain is None else plain
        mean, scale = (torch.tensor(stats[k]).view(1, -1, 1, 1) for k in ("mean", "scale"))
        torch.testing.assert_close(z, (plain - mean) / scale, atol=1e-4, rtol=1e-4)
    assert codec.like(torch.arange(3), {}, "cpu").shape == (3, 4, 16, 16)
    data.spec = spec


def test_statistics_of_the_autoencoders_own(folders: Path, data: ShapesText) -> None:
    codec = Latent(path=str(folders / "kl"), statistics="own", about=data.spec.about)
    assert codec.measure(data.train[0]["x"][None]) == {
        "mean": [0.25] * 4, "scale": [2.0] * 4, "autoencoder": codec.coder.digest(),
    }  # fmt: skip


def test_other_sizes_are_drawn(folders: Path, data: ShapesText) -> None:
    codec = Latent(path=str(folders / "kl"), about=data.spec.about, height=48, width=64)
    z = codec.like(torch.arange(2), {}, "cpu")
    assert z.shape == (2, 4, 24, 32) and codec.decode(torch.zeros(z.shape)).shape == (2, 3, 48, 64)


def test_a_mask_keeps_the_latents_it_does_not_reach(folders: Path, data: ShapesText, tmp_path: Path) -> None:
    from PIL import Image

    picture = (data.train[0]["x"] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(tmp_path / "x.png")
    white = torch.zeros(32, 32, dtype=torch.uint8)
    white[:3, :5] = 255
    Image.fromarray(white.numpy()).save(tmp_path / "m.png")
    codec = Latent(path=str(folders / "kl"), about=data.spec.about)
    z, kept = codec.open(str(tmp_path / "x.png"), str(tmp_path / "m.png"))
    assert z.shape == kept.shape == (1, 4, 16, 16)
    assert not kept[0, 0, :2, :3].any() and kept[0, 0].sum() == 256 - 6
    torch.testing.assert_close(z, codec.encode(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255))


def test_tiles_of_a_large_picture(folders: Path, data: ShapesText) -> None:
    torch.manual_seed(0)
    whole = Latent(path=str(folders / "kl"), about=data.spec.about)
    tiled = Latent(path=str(folders / "kl"), about=data.spec.about, tile=32)
    assert isinstance(tiled.coder.model, Tiled) and tiled.coder.digest() == whole.coder.digest()
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), 80, mode="bicubic").clamp(0, 1)
    a, b = whole.encode(x), tiled.encode(x)
    # Norms over a tile are not those over the whole: near, not the same; one tile is the whole.
    assert a.shape == b.shape == (1, 4, 40, 40) and (a - b).abs().mean() < 0.35 * a.std()
    torch.testing.assert_close(whole.encode(x[..., :32, :32]), tiled.encode(x[..., :32, :32]))
    assert tiled.decode(b).shape == x.shape

    class Twice(torch.nn.Module):
        """A model that looks at one pixel at a time: tiles make no difference."""

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x[..., ::2, ::2]

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return z.repeat_interleave(2, -1).repeat_interleave(2, -2) / 2

    y = torch.randn(2, 3, 70, 58)
    for model in (Twice(),):
        cut = Tiled(model, (2, 2), 32)
        torch.testing.assert_close(cut.encode(y), model.encode(y))
        torch.testing.assert_close(cut.decode(model.encode(y)), model.decode(model.encode(y)))


def test_bad_arguments(folders: Path, data: ShapesText, tmp_path: Path) -> None:
    path, about = str(folders / "kl"), data.spec.about
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "either codec.ckpt"),
        ({"path": path, "ckpt": "x"}, "either codec.ckpt"),
        ({"path": path, "batch": 0}, "batch=0"),
        ({"path": path, "statistics": "mine"}, "statistics=mine"),
        ({"path": path, "tile": 30}, "tile=30 must be a multiple of 8"),
        ({"path": path, "height": 33}, "33 x 32 .* height=32 or 34 would"),
        ({"path": str(tmp_path)}, "cannot load an autoencoder"),
        ({"path": str(tmp_path / "no")}, "no such folder; allow the hub"),
        ({"path": path, "about": {"size": [8, 8], "channels": 1}}, "takes 3 channels, the data has 1"),
    ]
    for options, said in cases:
        with pytest.raises(ConfigError, match=said) as caught:
            Latent(**{"about": about, **options})
        assert "\n" not in str(caught.value)


def test_reconstructions(data: ShapesText) -> None:
    items = torch.stack([item["x"] for item in data.sample(10, held_out=True)])
    perfect = Reconstruction()(items, {}, data)
    assert perfect["psnr"] == 100 and perfect["ssim"] == pytest.approx(1)
    assert perfect["rfid"] == pytest.approx(0, abs=1e-4)
    off = Reconstruction()(items + 0.1, {}, data)
    assert off["psnr"] == pytest.approx(20, abs=1e-3)
    worse = Reconstruction()((items + 0.2 * torch.randn(items.shape)).clamp(0, 1), {}, data)
    assert worse["ssim"] < 0.7 and worse["rfid"] > 10 * max(perfect["rfid"], 1e-3)
    assert ssim(items[:, :, :8, :8], items[:, :, :8, :8]) == pytest.approx(1)


def test_lpips_of_weights_on_disk(tmp_path: Path) -> None:
    from torchvision.models import alexnet

    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    term = LPIPS(str(tmp_path), net="alex")
    assert not list(term.parameters())  # frozen, and in no checkpoint
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert term(x, x).abs().max() == 0
    near, far = term(x, x + 0.02 * torch.randn_like(x)), term(x, x + 0.4 * torch.randn_like(x))
    assert near.shape == (2,) and (far > near).all() and (near > 0).all()
    assert all(layer.model[1].weight.min() >= 0 for layer in term._frozen[0].lins)  # the published ones are
    term.scale = 0.5
    assert torch.allclose(term(2 * x, 2 * x + 0.1), LPIPS(str(tmp_path), net="alex")(x, x + 0.05), atol=1e-6)
    for options, said in (
        ({"path": None}, "needs path="),
        ({"path": str(tmp_path), "net": "vgg"}, "vgg16-397923af.pth does not exist"),
        ({"path": str(tmp_path), "net": "res"}, "net=res"),
    ):
        with pytest.raises(ConfigError, match=said):
            LPIPS(**options)
