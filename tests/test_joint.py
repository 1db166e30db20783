"""Joint attention: one attention over the tokens of a state and of a caption, with weights of its own for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.nn import DiT, UNet
from suffuse.nn.embed import resized
from suffuse.nn.joint import JointBlock
from torch.nn import functional as F


def filled(module: torch.nn.Module, std: float = 0.3) -> Any:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module.double()


def test_attention_is_one_softmax_over_both() -> None:
    block = filled(JointBlock(16, 2, 2.0, 0.0))
    x, text, embedded = (torch.randn(2, n, 16, dtype=torch.float64) for n in (6, 4, 1))
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    out, said = block(x, text, embedded, None, None, mask)
    # By hand, for the first row: the two words that are there and the six tokens, each with its own weights.
    streams = [(block.state, x[:1]), (block.text, text[:1, :2])]
    parts = [stream.parts(embedded[:1]) for stream, _ in streams]
    q, k, v = (
        torch.cat(found, 2)
        for found in zip(*(s.qkv(y, p[0], p[1], None) for (s, y), p in zip(streams, parts, strict=True)), strict=True)
    )
    weights = (q @ k.mT / 8**0.5).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    after = x[:1] + block.state.attention.out(mixed[:, :6]) * parts[0][2][:, 0]
    normed = F.layer_norm(after, (16,), eps=1e-6)
    wanted = after + block.state.feed(normed * (1 + parts[0][3][:, 0]) + parts[0][4][:, 0]) * parts[0][5][:, 0]
    torch.testing.assert_close(out[:1], wanted)
    # Words that are not there change nothing.
    other = text.clone()
    other[0, 2:] = 9.0
    again, again_said = block(x, other, embedded, None, None, mask)
    assert torch.equal(again, out) and torch.equal(again_said[0, :2], said[0, :2])


def test_the_caption_changes_with_the_picture() -> None:
    net = filled(DiT((3, 8, 8), cond_dim=8, context_dim=6, width=32, depth=2, heads=2, attention="joint"), 0.1).float()
    x, noise = torch.randn(2, 3, 8, 8), torch.rand(2)
    cond = {"vector": torch.randn(2, 8), "tokens": torch.randn(2, 5, 6), "mask": torch.ones(2, 5, dtype=torch.bool)}
    first = net(x, noise, cond)
    other = net(x, noise, cond | {"tokens": cond["tokens"].flip(0)})
    assert first.shape == x.shape and (other - first).abs().max() > 1e-4
    # A word alone is attended to as often as it is there; its order is the conditioner's to tell.
    turned = cond | {"tokens": cond["tokens"].flip(1)}
    torch.testing.assert_close(net(x, noise, turned), first, atol=1e-4, rtol=1e-4)
    net(x, noise, cond).sum().backward()
    without = {name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    # After the last block the caption's own tokens are not used any more, so nothing asks for them there.
    assert without == {f"blocks.1.text.attention.{name}" for name in ("out.weight", "out.bias", "q_norm.weight")}


def test_it_starts_at_zero_and_recomputes_alike() -> None:
    how: dict[str, Any] = {"cond_dim": 4, "context_dim": 6, "width": 32, "depth": 2, "heads": 2, "attention": "joint"}
    x, noise = torch.randn(2, 3, 8, 8), torch.rand(2)
    cond = {"vector": torch.randn(2, 4), "tokens": torch.randn(2, 5, 6)}
    assert DiT((3, 8, 8), **how)(x, noise, cond).abs().max() == 0
    plain, kept = (filled(DiT((3, 8, 8), checkpointing=c, **how)).float() for c in (False, True))
    a, b = plain(x, noise, cond), kept(x, noise, cond)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for p, q in zip(plain.parameters(), kept.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)


def test_padded_slices_and_levels_of_slices() -> None:
    how: dict[str, Any] = {"patch": 1, "width": 32, "depth": 2, "heads": 2, "attention": "joint"}
    net = filled(DiT({"x": (3, 8), "mask": (8,)}, cond_dim=4, context_dim=6, **how)).float()
    cond = {"vector": torch.randn(2, 4), "tokens": torch.randn(2, 5, 6)}
    x, mask = torch.randn(2, 3, 8), torch.arange(8)[None] < torch.tensor([[5], [8]])
    noise = torch.rand(2, 8)
    out = net({"x": x, "mask": mask}, noise, cond)["x"]
    changed = x.clone()
    changed[0, :, 5:] = 7.0
    torch.testing.assert_close(net({"x": changed, "mask": mask}, noise, cond)["x"][0, :, :5], out[0, :, :5])
    other = noise.clone()
    other[1, 3] += 0.5
    assert (net({"x": x, "mask": mask}, other, cond)["x"] - out)[1].abs().max() > 1e-4


def test_without_captions_it_says_so() -> None:
    with pytest.raises(ConfigError, match="needs captions"):
        DiT((3, 8, 8), width=32, depth=1, heads=2, attention="joint")
    with pytest.raises(ConfigError, match="must be full, joint, or axial"):
        DiT((3, 8, 8), width=32, depth=1, heads=2, attention="both")


def test_a_picture_beside_the_state() -> None:
    x = torch.randn(2, 4, 8, 8)
    small = torch.randn(2, 3, 4, 4)
    assert torch.equal(resized({"image": torch.ones(2, 3, 8, 8)}, 3, x), torch.ones(2, 3, 8, 8))
    assert resized({"image": small}, 3, x).shape == (2, 3, 8, 8)
    big = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(resized({"image": big}, 3, torch.empty(2, 1, 4, 4)), small)
    for net in (
        DiT((4, 8, 8), width=32, depth=1, heads=2, extra=3),
        UNet((4, 8, 8), width=16, head_dim=16, extra=3),
        UNet((4, 8, 8), width=16, head_dim=16, extra=3, patch=2, self_condition=True),
    ):
        filled(net).float()
        out = net(x, torch.zeros(2), {"image": small})
        assert out.shape == x.shape and (net(x, torch.zeros(2), {"image": small.flip(0)}) - out).abs().max() > 1e-4
    for cond in (None, {}, {"image": small[:, :2]}):
        with pytest.raises(ConfigError, match="of 3 channels"):
            resized(cond, 3, x)
