"""compile=true: every network is one graph, and further steps do not compile again; a step reads nothing back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from suffuse.app import compose_train
from suffuse.ema import EMA, ConstantDecay
from suffuse.model import Facts, Model
from suffuse.nn import ConvAutoencoder, DiT, UNet
from suffuse.noise import KeyedNoise
from suffuse.training.guard import LAG, Guard
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
UNET: dict[str, Any] = {"width": 16, "multipliers": (1, 1), "blocks": 1}
NETWORKS = {
    "unet": (UNet((3, 8, 8), cond_dim=8, **UNET), (3, 8, 8)),
    "unet1": (UNet((3, 16), cond_dim=8, **UNET), (3, 16)),
    "unet_text": (UNet((3, 8, 8), cond_dim=8, context_dim=6, **UNET), (3, 8, 8)),
    "dit": (DiT((3, 8, 8), cond_dim=8, **SMALL), (3, 8, 8)),
    "dit_placed": (DiT((3, 8, 8), cond_dim=8, placed=8, **SMALL), (3, 8, 8)),
    "dit_axial": (DiT((3, 4, 8, 8), cond_dim=8, attention="axial", patch=(1, 2, 2), **SMALL), (3, 4, 8, 8)),
    "dit_joint": (DiT((3, 8, 8), cond_dim=8, context_dim=6, attention="joint", **SMALL), (3, 8, 8)),
    "dit_checkpointing": (DiT((3, 8, 8), cond_dim=8, checkpointing=True, **SMALL), (3, 8, 8)),
}


def given(network: nn.Module, shape: tuple[int, ...], rows: int, seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return a state, noise levels and conditions."""
    random = torch.Generator().manual_seed(seed)
    cond = {"vector": torch.randn(rows, 8, generator=random)}
    if getattr(network, "context", 0):
        cond |= {"tokens": torch.randn(rows, 5, 6, generator=random), "mask": torch.ones(rows, 5, dtype=torch.bool)}
    return torch.randn(rows, *shape, generator=random), torch.rand(rows, generator=random), cond


@pytest.mark.parametrize("name", NETWORKS)
def test_one_graph(name: str) -> None:
    network, shape = NETWORKS[name]
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(network.train(), backend=counter, fullgraph=True)
    for seed in range(3):
        x, noise, cond = given(network, shape, 2, seed)
        compiled(x, noise, cond).square().mean().backward()
        with torch.no_grad():  # as an optimizer does
            for parameter in network.parameters():
                if parameter.grad is None:  # what is read of the last tokens of a condition alone
                    continue
                parameter.sub_(1e-3 * parameter.grad)
                parameter.grad = None
    assert counter.frame_count == 1
    torch.testing.assert_close(compiled(x, noise, cond), network(x, noise, cond))


def test_one_graph_per_half_of_an_autoencoder() -> None:
    torch._dynamo.reset()
    network = ConvAutoencoder((3, 8, 8), width=8, latent=2)
    for half in (network.encode, network.decode):
        counter = CompileCounter()
        compiled = torch.compile(half, backend=counter, fullgraph=True)
        for seed in range(3):
            channels = 3 if half == network.encode else 2
            size = 8 if half == network.encode else 8 // network.factor[0]
            compiled(torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(seed)))
        assert counter.frame_count == 1


class NoReading(TorchDispatchMode):
    """Fails when a value is read from the device, which on a GPU waits for all that is queued."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


def steps(deferred: bool, bad: set[int], count: int = 8) -> tuple[list[Tensor], list[Tensor], EMA, Guard]:
    """Return weights, averages and the guard after steps of which those of `bad` have NaN gradients."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, fused=True)
    guard, ema = Guard(0.5, deferred), EMA(layer.parameters(), ConstantDecay(0.9, warmup=False))
    for step in range(count):
        optimizer.zero_grad()
        layer(torch.randn(5, 4)).square().mean().backward()
        if step in bad:
            assert layer.weight.grad is not None
            layer.weight.grad[0, 0] = float("nan")
        if deferred:
            with NoReading():
                guard(optimizer)
                optimizer.step()
                ema.update(guard.found)
            ema.updates -= guard.read()
        else:
            guard(optimizer)
            optimizer.step()
            if not guard.last_skipped:
                ema.update()
    ema.updates -= guard.read(wait=True)
    return [p.detach().clone() for p in layer.parameters()], ema.averages, ema, guard


@pytest.mark.parametrize("bad", [set(), {2}, {3, 4}, {7}])
def test_what_the_device_skips_is_what_the_host_would(bad: set[int]) -> None:
    host, device = steps(False, bad), steps(True, bad)
    torch.testing.assert_close(device[0], host[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(device[1], host[1], rtol=0, atol=1e-7)
    assert device[2].updates == host[2].updates == 8 - len(bad)
    assert device[3].in_a_row == host[3].in_a_row and device[3].norm == pytest.approx(host[3].norm)


def test_many_in_a_row_are_seen_soon() -> None:
    layer = nn.Linear(2, 2)
    optimizer, guard, skipped = torch.optim.AdamW(layer.parameters(), fused=True), Guard(1.0, deferred=True), 0
    for step in range(6):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, float("inf"))
        guard(optimizer)
        optimizer.step()
        skipped += guard.read()
        assert guard.in_a_row == max(0, step + 1 - LAG)
    assert skipped == 6 - LAG and all(torch.isfinite(p).all() for p in layer.parameters())


@pytest.mark.parametrize("words", [["model=unet_small"], ["model=dit", "objective=flow", "schedule=flow"]])
def test_a_training_step_reads_nothing_back(words: list[str]) -> None:
    composed = compose_train(["modality=image", "trainer=cpu", "name=x", "model.width=16", *words])
    cfg: Any = OmegaConf.to_container(composed, resolve=True)
    model = Model(cfg, Facts((1, 8, 8), ("a", "b"), (), 0.5)).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    guard, ema = Guard(1.0, deferred=True), EMA(parameters, ConstantDecay(0.9))
    positions, label = torch.arange(4), torch.tensor([0, 1, 1, 0])
    noise, total = KeyedNoise(positions), torch.zeros((), dtype=torch.float64)
    for step in range(2):
        with NoReading():
            loss = model.loss(torch.randn(4, 1, 8, 8), {"label": label}, noise, step, positions, 4).total
            loss.backward()
            total += loss.detach().double()
            guard(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(guard.found)
    assert torch.isfinite(total)
