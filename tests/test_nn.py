"""Networks: identities they must keep, sizes they must take, numbers they must not mix up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from suffuse.errors import ConfigError
from suffuse.nn import DiT, UNet
from suffuse.nn.attention import Attention, rope, rotate
from suffuse.nn.conv import shuffle, unshuffle
from suffuse.nn.embed import Embedding, coordinates, fourier
from suffuse.nn.refine import Refine
from torch import Tensor, nn

CONF = Path(__file__).parents[1] / "conf" / "model"
UNET = {"width": 16, "multipliers": (1, 2), "attention": (1,), "head_dim": 8, "coordinates": True}
DIT = {"width": 48, "depth": 2, "heads": 2, "patch": 2}
SHAPES = {1: (3, 16), 2: (3, 8, 12), 3: (2, 4, 8, 4)}
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "unet": lambda shape, **more: seeded(UNet, shape, **(UNET | more)),
    "dit": lambda shape, **more: seeded(DiT, shape, **(DIT | more)),
    "refined": lambda shape, **more: seeded(DiT, shape, **(DIT | {"refine": 8, "refine_depth": 2} | more)),
}
both = pytest.mark.parametrize("kind", BUILDERS)
plain = pytest.mark.parametrize("kind", ["unet", "dit"])


def seeded(network: type[nn.Module], *args: object, **options: object) -> nn.Module:
    """Build with the same first weights every time."""
    torch.manual_seed(0)
    return network(*args, **options)


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value, so that nothing starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network


def inputs(shape: tuple[int, ...], rows: int = 3, cond: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, *shape, generator=generator)
    vector = {"vector": torch.randn(rows, cond, generator=generator)} if cond else {}
    return x, torch.linspace(-3, 3, rows), vector


@both
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_zero_before_training_and_every_weight_learns(kind: str, axes: int) -> None:
    network = BUILDERS[kind](SHAPES[axes], cond_dim=5)
    x, noise, cond = inputs(SHAPES[axes], cond=5)
    assert network(x, noise, cond).abs().max() == 0
    out = awake(network)(x, noise, cond)
    assert out.shape == x.shape and out.std() > 0.01
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@both
def test_rows_do_not_touch_each_other(kind: str) -> None:
    network = awake(BUILDERS[kind](SHAPES[2], cond_dim=5)).eval()
    x, noise, cond = inputs(SHAPES[2], cond=5)
    whole = network(x, noise, cond)
    for i in range(3):
        alone = network(x[i : i + 1], noise[i : i + 1], {"vector": cond["vector"][i : i + 1]})
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-5)


@both
def test_noise_and_condition_matter(kind: str) -> None:
    network = awake(BUILDERS[kind](SHAPES[2], cond_dim=5)).eval()
    x, noise, cond = inputs(SHAPES[2], cond=5)
    base = network(x, noise, cond)
    assert (network(x, noise + 0.5, cond) - base).abs().max() > 1e-3
    assert (network(x, noise, {"vector": cond["vector"] + 1}) - base).abs().max() > 1e-3


@both
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (30, 18)])
def test_sizes_are_free_at_run_time(kind: str, size: tuple[int, int]) -> None:
    network = awake(BUILDERS[kind]((1, 8, 8)))
    x, noise, _ = inputs((1, *size))
    assert network(x, noise).shape == x.shape


def test_28_halves_twice() -> None:
    network = UNet((1, 28, 28), **(UNET | {"multipliers": (1, 1, 2), "attention": (2,)}))
    assert network.factor == (4, 4)
    assert network(torch.zeros(1, 1, 28, 28), torch.zeros(1)).shape == (1, 1, 28, 28)


def test_factors_per_axis_and_step() -> None:
    network = awake(UNet((2, 4, 8, 8), **(UNET | {"multipliers": (1, 1, 2), "factors": [(1, 2, 2), (2, 2, 2)]})))
    assert network.factor == (2, 4, 4)
    x, noise, _ = inputs((2, 4, 8, 8))
    assert network(x, noise).shape == x.shape


@both
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    x, noise, _ = inputs(SHAPES[2])
    found = []
    for checkpointing in (False, True):
        network = awake(BUILDERS[kind](SHAPES[2], checkpointing=checkpointing))
        network(x, noise).square().sum().backward()
        found.append([p.grad for p in network.parameters()])
    for stored, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, stored, rtol=1e-4, atol=1e-5)


def test_equal_noise_per_token_is_scalar_noise() -> None:
    dit = awake(DiT(SHAPES[3], **(DIT | {"width": 48}), cond_dim=4)).eval()
    x, noise, cond = inputs(SHAPES[3], cond=4)
    tokens = 2 * 4 * 2
    for count in (tokens, 2):  # per token, and per slice of the first axis
        per_token = dit(x, noise[:, None].expand(-1, count), cond)
        torch.testing.assert_close(per_token, dit(x, noise, cond), rtol=1e-4, atol=1e-5)
    unet = awake(UNet(SHAPES[3], **(UNET | {"factors": [(1, 2, 2)]}))).eval()
    torch.testing.assert_close(unet(x, noise[:, None].expand(-1, 4)), unet(x, noise), rtol=1e-4, atol=1e-5)


def test_noise_per_token_stays_with_its_token() -> None:
    """Without attention a token's output changes with its own level only."""
    dit = awake(DiT((1, 8), patch=2, width=16, depth=1, heads=2)).eval()
    for block in dit.blocks:
        nn.init.zeros_(block.attention.out.weight)
    x, level = torch.randn(1, 1, 8), torch.zeros(1, 4)
    other = level.clone()
    other[0, 2] = 2.0
    changed = (dit(x, level) - dit(x, other)).abs().reshape(4, 2).amax(1) > 1e-6
    assert changed.tolist() == [False, False, True, False]


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_take_a_level_per_slice(axes: int) -> None:
    """Of three axes a slice is refined by its own level alone; along one, its neighbours' are seen as well."""
    shape = SHAPES[axes]
    refine = awake(Refine(shape[0], axes, 8, 1)).eval()
    x, noise, _ = inputs(shape)
    torch.testing.assert_close(refine(x, x, noise[:, None].expand(-1, shape[1])), refine(x, x, noise))
    torch.testing.assert_close(refine(x, x, noise[:, None].expand(-1, shape[1] // 2)), refine(x, x, noise))
    level = torch.zeros(3, shape[1])
    other = level.clone()
    other[:, 1] = 2.0
    changed = (refine(x, x, level) - refine(x, x, other)).abs().transpose(1, 2).flatten(2).amax((0, 2)) > 1e-6
    assert changed.tolist() == [(i == 1 if axes == 3 else i <= 3) for i in range(shape[1])]
    with pytest.raises(ConfigError, match="3 noise levels are not those of the state"):
        refine(x, x, torch.zeros(3, 3))


@pytest.mark.parametrize("axes", [1, 2])
def test_convolutions_end_where_a_state_ends(axes: int) -> None:
    shape = SHAPES[axes]
    refine = awake(Refine(shape[0], axes, 8, 3)).eval()
    rough, x, noise = torch.randn(3, *shape), *inputs(shape)[:2]
    there = (torch.arange(shape[1]) < 5).expand(3, -1)
    whole = refine(rough, x, noise, None, there)[:, :, :5]
    torch.testing.assert_close(whole, refine(rough[:, :, :5], x[:, :, :5], noise), rtol=1e-4, atol=1e-5)
    assert (refine(rough, x, noise)[:, :, :5] - whole).abs().max() > 1e-3


def test_convolutions_reach_across_patches() -> None:
    """A change in one patch reaches its neighbour's edge, even without attention between them."""
    network = awake(BUILDERS["refined"]((1, 8), depth=1)).eval()
    nn.init.zeros_(network.blocks[0].attention.out.weight)
    x = torch.randn(2, 1, 8, requires_grad=True)
    network(x, torch.zeros(2))[0, 0, 4].backward()
    assert x.grad is not None and x.grad[0, 0, 3].abs() > 0 and x.grad[1].abs().max() == 0


def test_rotary_products_depend_on_distance_alone() -> None:
    table = rope((4, 6), 16, torch.device("cpu"))
    q, k = torch.randn(16), torch.randn(16)
    qs, ks = (rotate(v.expand(24, 16), table).reshape(4, 6, 16) for v in (q, k))
    for dy, dx in ((0, 0), (1, 0), (0, 2), (2, 3)):
        products = [qs[y, x] @ ks[y + dy, x + dx] for y, x in itertools.product(range(4 - dy), range(6 - dx))]
        torch.testing.assert_close(torch.stack(products), products[0].expand(len(products)), rtol=1e-4, atol=1e-5)
    far = qs[0, 0] @ ks[3, 0]
    assert abs(far - qs[0, 0] @ ks[0, 0]) > 1e-3


def test_attention_is_softmax_of_normalised_products() -> None:
    attention = awake(Attention(8, 2))
    x = torch.randn(2, 5, 8)
    q, k, v = (part.reshape(2, 5, 2, 4).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    q, k = attention.q_norm(q), attention.k_norm(k)
    weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
    expected = attention.out((weights @ v).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_space_to_depth_is_a_bijection(axes: int) -> None:
    patch = (2, 3, 4)[:axes]
    x = torch.randn(2, 3, *(p * n for p, n in zip(patch, (2, 3, 2), strict=False)))
    assert torch.equal(shuffle(unshuffle(x, patch), patch), x)
    y = torch.randn(2, 3, 6, 6)
    assert torch.equal(unshuffle(y, (3, 3)), nn.functional.pixel_unshuffle(y, 3))


def test_patches_are_a_bijection() -> None:
    dit = DiT((2, 4, 6), patch=(2, 3), width=16, depth=1, heads=2)
    x = torch.randn(3, 2, 4, 6)
    tokens = dit._cut(x, (2, 2))
    assert tokens.shape == (3, 4, 12)
    assert torch.equal(tokens[0, 1], x[0, :, 0:2, 3:6].flatten())
    assert torch.equal(dit._join(tokens, (2, 2)), x)


def test_noise_features_tell_levels_apart() -> None:
    levels = torch.linspace(-3.75, 3.75, 200)
    features = fourier(levels, 128)
    distance = torch.cdist(features, features) + 1e3 * torch.eye(200)
    assert distance.min() > 0.5
    assert torch.allclose(features.square().sum(1), torch.full((200,), 64.0), atol=1e-3)


def test_condition_is_added_before_the_nonlinearity() -> None:
    embed = Embedding(16, 3)
    noise, vector = torch.zeros(2), torch.randn(2, 3)
    expected = nn.functional.silu(embed.noise(fourier(noise, 128)) + embed.cond(vector))
    torch.testing.assert_close(embed(noise, {"vector": vector}), expected)


@pytest.mark.parametrize(("name", "millions"), [("dit_s", 33), ("dit_b", 130), ("dit_l", 458), ("dit_xl", 675)])
def test_sizes_of_the_paper(name: str, millions: float) -> None:
    arguments = {k: v for k, v in yaml.safe_load((CONF / f"{name}.yaml").read_text()).items() if k[0] != "_"}
    with torch.device("meta"):
        network = DiT((4, 32, 32), **arguments)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("path", sorted(CONF.glob("unet*.yaml")), ids=lambda path: path.stem)
def test_every_unet_config_builds(path: Path) -> None:
    arguments = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k[0] != "_"}
    with torch.device("meta"):
        UNet((3, 64, 64), cond_dim=8, **arguments)


@both
def test_one_graph_without_breaks(kind: str) -> None:
    network = awake(BUILDERS[kind](SHAPES[2], cond_dim=5)).eval()
    x, noise, cond = inputs(SHAPES[2], cond=5)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, noise, cond), network(x, noise, cond))


@both
def test_bf16_autocast_is_near(kind: str) -> None:
    network = awake(BUILDERS[kind](SHAPES[2])).eval()
    x, noise, _ = inputs(SHAPES[2])
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, noise)
    exact = network(x, noise)
    assert (half.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


ERRORS = [
    (lambda: UNet((1, 8, 8), **UNET)(torch.zeros(1, 1, 9, 8), torch.zeros(1)), r"\(9, 8\) is not divisible .*\(2, 2\)"),
    (lambda: UNet((1, 8, 8), **UNET)(torch.zeros(1, 2, 8, 8), torch.zeros(1)), "made for 1 channels"),
    (lambda: UNet((1, 8, 8), **UNET)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8)), "needs one level per slice"),
    (lambda: UNet((7,)), "0 spatial axes"),
    (lambda: UNet((1, 8), attention=(5,)), r"names levels outside 0..1"),
    (lambda: UNet((1, 8), factors=[2, 2]), "one entry per step"),
    (lambda: UNet((1, 8), cond_dim=3)(torch.zeros(1, 1, 8), torch.zeros(1)), "needs cond"),
    (lambda: DiT((1, 8, 8), **DIT)(torch.zeros(1, 1, 7, 8), torch.zeros(1)), r"not divisible by the patch \(2, 2\)"),
    (lambda: DiT((1, 8, 8), **DIT)(torch.zeros(1, 1, 8, 8), torch.zeros(1, 5)), "5 noise levels"),
    (lambda: DiT((1, 8, 8), patch=(2, 2, 2)), "model.patch"),
    (lambda: DiT((1, 8, 8), width=30, heads=4), "do not divide"),
    (lambda: DiT((1, 8, 8), **DIT, refine=-1), "model.refine=-1 must be a whole number"),
    (lambda: DiT((1, 8, 8), **DIT, refine=8, refine_depth=0), "model.refine_depth=0 must be"),
]


