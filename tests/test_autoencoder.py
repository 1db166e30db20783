"""Autoencoders: the network, what it minimises, the task on the command line, and latents as states."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from suffuse.autoencoder import Autoencoder
from suffuse.errors import CheckpointError, ConfigError
from suffuse.latent import Latent
from suffuse.metrics import Fidelity
from suffuse.model import Facts, Model
from suffuse.nn import ConvAutoencoder
from suffuse.noise import KeyedNoise
from suffuse.reconstruction import Adversarial, Reconstruction, Term, divergence
from suffuse.testing import command
from torch import Tensor

SMALL = ["model.width=8", "model.multipliers=[1,2]", "model.latent=4"]


@pytest.mark.parametrize(
    ("shape", "patch", "factors"),
    [((2, 32), 2, 4), ((3, 16, 24), 1, 2), ((1, 4, 8, 8), [1, 2, 2], [[2, 2, 2]])],
)
def test_latents_are_smaller_by_the_factor(shape, patch, factors) -> None:
    net = ConvAutoencoder(shape, latent=5, width=8, multipliers=(1, 1.5), factors=factors, patch=patch, attention=True)
    x = torch.randn(2, *shape)
    mean, log_var = net.encode(x)
    assert mean.shape == log_var.shape == (2, 5, *(size // f for size, f in zip(shape[1:], net.factor, strict=True)))
    assert net.decode(mean).shape == x.shape and torch.equal(net(x), net.decode(mean))
    assert not torch.equal(net(x)[0], net(x)[1])


def test_other_sizes_pass_and_wrong_ones_are_named() -> None:
    net = ConvAutoencoder((1, 16), width=8, multipliers=(1, 1))
    assert net(torch.randn(1, 1, 48)).shape == (1, 1, 48)
    with pytest.raises(ConfigError, match=r"size \(17,\) is not divisible by the autoencoder's factor \(2,\)"):
        net.encode(torch.randn(1, 1, 17))
    with pytest.raises(ConfigError, match="made for 1 channels and 1 axes"):
        net.encode(torch.randn(1, 2, 16))
    with pytest.raises(ConfigError, match="a latent has 8 channels and 1 axes"):
        net.decode(torch.randn(1, 3, 8))
    for options, named in (
        ({"latent": 0}, "model.latent=0"),
        ({"kernel": 4}, "model.kernel=4"),
        ({"factors": [2]}, "one entry per step between the 3 levels"),
        ({"patch": [2, 2]}, r"model.patch=\[2, 2\]"),
    ):
        with pytest.raises(ConfigError, match=named):
            ConvAutoencoder((1, 16), **options)


def test_checkpointed_levels_have_the_same_gradient() -> None:
    x, found = torch.randn(2, 1, 16), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = ConvAutoencoder((1, 16), width=8, checkpointing=checkpointing)
        net(x).square().mean().backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_divergence_is_the_integral() -> None:
    mean, log_var = torch.tensor([[0.7]]).double(), torch.tensor([[-0.4]]).double()
    grid = torch.linspace(-12, 12, 200_001).double()
    q = torch.distributions.Normal(mean.item(), math.exp(-0.2)).log_prob(grid)
    p = torch.distributions.Normal(0.0, 1.0).log_prob(grid)
    wanted = torch.trapezoid(q.exp() * (q - p), grid)
    assert divergence(mean, log_var).item() == pytest.approx(wanted.item(), abs=1e-7)
    assert divergence(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]


class _Twice(Term):
    def forward(self, drawn: Tensor, x: Tensor) -> Tensor:
        return 2 * (drawn - x).flatten(1).abs().amax(1)


def test_the_loss_is_the_sum_of_its_parts() -> None:
    x = torch.zeros(2, 1, 4)
    drawn = torch.tensor([[[1.0, 0, 0, 0]], [[2.0, 2, 2, 2]]])
    mean, log_var = torch.ones(2, 3), torch.zeros(2, 3)
    loss = Reconstruction(l1=1, l2=3, kl=0.1, terms={"far": _Twice(0.5)})
    per_row, more = loss(drawn, x, mean, log_var)
    assert per_row.tolist() == pytest.approx([0.25 + 0.75 + 0.05 + 1.0, 2 + 12 + 0.05 + 2.0])
    assert more.tolist() == [0, 0]
    for options, named in (({"l1": -1}, "l1=-1"), ({"kl": float("nan")}, "kl=nan"), ({"l1": 0}, "nothing to train")):
        with pytest.raises(ConfigError, match=named):
            Reconstruction(**options)


def test_the_option_names_all_arguments() -> None:
    """Of the loss, and of the discriminator in its comment; the state's shape is filled in by the model."""
    text = (Path(__file__).parents[1] / "conf" / "objective" / "autoencoder.yaml").read_text()
    node = yaml.safe_load(text)
    assert text.startswith("# ") and node.pop("_target_") == "suffuse.reconstruction.Reconstruction"
    assert node == _defaults(Reconstruction) | {"terms": {}}
    (shown,) = re.findall(r"adversarial: null +# (\{.*\})", text)
    game = yaml.safe_load(shown)
    assert game.pop("_target_") == "suffuse.reconstruction.Adversarial" and game.pop("_partial_") is True
    assert set(game) <= set(_defaults(Adversarial))


