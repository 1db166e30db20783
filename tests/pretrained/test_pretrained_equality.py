"""Equality: our samples are those of diffusers' pipelines, at the same noise, steps and guidance, to 1e-4.

Latents of the tiny models have deviations from 1 to 18; pictures lie in [0, 1].
"""

from __future__ import annotations

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra pretrained)")

PROMPT, NEGATIVE = "a red cat", "blurry"
GUIDED = ("guidance=cfg", "guidance.scale=3", f"guidance.negative.text={NEGATIVE}")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def close(found, wanted, bound=1e-4):
    assert found.shape == wanted.shape and wanted.std() > 0.05
    assert (found - wanted).abs().max() < bound


def call(steps, noise, **more):
    return {
        "prompt": [PROMPT] * 2, "negative_prompt": [NEGATIVE] * 2, "guidance_scale": 3.0, "latents": noise,
        "num_inference_steps": steps, **more,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "pixart"])
def test_latents_and_pictures(name, folder, loaded, ours):
    mine = ours(folder(name), "sampler.steps=5", *GUIDED, text=PROMPT)
    pipe = loaded(name)
    more = {"use_resolution_binning": False} if name == "pixart" else {}
    state = mine.state()
    close(state, pipe(**call(5, mine.noise(), **more), output_type="latent").images)
    close(mine.codec.decode(state), pipe(**call(5, mine.noise(), **more), output_type="pt").images)


@pytest.mark.parametrize("true", [1.0, 2.0])
def test_flux(true, folder, loaded, ours):
    """With the scale its network is told, and classifier-free guidance on top; at a size that is not square."""
    words = [f"guidance.scale={true}", f"guidance.negative.text={NEGATIVE}", "height=32", "width=48"]
    mine = ours(folder("flux"), "sampler.steps=4", "guidance=cfg", *words, text=PROMPT, guidance=2.5)
    pipe = loaded("flux")
    packed = pipe._pack_latents(mine.noise(), 2, 4, 16, 24)
    how = call(4, packed, guidance_scale=2.5, true_cfg_scale=true, height=32, width=48)
    state = mine.state()
    close(pipe._pack_latents(state, 2, 4, 16, 24), pipe(**how, output_type="latent").images)
    close(mine.codec.decode(state), pipe(**how, output_type="pt").images)


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_stable_audio(negative, folder, loaded, ours):
    words = ["seconds=0.012", "guidance=cfg", "guidance.scale=3"]
    words += [] if negative is None else [f"guidance.negative.text={negative}"]
    mine = ours(folder("audio"), "sampler.steps=6", *words, text=PROMPT, seconds=0.012)
    how = call(6, mine.noise(), negative_prompt=negative and [negative] * 2, audio_end_in_s=0.012)
    pipe, state = loaded("audio"), mine.state()
    close(state, pipe(**how, output_type="latent").audios)
    sound = mine.codec.decode(state)
    assert sound.shape == (2, 2, 48)
    close(sound, torch.as_tensor(pipe(**how, output_type="pt").audios))


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("clip", [False, True])
def test_unconditional(kind, clip, folder, ours, tmp_path, monkeypatch):
    """Also with the noise of every step, and with predictions clipped as the scheduler says."""
    pipe = diffusers.DDIMPipeline.from_pretrained(folder("ddpm"))
    scheduler = getattr(diffusers, kind)(clip_sample=clip, clip_sample_range=0.7)
    if kind == "DDPMScheduler":
        pipe = diffusers.DDPMPipeline(pipe.unet, scheduler)
    else:
        pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipe")
    mine = ours(tmp_path / "pipe", "sampler.steps=5")
    from suffuse.noise import KeyedNoise

    draws = iter(range(100))

    def drawn(shape, **_):
        return KeyedNoise(mine.seeds).normal(torch.empty(tuple(shape)), next(draws), 0)

    where = {"DDIMScheduler": ("ddim.pipeline_ddim",), "DDPMScheduler": ("ddpm.pipeline_ddpm",)}[kind]
    for module in where:
        monkeypatch.setattr(f"diffusers.pipelines.{module}.randn_tensor", drawn)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", drawn)
    # What is clipped there decides the noise as well only if it is asked to.
    more = {"use_clipped_model_output": clip} if kind == "DDIMScheduler" else {}
    wanted = pipe(batch_size=2, num_inference_steps=5, output_type="np", **more).images
    close(mine.codec.decode(mine.state()), torch.as_tensor(wanted).permute(0, 3, 1, 2))


SCHEDULERS = [
    ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False, "prediction_type": "v_prediction",
                       "rescale_betas_zero_snr": True}),
    ("DDIMScheduler", {"timestep_spacing": "leading", "clip_sample": False, "prediction_type": "sample"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1, "timestep_spacing": "leading", "steps_offset": 1}),
    ("DEISMultistepScheduler", {"solver_order": 2, "lower_order_final": False}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}),
]  # fmt: skip


@pytest.mark.parametrize("pair", SCHEDULERS, ids=lambda pair: f"{pair[0].removesuffix('Scheduler')}-{len(pair[1])}")
def test_schedulers(pair, folder, loaded, ours, tmp_path):
    """The same model with other schedulers: spacings, predictions, levels, solvers."""
    name, more = pair
    pipe = loaded("sd", getattr(diffusers, name)(**SD | more))
    pipe.save_pretrained(tmp_path / "pipe")
    mine = ours(tmp_path / "pipe", "sampler.steps=5", *GUIDED, text=PROMPT)
    wanted = pipe(**call(5, mine.noise()), output_type="latent").images
    close(mine.state() / wanted.std(), wanted / wanted.std())


def test_rescaled_guidance(folder, loaded, ours):
    mine = ours(folder("sd"), "sampler.steps=4", *GUIDED, "guidance.rescale=0.7", "guidance.quantity=eps", text=PROMPT)
    wanted = loaded("sd")(**call(4, mine.noise()), guidance_rescale=0.7, output_type="latent").images
    close(mine.state(), wanted, 3e-4)


@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_image_to_image(strength, folder, loaded, ours, monkeypatch):
    from suffuse.edit import Edit

    known = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    mine = ours(folder("sd"), "sampler.steps=5", *GUIDED, text=PROMPT)
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**loaded("sd").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    noise = mine.noise()
    monkeypatch.setattr(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor", lambda *_, **__: noise
    )
    how = call(5, None, strength=strength, image=known.expand(2, -1, -1, -1), output_type="latent")
    how.pop("latents")
    close(mine.state(Edit(known, None, strength)), pipe(**how).images)


def test_encoding_is_the_pipelines_own(folder, loaded, ours):
    mine, pipe = ours(folder("sd3"), text=PROMPT), loaded("sd3")
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = pipe.vae.encode(2 * pictures - 1).latent_dist.mode()
    close(mine.codec.encode(pictures), (z - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor, 1e-5)


def test_a_change_of_seed_noise_or_prompt_changes_the_sample(folder, ours):
    """The tests above would pass with a model that ignores what it is told."""
    where = folder("sd")
    base = ours(where, "sampler.steps=2", *GUIDED, text=PROMPT).state()
    for words, given in (
        ((), {"text": "a blue dog"}),
        (("guidance.scale=2",), {"text": PROMPT}),
        (("guidance.negative.text=sharp",), {"text": PROMPT}),
    ):
        assert (ours(where, "sampler.steps=2", *GUIDED, *words, **given).state() - base).abs().max() > 1e-3
    alone = ours(where, "sampler.steps=2", *GUIDED, seeds=(4,), text=PROMPT).state()
    assert (alone[0] - base[1]).abs().max() < 1e-5
