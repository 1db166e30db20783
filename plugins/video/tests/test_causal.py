"""The causal autoencoder of clips: what depends on what, prefixes, lengths, and symmetry in space."""

from __future__ import annotations

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.nn import ConvAutoencoder
from suffuse.nn.conv import ChannelNorm

TIME = {1: ([], 1), 2: ([[2, 2, 2]], 1), 4: ([[2, 2, 2]], [2, 1, 1]), 6: ([[3, 2, 2]], [2, 1, 1])}


def made(frames: int, factor: int, **options) -> ConvAutoencoder:
    """Return a network with the factor in time whose every layer does something, in float64."""
    torch.manual_seed(0)
    factors, patch = TIME[factor]
    net = ConvAutoencoder(
        (3, frames, 4, 6), latent=4, width=4, multipliers=(1,) * (len(factors) + 1), factors=factors, patch=patch,
        causal=True, **options,
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.double()


def first_frames(net: ConvAutoencoder) -> int:
    """Return how many frames go to the first latent."""
    return net.factor[0] - net.past


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(("frames", "factor"), [(5, 1), (5, 2), (6, 2), (9, 4), (8, 4), (13, 6)])
def test_a_latent_depends_on_all_frames_up_to_its_own_and_on_no_later_one(frames, factor, attention) -> None:
    net = made(frames, factor, attention=attention)
    x = torch.randn(1, 3, frames, 4, 6, dtype=torch.float64, requires_grad=True)
    first = first_frames(net)
    z, log_var = net.encode(x)
    assert z.shape[2] == -(-frames // factor) == 1 + (frames - first) // factor
    for j in range(z.shape[2]):
        (grad,) = torch.autograd.grad((z[:, :, j] + log_var[:, :, j]).square().sum(), x, retain_graph=True)
        moved = grad.abs().amax((0, 1, 3, 4)) > 0
        seen = first + j * factor
        assert not moved[seen:].any() and moved[max(seen - factor, 0) : seen].all()
    z = z.detach().requires_grad_()
    y = net.decode(z)
    assert y.shape == x.shape
    for t in range(frames):
        (grad,) = torch.autograd.grad(y[:, :, t].square().sum(), z, retain_graph=True)
        own = (t + net.past) // factor
        moved = grad.abs().amax((0, 1, 3, 4)) > 0
        assert not moved[own + 1 :].any() and moved[own]


@pytest.mark.parametrize(("frames", "factor"), [(9, 4), (8, 4), (5, 2), (13, 6)])
def test_a_longer_clip_begins_with_the_shorter_one(frames, factor) -> None:
    net = made(frames, factor, attention=True)
    x = torch.randn(2, 3, frames + 2 * factor, 4, 6, dtype=torch.float64)
    whole = net.encode(x)[0]
    for length in range(first_frames(net), x.shape[2] + 1, factor):
        part = net.encode(x[:, :, :length])[0]
        torch.testing.assert_close(part, whole[:, :, : part.shape[2]], rtol=0, atol=1e-12)
        back = net.decode(part)
        torch.testing.assert_close(back, net.decode(whole)[:, :, :length], rtol=0, atol=1e-12)


def test_lengths_of_one_more_begin_with_a_picture() -> None:
    """1 + k f frames: the first is a latent of its own, the same as of the picture alone; a still clip stays still."""
    net = made(9, 4)
    x = torch.randn(1, 3, 9, 4, 6, dtype=torch.float64)
    alone = net.encode(x[:, :, :1])[0]
    torch.testing.assert_close(alone, net.encode(x)[0][:, :, :1], rtol=0, atol=1e-12)
    assert net.decode(alone).shape == (1, 3, 1, 4, 6)
    still = net.encode(x[:, :, :1].expand(-1, -1, 9, -1, -1))[0]
    torch.testing.assert_close(still, alone.expand_as(still), rtol=0, atol=1e-12)


def test_other_lengths_are_named() -> None:
    with pytest.raises(ConfigError, match=r"size \(8, 4, 6\), less 1 along the first axis, is not divisible by"):
        made(9, 4).encode(torch.zeros(1, 3, 8, 4, 6).double())
    with pytest.raises(ConfigError, match=r"size \(9, 4, 6\) is not divisible by the autoencoder's factor \(4, 2, 2\)"):
        made(8, 4).encode(torch.zeros(1, 3, 9, 4, 6).double())


def test_space_is_seen_alike_to_both_sides() -> None:
    """With its kernels mirrored, a network maps the mirrored clip to the mirrored latent; in time it does not."""
    net = made(5, 1, attention=True)
    x = torch.randn(1, 3, 5, 4, 6, dtype=torch.float64)
    z = net.encode(x)[0]
    y = net.decode(z)
    for axis in (3, 4):
        other = made(5, 1, attention=True)
        for parameter in other.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.flip(axis)
        torch.testing.assert_close(other.encode(x.flip(axis))[0], z.flip(axis), rtol=0, atol=1e-12)
        torch.testing.assert_close(other.decode(z.flip(axis)), y.flip(axis), rtol=0, atol=1e-12)
    backwards = made(5, 1, attention=True)
    for parameter in backwards.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.flip(2)
    assert (backwards.encode(x.flip(2))[0] - z.flip(2)).abs().max() > 1e-3


def test_one_and_two_axes_and_gradients_of_checkpointed_levels() -> None:
    for shape in ((2, 16), (2, 16, 8)):
        net = ConvAutoencoder(shape, latent=3, width=8, multipliers=(1, 1), factors=2, causal=True).double()
        x = torch.randn(1, *shape, dtype=torch.float64, requires_grad=True)
        z = net.encode(x)[0]
        (grad,) = torch.autograd.grad(z[:, :, 3].square().sum(), x)
        assert grad[:, :, 8:].abs().max() == 0 and grad[:, :, 6:8].abs().max() > 0
    found = []
    for checkpointing in (False, True):
        net = made(5, 2, checkpointing=checkpointing)
        net(torch.ones(1, 3, 5, 4, 6).double()).square().mean().backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_norm_of_channels() -> None:
    x = torch.randn(2, 6, 3, 4)
    wanted = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(ChannelNorm(6)(x), wanted)
    torch.testing.assert_close(ChannelNorm(6)(7 * x), wanted, atol=1e-4, rtol=1e-4)
    assert ChannelNorm(6)(x.bfloat16()).dtype == torch.bfloat16
