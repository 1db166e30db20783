"""The networks of the package: per-frame noise, sizes, and that every weight learns."""

from __future__ import annotations

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.nn import DiT
from suffuse_video.nn import FoldedUNet
from torch import Tensor, nn

SHAPE = (3, 4, 8, 8)


def awake(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


def tubes(**more: object) -> nn.Module:
    torch.manual_seed(0)
    how = {"patch": (4, 4, 4), "levels": 4, "width": 48, "depth": 2, "heads": 2, "refine": 8, "placed": 16}
    return DiT(SHAPE, **(how | more))


def folded(**more: object) -> nn.Module:
    torch.manual_seed(0)
    how = {"width": 16, "multipliers": (1, 2), "attention": (1,), "head_dim": 8, "patch": 2, "placed": 8}
    return FoldedUNet(SHAPE, **(how | more))


both = pytest.mark.parametrize("make", [tubes, folded])


def clip(frames: int = 4) -> Tensor:
    return torch.randn(2, 3, frames, 8, 8, generator=torch.Generator().manual_seed(1))


@both
def test_zero_before_training_and_every_weight_learns(make):
    network, noise = make(cond_dim=5), torch.tensor([0.3, -1.0])
    cond = {"vector": torch.randn(2, 5, generator=torch.Generator().manual_seed(2))}
    assert network(clip(), noise, cond).abs().max() == 0
    out = awake(network)(clip(), noise, cond)
    assert out.shape == clip().shape
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@both
def test_every_frame_has_a_level_of_its_own(make):
    network = awake(make()).eval()
    noise = torch.tensor([0.3, -1.0])
    torch.testing.assert_close(network(clip(), noise[:, None].expand(-1, 4)), network(clip(), noise))
    a, b = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 2), torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2)
    assert (network(clip(), a) - network(clip(), b)).abs().max() > 1e-3


def test_convolutions_see_across_tubes():
    """A change in one tube reaches its neighbour's edge, even without attention between them."""
    network = awake(tubes(depth=1)).eval()
    with torch.no_grad():
        network.blocks[0].attention.out.weight.zero_()
    x = clip().requires_grad_()
    network(x, torch.zeros(2))[0, 0, 0, 0, 4].backward()
    assert x.grad[0, :, 0, :, 3].abs().max() > 0  # the tube to its left
    assert x.grad[1].abs().max() == 0


def test_other_lengths():
    network = awake(tubes()).eval()
    assert network(clip(8), torch.zeros(2)).shape == (2, 3, 8, 8, 8)  # two tubes in a row
    with pytest.raises(ConfigError, match="takes 4 frames at a time, not 8"):
        folded()(clip(8), torch.zeros(2))
    with pytest.raises(ConfigError, match="not divisible"):
        network(clip(6), torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "said"),
    [(lambda: FoldedUNet((3, 8)), "is no clip"), (lambda: tubes(levels=3), "model.levels=3")],
)  # fmt: skip
def test_bad_arguments(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
