"""Tiny pipelines of every family with random weights, written as diffusers writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def clip_tokenizer(length: int = 16) -> Any:
    """A CLIP tokenizer that spells: every byte is a token."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {name: i for i, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocab, merges=[("r", "e"), ("re", "d</w>")], model_max_length=length)


def t5_tokenizer(length: int = 16) -> Any:
    """A T5 tokenizer of letters."""
    from transformers import T5Tokenizer

    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789,.-()ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁red", -2.5), *letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length)


def clip(projection: bool = False, width: int = 32) -> Any:
    """A CLIP text encoder for the tokenizer above."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ids = clip_tokenizer().get_vocab()
    config = CLIPTextConfig(
        vocab_size=len(ids), hidden_size=width, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=width, bos_token_id=ids["<|startoftext|>"],
        eos_token_id=ids["<|endoftext|>"], pad_token_id=ids["<|endoftext|>"],
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5(width: int = 32) -> Any:
    """A T5 encoder for the tokenizer above."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=128, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0)
    )


def vae(latent: int = 4, **more: Any) -> Any:
    """An autoencoder of pictures that halves their sides."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[16, 32], in_channels=3, out_channels=3, latent_channels=latent, norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, sample_size=32, **more,
    )  # fmt: skip


def unet(**more: Any) -> Any:
    """A U-Net with cross-attention."""
    from diffusers import UNet2DConditionModel

    given = {
        "block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 16, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 8, "attention_head_dim": 8,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 32,
    }  # fmt: skip
    return UNet2DConditionModel(**given | more)


def sd() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(**TRAINED, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionPipeline(
        vae(), clip(), clip_tokenizer(), unet(), scheduler, None, None, requires_safety_checker=False
    )


def sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    net = unet(
        cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=6 * 8 + 32,
        use_linear_projection=True,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(**TRAINED, steps_offset=1, timestep_spacing="leading")
    return StableDiffusionXLPipeline(
        vae(), clip(), clip(projection=True), clip_tokenizer(), clip_tokenizer(), net, scheduler
    )


def sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    net = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=8, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, out_channels=8,
        pos_embed_max_size=32,
    )  # fmt: skip
    coder = vae(8, shift_factor=0.0609, scaling_factor=1.5035, use_quant_conv=False, use_post_quant_conv=False)
    pipe = StableDiffusion3Pipeline(
        net, FlowMatchEulerDiscreteScheduler(shift=3.0), coder, clip(True), clip_tokenizer(), clip(True),
        clip_tokenizer(), t5(64), t5_tokenizer(256),
    )  # fmt: skip
    return pipe


def flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    net = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    coder = vae(4, shift_factor=0.0609, scaling_factor=1.5035, use_quant_conv=False, use_post_quant_conv=False)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FluxPipeline(scheduler, coder, clip(), clip_tokenizer(), t5(), t5_tokenizer(512), net)


def pixart() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    net = PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4, in_channels=4,
        out_channels=8, caption_channels=32, cross_attention_dim=32, norm_num_groups=8, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtAlphaPipeline(t5_tokenizer(120), t5(), vae(), net, DPMSolverMultistepScheduler(**TRAINED))


def audio() -> Any:
    from diffusers import AutoencoderOobleck, EDMDPMSolverMultistepScheduler, StableAudioDiTModel, StableAudioPipeline
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    net = StableAudioDiTModel(
        sample_size=32, in_channels=6, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        num_key_value_attention_heads=2, out_channels=6, cross_attention_dim=16, time_proj_dim=16,
        global_states_input_dim=32, cross_attention_input_dim=16,
    )  # fmt: skip
    coder = AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=6, decoder_input_channels=6,
        audio_channels=2, channel_multiples=[2, 4], sampling_rate=4000,
    )  # fmt: skip
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
    )
    projection = StableAudioProjectionModel(text_encoder_dim=32, conditioning_dim=16, min_value=0, max_value=32)
    return StableAudioPipeline(coder, t5(), projection, t5_tokenizer(), net, scheduler)


def ddpm() -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    net = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return DDIMPipeline(net, DDIMScheduler(clip_sample=False))


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux, "pixart": pixart, "audio": audio, "ddpm": ddpm
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _libraries() -> None:
    for name in ("diffusers", "transformers", "peft"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra pretrained)")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that writes a tiny pipeline and returns where; treat it as read-only."""
    root, made = tmp_path_factory.mktemp("published"), {}

    def write(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            pipe = BUILDERS[name]()
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    _alive(part)
            pipe.save_pretrained(root / name)
            made[name] = root / name
        return made[name]

    return write


def _alive(module: torch.nn.Module) -> None:
    """Give weights that are zero at the start, and would hide what is behind them, something to say."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.abs().any():
                parameter.normal_(std=0.05)


@pytest.fixture(scope="session")
def loaded(folder: Callable[[str], Path]) -> Callable[..., Any]:
    """Return a function that loads diffusers' own pipeline of a folder, with another scheduler if wanted."""

    def load(name: str, scheduler: Any = None) -> Any:
        import diffusers

        pipe = diffusers.DiffusionPipeline.from_pretrained(folder(name))
        pipe.set_progress_bar_config(disable=True)
        if scheduler is not None:
            pipe.scheduler = scheduler
        return pipe

    return load


@dataclass(frozen=True)
class Ours:
    """A published model as `sample` builds it.

    Arguments:
        model: The model.
        codec: Its codec.
        recipe: Sampler, grid and guidance.
        raw: The conditions of the rows.
        seeds: Of the rows.
    """

    model: Any
    codec: Any
    recipe: Any
    raw: Any
    seeds: torch.Tensor

    def noise(self) -> torch.Tensor:
        """Return the noise that the samples start from."""
        from suffuse.noise import KeyedNoise

        like = self.codec.like(self.seeds, self.raw, "cpu")
        return KeyedNoise(self.seeds).normal(like, 0, 0)

    def state(self, edit: Any = None) -> torch.Tensor:
        """Return the samples before they are decoded."""
        like = self.codec.like(self.seeds, self.raw, "cpu")
        return self.model.draw(self.recipe, self.seeds, self.raw, like, edit).clone()


@pytest.fixture
def ours() -> Callable[..., Ours]:
    """Return a function that builds a folder's model as the words of `sample` say."""
    from omegaconf import OmegaConf
    from suffuse.app import compose_sample, compose_train
    from suffuse.build import build
    from suffuse.codec import implied
    from suffuse.model import Model, Recipe
    from suffuse.pretrained.start import checkpoint
    from suffuse.pretrained.words import for_training

    def make(where: Path, *words: str, seeds: tuple[int, ...] = (3, 4), **given: Any) -> Ours:
        config: Any = OmegaConf.to_container(compose_train(for_training([f"pretrained={where}"])), resolve=True)
        saved = checkpoint(config, {}, {"modality": "image", "dist": "here"})
        plain: Any = OmegaConf.to_container(compose_sample(["ckpt=published", *words], config, {}), resolve=True)
        model = Model.load(saved)
        codec = build(config["codec"], "codec", about=model.facts.about, **plain["ask"])
        raw = model.conditioner.parse(implied(codec, model.conditioner) | given, len(seeds))
        return Ours(model, codec, Recipe.build(plain), raw, torch.tensor(seeds))

    return make