def _defaults(cls: type) -> dict[str, object]:
    return {name: p.default for name, p in inspect.signature(cls).parameters.items() if name != "shape"}


def test_each_side_of_the_game_moves_its_own_weights_only() -> None:
    game = Adversarial((1, 16), weight=0.5, start=3, width=8, depth=2)
    drawn, x = torch.randn(2, 1, 16, requires_grad=True), torch.randn(2, 1, 16)
    fooled, own = game(drawn, x, step=3)
    fooled.sum().backward()
    assert drawn.grad is not None and drawn.grad.abs().sum() > 0
    assert all(p.grad is None for p in game.parameters())
    drawn.grad = None
    own.sum().backward()
    assert drawn.grad is None and all(p.grad is not None for p in game.parameters())
    real, made = game.discriminator(x), game.discriminator(drawn)
    assert torch.allclose(own, (1 - real).relu().mean(1) + (1 + made).relu().mean(1))
    assert torch.allclose(fooled, -0.5 * made.mean(1), atol=1e-6)
    assert game(drawn, x, step=2)[0].abs().sum() == 0


def made(kl: float = 1e-4, adversarial: bool = False) -> Autoencoder:
    torch.manual_seed(0)
    objective: dict = {"_target_": "suffuse.reconstruction.Reconstruction", "kl": kl}
    if adversarial:
        objective["adversarial"] = {"_target_": "suffuse.reconstruction.Adversarial", "_partial_": True, "width": 8}
    model = {"_target_": "suffuse.nn.ConvAutoencoder", "latent": 4, "width": 16, "multipliers": [1, 1], "factors": 4}
    return Autoencoder({"model": model, "objective": objective}, Facts((1, 16), (), (), 2.0))


@pytest.mark.parametrize("adversarial", [False, True])
def test_it_learns_what_fits_through_the_bottleneck(adversarial: bool) -> None:
    """Sums of two sines have four numbers in them, as many as four latents of four channels can hold and more."""
    model = made(adversarial=adversarial)
    t = torch.arange(16) / 16 * 2 * math.pi
    random = torch.Generator().manual_seed(0)
    a = torch.randn(512, 4, 1, generator=random)
    x = 2 * (a[:, :1] * t.sin() + a[:, 1:2] * t.cos() + a[:, 2:3] * (2 * t).sin() + a[:, 3:] * (2 * t).cos())
    step = torch.optim.Adam(model.parameters(), 3e-3)
    for i in range(250):
        rows = x[torch.randint(448, (32,), generator=random)]
        loss = model.loss(rows, {}, KeyedNoise(torch.arange(32) + 32 * i), i, torch.arange(32), 32)
        step.zero_grad()
        loss.total.backward()
        step.step()
    model.eval()
    with torch.no_grad():
        back = model.decode(model.encode(x[448:]))
    assert (back - x[448:]).square().mean() < 0.05 * x[448:].square().mean()


def test_training_draws_latents_and_evaluation_takes_means() -> None:
    model, x = made(), torch.randn(3, 1, 16)
    rows = torch.arange(3)

    def loss(step: int) -> float:
        return model.loss(x, {}, KeyedNoise(rows), step, rows, 3).total.item()

    assert loss(0) == loss(0) != loss(1)
    model.eval()
    assert loss(0) == loss(1)


