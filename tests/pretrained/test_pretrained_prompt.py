"""Prompts: weights, what is cut, what is empty, labels as prompts."""

from __future__ import annotations

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.pretrained.encoders import Encoders
from suffuse.pretrained.folder import opened
from suffuse.pretrained.prompt import BYTES, Clipped, Prompts
from suffuse.text import encoded
from suffuse.weighting import Weighted, weighted

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("prompt", "text", "spans"),
    [
        ("a (red:1.3) cat", "a red cat", ((2, 5, 1.3),)),
        ("a (b) c", "a (b) c", ()),
        (r"\(x:2\) \\", r"(x:2) \ "[:-1], ()),
        ("((a:2) b:1.5) c", "a b c", ((0, 1, 3.0), (1, 3, 1.5))),
        ("(x:12", "(x:12", ()),
        ("(b: .5)", "b", ((0, 1, 0.5),)),
        ("(a (b) c:2)", "a (b) c", ((0, 7, 2.0),)),
        ("(a:1)", "a", ()),
        ("at 10:30 (noon:0)", "at 10:30 noon", ((9, 13, 0.0),)),
        ("", "", ()),
    ],
)
def test_marks(prompt, text, spans):
    assert weighted(prompt) == Weighted(text, spans)


@pytest.mark.parametrize("prompt", ["(a:-1)", "(a:11)"])
def test_weights_out_of_range(prompt):
    with pytest.raises(ConfigError, match=r"the weight -?\d+ in .* is not in \[0, 10\]"):
        weighted(prompt)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "pixart", "audio"])
def test_a_weight_moves_its_own_tokens_alone(name, folder):
    encoders = Encoders(opened(str(folder(name))))
    stream = encoders.streams[0]
    plain, heavy = (stream([weighted(text)], CPU)[0][0] for text in ("a red cat", "a (red:1.5) cat"))
    empty = stream([weighted("")], CPU)[0][0]
    offsets = stream._ids(["a red cat"], return_offsets_mapping=True).offset_mapping[0].tolist()
    mine = torch.tensor([end > start and start < 5 and end > 2 for start, end in offsets])
    assert 1 <= mine.sum() < len(mine) - 3
    assert torch.equal(heavy[~mine], plain[~mine])
    assert torch.allclose(heavy[mine], empty[mine] + 1.5 * (plain[mine] - empty[mine]), atol=1e-6)
    assert (heavy - plain)[mine].abs().max() > 1e-3
    forgotten = stream([weighted("a (red:0) cat")], CPU)[0][0]
    assert torch.allclose(forgotten[mine], empty[mine])
    assert torch.equal(stream([weighted("a (red:1.0) cat")], CPU)[0][0], plain)


def test_weights_reach_the_sample_and_only_that_row(folder, ours):
    where, words = folder("sd"), ("sampler.steps=2", "guidance=cfg", "guidance.scale=3")
    plain = ours(where, *words, text="a red cat").state()
    both = ours(where, *words, text=["a red cat", "a (red:2) cat"]).state()
    # Two captions are read in one batch, whose sums some processors round otherwise than those of one.
    assert torch.allclose(both[0], plain[0], atol=1e-4) and (both[1] - plain[1]).abs().max() > 1e-2


def test_what_is_cut_is_said(folder, ours, caplog):
    mine = ours(folder("sd3"), text="a red cat, seen from above")
    lines = [record.getMessage() for record in caplog.records]
    assert (
        lines
        == ["condition.text: 'a red cat, seen from above' is too long: CLIP reads 16 of its 21 tokens; cut: 'above'"]
        * 2
    )
    caplog.clear()
    mine.model.conditioner.parse({"text": "a (red:1.2) cat"}, 1)
    assert not caplog.records
    with pytest.raises(ConfigError, match=rf"has {BYTES + 1} bytes; at most {BYTES} are taken"):
        mine.model.conditioner.parse({"text": "x" * (BYTES + 1)}, 1)