@pytest.mark.parametrize(("make", "text"), ERRORS)
def test_errors_name_what_does_not_fit(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        make()
    assert "\n" not in str(caught.value)


@plain
def test_a_placed_network_knows_where_it_is(kind: str) -> None:
    """Every position of a constant state looks the same; what the condition says of each may differ all the same."""
    x, noise, cond = torch.zeros(3, 2, 16), torch.zeros(3), {"vector": torch.randn(3, 5)}
    blind = DiT((2, 16), cond_dim=5, **DIT) if kind == "dit" else UNet((2, 16), cond_dim=5, **UNET)
    placed = BUILDERS[kind]((2, 16), cond_dim=5, placed=24)
    assert sum(p.numel() for p in placed.parameters()) > sum(p.numel() for p in blind.parameters())
    out = awake(placed).eval()(x, noise, cond)
    assert out.shape == x.shape and (out[:, :, 2] - out[:, :, 9]).abs().max() > 1e-3
    assert (out[0] - out[1]).abs().max() > 1e-3
    if kind == "dit":
        same = awake(blind).eval()(x, noise, cond).unflatten(2, (8, 2))
        torch.testing.assert_close(same[:, :, 2], same[:, :, 6], atol=1e-5, rtol=1e-4)


@plain
def test_a_placed_network_takes_noise_per_token(kind: str) -> None:
    kinds = {"dit": {"width": 48}, "unet": {"factors": [(1, 2, 2)]}}[kind]
    network = awake(BUILDERS[kind](SHAPES[3], cond_dim=4, placed=16, **kinds)).eval()
    x, noise, cond = inputs(SHAPES[3], cond=4)
    per_slice = network(x, noise[:, None].expand(-1, 2 if kind == "dit" else 4), cond)
    torch.testing.assert_close(per_slice, network(x, noise, cond), rtol=1e-4, atol=1e-5)


def test_coordinates_run_from_minus_one_to_one() -> None:
    found = coordinates((3, 2), torch.zeros(1))
    assert found[0].tolist() == [[-1, -1], [0, 0], [1, 1]] and found[1].tolist() == [[-1, 1]] * 3


# Slices of the first axis: levels of their own, and slices that are missing.


def tubes(**more: object) -> nn.Module:
    return awake(
        seeded(DiT, (3, 4, 4, 4), width=48, depth=2, heads=2, patch=(2, 2, 2), levels=2, placed=16, **more)
    ).eval()


@pytest.mark.parametrize("attention", ["full", "axial"])
def test_levels_inside_a_patch(attention: str) -> None:
    """Equal levels are one level; which of the two slices of a patch is noisy is seen."""
    network = tubes(attention=attention)
    x, noise, _ = inputs((3, 4, 4, 4))
    one = network(x, noise)
    torch.testing.assert_close(network(x, noise[:, None].expand(-1, 4)), one)
    a, b = (torch.tensor([level] * 3) for level in ([0.0, 2.0, 1.0, 1.0], [2.0, 0.0, 1.0, 1.0]))
    assert (network(x, a) - network(x, b)).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="5 noise levels"):
        network(x, torch.zeros(3, 5))