def test_a_strong_price_empties_the_bottleneck() -> None:
    model, x = made(kl=100.0), torch.randn(64, 1, 16)
    step = torch.optim.Adam(model.parameters(), 1e-2)
    for i in range(120):
        loss = model.loss(x, {}, KeyedNoise(torch.arange(64)), i, torch.arange(64), 64)
        step.zero_grad()
        loss.total.backward()
        step.step()
    mean, log_var = model.network.encode(x / model.scale)
    assert divergence(mean, log_var).mean() < 1e-2


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished tiny autoencoder."""
    folder = tmp_path_factory.mktemp("coder")
    words = ["modality=image", "task=autoencoder", "trainer=cpu", "steps=8", "every.log=2", "every.preview=4", "num=6"]
    words += ["every.validate=4", "every.checkpoint=4", "preview_num=4", "val_num=20", "metrics_num=40", "name=ae"]
    done = command(folder, "train", *words, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "times fewer numbers" in done.stdout and "latent codec.ckpt=outputs/image/ae" in done.stdout
    return folder / "outputs" / "image" / "ae"


def test_a_run_shows_pairs_and_says_how_good_they_are(coder: Path) -> None:
    figures = json.loads((coder / "metrics.json").read_text())
    assert figures["psnr"] > 0 and math.isfinite(figures["val/loss"])
    rows = [json.loads(line) for line in (coder / "samples/final/manifest.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["data", "reconstruction"] * 3
    assert [row["of"] for row in rows] == [0, 0, 1, 1, 2, 2] and "sampler" not in rows[0]
    assert (coder / "previews/step-000004.png").is_file() and (coder / "samples/final/overview.png").is_file()


def test_the_figures_of_known_errors() -> None:
    x = torch.rand(5, 1, 8, generator=torch.Generator().manual_seed(0))
    x[0, 0, :2] = torch.tensor([0.0, 2.0])  # the range

    class Held:
        def sample(self, limit: int, held_out: bool = False) -> list[dict[str, Tensor]]:
            assert held_out
            return [{"x": row} for row in x[:limit]]

    figures = Fidelity()(x + 0.1, {}, Held())
    assert figures == pytest.approx({"psnr": 10 * math.log10(4 / 0.01), "mse": 0.01, "mae": 0.1}, rel=1e-5)


def test_its_latents_are_states_that_a_run_diffuses(coder: Path, local, tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "codec=latent", f"codec.ckpt={coder}", "name=l"]
    done = local("train", *words)
    assert done.returncode == 0, done.stderr
    assert "standard deviation 1.0" in done.stdout or "standard deviation 0.99" in done.stdout
    saved = torch.load(tmp_path / "outputs/image/l/checkpoints/last.ckpt", weights_only=True)
    about = saved["suffuse"]["facts"]["about"]["codec"]
    assert len(about["mean"]) == 4 and about["autoencoder"]
    assert not any("coder" in name for name in saved["state_dict"])
    assert local("sample", f"ckpt={tmp_path}/outputs/image/l", "num=2", "out=drawn").returncode == 0
    assert (tmp_path / "drawn/00001.png").is_file()


def test_the_latent_codec_standardises_and_inverts(coder: Path) -> None:
    from suffuse_image.data import Digits

    data = Digits()
    data.setup()
    x = torch.stack([data.train[i]["x"] for i in range(64)])
    first = Latent(str(coder))
    about = {**data.spec.about, "codec": first.measure(x)}
    codec = Latent(str(coder), about=about)
    z = codec.encode(x)
    flat = z.transpose(0, 1).flatten(1)
    assert torch.allclose(flat.mean(1), torch.zeros(4), atol=1e-4)
    assert torch.allclose(flat.std(1), torch.ones(4), atol=1e-3)
    model = codec.coder.model
    states = codec.coder.codec.encode(x)
    assert torch.allclose(codec.decode(z), codec.coder.codec.decode(model.decode(model.encode(states))), atol=1e-4)


def test_another_autoencoder_than_the_one_of_training_is_refused(coder: Path) -> None:
    stats = {"mean": [0.0] * 4, "scale": [1.0] * 4, "autoencoder": "0" * 16}
    with pytest.raises(CheckpointError, match="its weights are not those that this model was trained on"):
        Latent(str(coder), about={"codec": stats})


def test_what_is_no_autoencoder_is_refused(coder: Path, trained: Path, local) -> None:
    with pytest.raises(ConfigError, match=r"codec.ckpt is not set; give the run of an autoencoder"):
        Latent()
    with pytest.raises(CheckpointError, match="holds no autoencoder; train one with task=autoencoder"):
        Latent(str(trained))
    with pytest.raises(CheckpointError, match="no such run directory"):
        Latent("nowhere")
    with pytest.raises(CheckpointError, match="an autoencoder draws nothing"):
        Model.load(torch.load(coder / "checkpoints/last.ckpt", weights_only=True))
    for words in (("sample", f"ckpt={coder}"), ("suffuse", "tune", f"ckpt={coder}")):
        done = local(*words)
        assert done.returncode == 1 and "an autoencoder, which draws nothing" in done.stderr
    facts = Facts({"a": (1, 4)}, (), (), {"a": 1.0})
    with pytest.raises(ConfigError, match=r"encodes one tensor; this data's states are \['a'\]"):
        Autoencoder({}, facts)
    model = {"_target_": "suffuse.nn.UNet", "width": 8, "multipliers": [1], "attention": []}
    with pytest.raises(ConfigError, match="has no encoder; take model=autoencoder"):
        Autoencoder({"model": model}, Facts((1, 16), (), (), 1.0))


def test_a_modalitys_own_option_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from suffuse import overrides

    monkeypatch.setattr(overrides, "groups", lambda roots: {"task": {"autoencoder", "sound/autoencoder"}})
    translate = overrides.translate
    assert translate(["task=autoencoder", "modality=sound"]) == ["task=sound/autoencoder", "modality=sound"]
    assert translate(["modality=x", "task=autoencoder"]) == ["modality=x", "task=autoencoder"]
    assert translate(["modality=sound", "codec=latent"]) == ["modality=sound", "codec=latent"]
