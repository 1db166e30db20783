"""What only a GPU can show: no synchronisation in the sampling loop, and training in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from suffuse.denoiser import EDMPrecond, Preconditioned
from suffuse.grid import Exponential
from suffuse.nn import UNet
from suffuse.noise import KeyedNoise
from suffuse.process import Gaussian
from suffuse.sampler import Ancestral, Heun, Multistep, sample
from suffuse.schedule import EDM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("sampler", [Multistep(8), Multistep(8, order=3), Ancestral(8), Heun(8)])
def test_sampling_never_waits_for_the_device(sampler) -> None:
    process = Gaussian(EDM())
    denoiser = Preconditioned(UNet((3, 16, 16), width=16, head_dim=8), process, EDMPrecond()).cuda()
    like, noise = torch.empty(4, 3, 16, 16, device="cuda"), KeyedNoise(torch.arange(4, device="cuda"))
    grid = Exponential()(process.schedule, sampler.steps)

    def draw() -> torch.Tensor:
        with torch.inference_mode():
            return sample(denoiser, process, sampler, grid, noise, like)

    first = draw()  # plans, tables and kernels are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = draw()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, second)


@pytest.mark.parametrize("sampler", [Multistep(8), Ancestral(8)])
def test_the_whole_loop_in_a_cuda_graph(sampler) -> None:
    process = Gaussian(EDM())
    denoiser = Preconditioned(UNet((3, 16, 16), width=16, head_dim=8), process, EDMPrecond()).cuda().eval()
    like, noise = torch.empty(2, 3, 16, 16, device="cuda"), KeyedNoise(torch.arange(2, device="cuda"))
    grid = Exponential()(process.schedule, sampler.steps)
    with torch.inference_mode():
        eager = sample(denoiser, process, sampler, grid, noise, like)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            sample(denoiser, process, sampler, grid, noise, like)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = sample(denoiser, process, sampler, grid, noise, like)
        graph.replay()
    torch.testing.assert_close(out, eager, rtol=1e-4, atol=1e-4)


def test_noise_is_the_same_on_both_devices() -> None:
    seeds, like = torch.arange(5), torch.empty(5, 3, 7, 7)
    here = KeyedNoise(seeds).words(147, 3, 1)
    assert torch.equal(KeyedNoise(seeds.cuda()).words(147, 3, 1).cpu(), here)
    normal = KeyedNoise(seeds).normal(like, 3, 1)
    torch.testing.assert_close(KeyedNoise(seeds.cuda()).normal(like.cuda(), 3, 1).cpu(), normal, rtol=1e-5, atol=1e-5)


def test_bf16_training_and_sampling(command, tiny: list[str], tmp_path: Path) -> None:
    words = [word for word in tiny if word != "trainer=cpu"]
    result = command("train", *words, "trainer=gpu", "name=g")
    assert result.returncode == 0, result.stderr
    result = command("sample", "ckpt=outputs/image/g", "num=4", "trainer=gpu", "out=x")
    assert result.returncode == 0 and (tmp_path / "x" / "00003.png").is_file(), result.stderr