@pytest.mark.parametrize("prompt", ["", "a red cat, seen from above and in the rain"])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_empty_and_long_prompts_are_what_they_are_there(name, prompt, folder, loaded, ours):
    """Without a negative prompt too: zeros for Stable Diffusion XL, the empty prompt for its elder."""
    mine = ours(folder(name), "sampler.steps=3", "guidance=cfg", "guidance.scale=3", text=prompt)
    pipe = loaded(name)
    wanted = pipe([prompt] * 2, latents=mine.noise(), guidance_scale=3.0, num_inference_steps=3, output_type="latent")
    assert (mine.state() - wanted.images).abs().max() < 1e-4
    if not prompt:
        assert ours(folder(name), "sampler.steps=3").raw["text"].any()  # said nothing, the prompt is the empty one


def test_the_empty_prompt_and_none(folder):
    prompts = Prompts(str(folder("sdxl")), about={"text": True})
    nothing, empty = prompts(prompts.nothing(1)), prompts(prompts.parse({"text": ""}, 1))
    assert not nothing["tokens"].any() and not nothing["vector"].any()
    assert empty["tokens"].abs().max() > 0.1 and prompts.captions(prompts.parse({}, 2)) == ["", ""]


def test_captions_and_labels_of_data_train_prompts(folder):
    where = str(folder("sd"))
    captioned = Prompts(where, about={"text": True})
    named = Prompts(where, template="a {label} cat", labels=["red", "blue"])
    raw = {"text": torch.stack([encoded("a red cat"), encoded("a blue cat")]), "label": torch.tensor([0, 1])}
    found = named({"label": torch.tensor([0, 1])})["tokens"]
    assert torch.equal(captioned(raw)["tokens"], found) and named.captions(raw) == ["a red cat", "a blue cat"]
    assert named.known() == ["text", "label"]
    dropped = captioned.dropped(KeyedNoise(torch.arange(1000)), 0, torch.empty(1000))
    assert set(dropped) == {"text"} and 60 < int(dropped["text"].sum()) < 140
    for prompts, key in ((captioned, "text"), (named, "label")):
        kept = prompts.drop({key: raw[key]}, {key: torch.tensor([True, False])})
        after = prompts(kept)["tokens"]
        assert torch.equal(after[0], captioned(captioned.nothing(1))["tokens"][0]) and torch.equal(after[1], found[1])
    with pytest.raises(ConfigError, match="neither captions nor labels"):
        captioned.drop({"size": torch.zeros(2)}, {})
    with pytest.raises(ConfigError, match="does not say where the"):
        Prompts(where, template="a cat")


def test_what_a_model_does_not_know_is_said(folder):
    prompts = Prompts(str(folder("flux")))
    assert prompts.known() == ["text", "guidance"]
    with pytest.raises(
        ConfigError, match=r"condition\.txet: this model knows no such condition; did you mean 'text'\?"
    ):
        prompts.parse({"txet": "a"}, 1)
    with pytest.raises(ConfigError, match=r"condition\.guidance=hard is not a finite number"):
        prompts.parse({"guidance": "hard"}, 1)
    plain = Prompts(str(folder("ddpm")))
    assert plain(plain.parse({}, 3)) == {} and plain.width == 0
    with pytest.raises(ConfigError, match=r"condition\.text: .* this model is unconditional"):
        plain.parse({"text": "a"}, 1)
    with pytest.raises(ConfigError, match=r"this model draws at most 0\.016 s"):
        Prompts(str(folder("audio"))).parse({"seconds": 3}, 1)


def test_clipping(ours, folder):
    from suffuse.denoiser import Exact
    from suffuse.process import Gaussian
    from suffuse.schedule import VPCosine

    exact = Exact(Gaussian(VPCosine()), lambda x, a, s: 3 * x)
    x = torch.tensor([[-1.0, 0.1, 1.0]])
    assert torch.allclose(Clipped(exact, 0.5)(x, 0.5).x0, torch.tensor([[-0.5, 0.3, 0.5]]))
    kept = ours(folder("ddpm")).model.conditioner
    assert kept.clip is None and kept.constrain(exact, {}) is exact