@pytest.mark.parametrize("attention", ["full", "axial"])
def test_missing_slices_are_not_seen(attention: str) -> None:
    network = tubes(attention=attention)
    x, noise, _ = inputs((3, 4, 4, 4))
    mask = torch.tensor([[True, True, False, False]] * 2 + [[True] * 4])
    found = network({"x": x, "mask": mask}, noise)["x"]
    other = x.clone()
    other[:2, :, 2:] += 5
    again = network({"x": other, "mask": mask}, noise)["x"]
    torch.testing.assert_close(found[:2, :, :2], again[:2, :, :2])
    torch.testing.assert_close(found[2], network(x, noise)[2])
    assert (found[:2, :, :2] - network(x, noise)[:2, :, :2]).abs().max() > 1e-3


def test_a_network_of_masked_states_is_built_from_their_shapes() -> None:
    network = seeded(DiT, {"x": (3, 4, 4), "mask": (4,)}, width=48, depth=1, heads=2, patch=(1, 2))
    x = {"x": torch.randn(2, 3, 4, 4), "mask": torch.ones(2, 4, dtype=torch.bool)}
    assert set(network(x, torch.zeros(2))) == {"x"}
    with pytest.raises(ConfigError, match="fields x and mask"):
        DiT({"x": (3, 4), "size": ()})


def test_axial_attention_needs_axes_and_every_weight_learns() -> None:
    network = tubes(attention="axial")
    x, noise, _ = inputs((3, 4, 4, 4))
    network(x, noise).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    for options in ({"attention": "axial"}, {"attention": "ring"}, {"levels": 3}):
        with pytest.raises(ConfigError, match=r"model.attention|model.levels"):
            DiT((3, 8), width=48, depth=1, heads=2, patch=2, **options)


def test_a_unet_that_is_told_several_levels() -> None:
    network = awake(seeded(UNet, SHAPES[2], **UNET, levels=3)).eval()
    x, _, _ = inputs(SHAPES[2])
    a, b = torch.tensor([[0.0, 1.0, 2.0]] * 3), torch.tensor([[2.0, 1.0, 0.0]] * 3)
    assert (network(x, a) - network(x, b)).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="3 noise levels are wanted"):
        network(x, torch.zeros(3, 2))
