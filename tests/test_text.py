"""Captions: bytes, words, pretrained encoders, and the networks that attend to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.nn import DiT, UNet
from suffuse.nn.attention import CrossAttention
from suffuse.noise import KeyedNoise
from suffuse.text import LENGTH, WordText, captions_of, encoded, words

ABOUT = {"text": True, "prompts": ["a red fox", "two blue owls"]}


@pytest.fixture
def text() -> WordText:
    torch.manual_seed(0)
    return WordText(width=16, heads=2, length=6, about=ABOUT, labels=["x", "y"], scalars=["gap"])


@pytest.mark.parametrize("caption", ["", "a red fox", "ein größerer Fuchs", "日本の旗 🎌", "a\0b"])
def test_a_caption_survives_as_bytes(caption: str) -> None:
    assert captions_of(encoded(caption)[None]) == [caption.replace("\0", " ")]


def test_a_long_caption_is_cut_at_a_whole_character() -> None:
    raw = encoded("é" * LENGTH)
    assert raw.shape == (LENGTH,) and captions_of(raw[None])[0] == "é" * (LENGTH // 2)
    assert captions_of(encoded("aé", 2)[None]) == ["a"]


def test_words() -> None:
    assert (
        words("A plucked Square-wave, playing C#4!")
        == "a plucked square - wave , playing c#4 !".replace("c#4", "c# 4").split()
    )
    assert words("größer 日本") == ["größer", "日本"] and words("") == []


def test_words_do_not_depend_on_others_in_the_batch(text: WordText) -> None:
    texts = ["a red fox", "", "a very long caption of many more words than are read", "owl"]
    raw = text.nothing(4) | {"text": torch.stack([encoded(t) for t in texts])}
    whole = text(raw)
    for i in range(4):
        alone = text({name: value[i : i + 1] for name, value in raw.items()})
        for name in ("vector", "tokens", "mask"):
            torch.testing.assert_close(whole[name][i : i + 1][:, :None], alone[name], atol=1e-5, rtol=1e-5)
    assert whole["mask"].sum(1).tolist() == [4, 1, 7, 2] and whole["tokens"].shape == (4, 7, 16)


def test_the_order_of_words_matters(text: WordText) -> None:
    raw = text.nothing(2) | {"text": torch.stack([encoded("red fox blue owl"), encoded("blue fox red owl")])}
    one, two = text(raw)["vector"]
    assert (one - two).abs().max() > 1e-3


def test_prepared_captions_embed_alike(text: WordText) -> None:
    raw = text.parse({"text": ["a red fox", "two owls"], "label": "y", "gap": 1.0}, 3)
    ready = text.prepare(raw)
    assert ready["text"].dtype == torch.int64 and ready["text"].shape == (3, 12)
    for name, value in text(raw).items():
        assert torch.equal(value, text(ready)[name])


def test_dropping_a_caption_equals_asking_for_nothing(text: WordText) -> None:
    raw = text.parse({"text": "a red fox", "label": 1, "gap": 2.0}, 3)
    for ready in (raw, text.prepare(raw)):
        dropped = text(text.drop(ready, torch.tensor([True, False, True])))
        null, kept = text.null(1, "cpu"), text(ready)
        for name in ("vector", "mask"):
            assert torch.allclose(dropped[name][[0, 2]].float(), null[name].expand(2, -1).float(), atol=1e-6)
            assert torch.allclose(dropped[name][1].float(), kept[name][1].float(), atol=1e-6)


def test_captions_are_dropped_at_their_rate(text: WordText) -> None:
    text.dropout = 0.3
    masks = text.dropped(KeyedNoise(torch.arange(4000)), 0, torch.empty(4000))
    assert set(masks) == {"label", "gap", "text"} and torch.equal(masks["text"], masks["label"])
    assert 0.27 < masks["text"].float().mean() < 0.33
    alone = WordText(about=ABOUT, dropout=0.3)
    assert torch.equal(alone.dropped(KeyedNoise(torch.arange(4000)), 0, torch.empty(4000))["text"], masks["text"])


def test_asking(text: WordText) -> None:
    raw = text.parse({}, 3)
    assert captions_of(raw["text"]) == ["a red fox", "two blue owls", "a red fox"]
    raw = text.parse({"text": "an owl", "label": 0}, 2)
    assert text.captions(raw) == ["an owl, x"] * 2
    with pytest.raises(ConfigError, match="did you mean 'text'"):
        text.parse({"txet": "a"}, 1)
    with pytest.raises(ConfigError, match="trained without captions"):
        WordText(labels=["x"]).parse({"text": "a"}, 1)
    only = WordText(about=ABOUT)
    assert set(only.parse({}, 2)) == {"text"} and only.captions(only.parse({}, 1)) == ["a red fox"]


def test_without_captions_it_is_a_class_conditioner() -> None:
    plain = WordText(labels=["x", "y"], width=8)
    assert plain.context == 0 and set(plain({"label": torch.tensor([0, 1])})) == {"vector"}
    assert WordText().width == 0 and WordText()({}) == {}


@pytest.mark.parametrize(
    ("options", "said"), [({"length": 0}, "length=0"), ({"heads": 3}, "heads=3"), ({"dropout": 1.0}, "dropout=1.0")]
)
def test_bad_arguments(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WordText(width=16, about=ABOUT, **options)


def test_cross_attention_is_a_weighted_mean_of_what_exists() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, 6, 2)
    x, context = torch.randn(2, 5, 8), torch.randn(2, 4, 6)
    assert layer(x, context).abs().max() == 0  # starts at zero
    torch.nn.init.normal_(layer.out.weight)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    cut = layer(x[:1], context[:1, :2])
    torch.testing.assert_close(layer(x, context, mask)[:1], cut)
    changed = context.clone()
    changed[0, 2:] = 9.0
    torch.testing.assert_close(layer(x, changed, mask), layer(x, context, mask))
    # One token: attention has no choice.
    v = layer.kv(context[:, :1])[..., 8:]
    torch.testing.assert_close(layer(x, context[:, :1]), layer.out(v).expand(2, 5, 8))


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_networks_attend_to_words(kind: str) -> None:
    torch.manual_seed(0)
    how: dict[str, Any] = {"shape": (3, 16), "cond_dim": 8, "context_dim": 8}
    net = UNet(width=16, head_dim=16, **how) if kind == "unet" else DiT(width=32, depth=2, heads=2, **how)
    x, noise = torch.randn(2, 3, 16), torch.rand(2)
    cond = {"vector": torch.randn(2, 8), "tokens": torch.randn(2, 5, 8), "mask": torch.ones(2, 5, dtype=torch.bool)}
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    first = net(x, noise, cond)
    assert (net(x, noise, cond | {"tokens": cond["tokens"].flip(0)}) - first).abs().max() > 1e-4
    hidden = cond | {"mask": torch.tensor([[True, False, False, False, False]] * 2)}
    moved = hidden | {"tokens": torch.cat([cond["tokens"][:, :1], torch.randn(2, 4, 8)], 1)}
    torch.testing.assert_close(net(x, noise, hidden), net(x, noise, moved))
    net(x, noise, cond).sum().backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if "cross" in name)
    with pytest.raises(ConfigError, match="tokens"):
        net(x, noise, {"vector": cond["vector"]})


def test_words_may_weigh_more_or_less_in_a_prompt(text: WordText, caplog) -> None:
    text.eval()

    def embed(prompt: str) -> dict[str, torch.Tensor]:
        return text(text.parse({"text": prompt}, 1))

    plain, one, two, none = map(embed, ("a red fox", "a (red:1) fox", "a (red:2) fox", "a (red:0) fox"))
    assert all(torch.equal(plain[name], one[name]) for name in plain)
    torch.testing.assert_close(two["tokens"][0, 2], 2 * plain["tokens"][0, 2])
    assert torch.equal(two["tokens"][0, [0, 1, 3]], plain["tokens"][0, [0, 1, 3]])
    assert none["mask"][0].tolist() == [True, True, False, True, False, False, False]
    assert (two["vector"] - plain["vector"]).abs().max() > 1e-3
    # What is not there is as if it had not been: other words of the batch do not weigh.
    pair = text(text.parse({"text": ["a red fox", "an (owl:3)"]}, 2))
    torch.testing.assert_close(pair["tokens"][:1], plain["tokens"])
    # Brackets of a caption in training are a caption's.
    text.train()
    kept = text.prepare(text.parse({"text": "a (red:2) fox"}, 1))["text"][0]
    assert (kept > 0).sum() == 2 * 6  # a ( red : 2 ), two numbers a word, six words at most
    with pytest.raises(ConfigError, match="not in"):
        text.eval().prepare(text.parse({"text": "a (red:99) fox"}, 1))


def test_what_of_a_prompt_is_not_read_is_said(text: WordText, caplog) -> None:
    text.parse({"text": "a very long caption of many more words than are read"}, 1)
    assert "6 of its 11 words are read, without: more words than are read" in caplog.text
    caplog.clear()
    text.parse({"text": "a " * 900}, 1)
    assert f"{LENGTH} bytes are read" in caplog.text
    caplog.clear()
    text.parse({"text": ["", "a red fox"]}, 2)
    assert caplog.text.count("condition.text is empty") == 1 and "too long" not in caplog.text
    caplog.clear()
    text.parse({}, 1)
    assert not caplog.text


def test_captions_are_dropped_for_themselves() -> None:
    text = WordText(width=16, about=ABOUT, labels=["x", "y"], dropout=0.1, drop_text=0.3)
    masks = text.dropped(KeyedNoise(torch.arange(4000)), 0, torch.empty(4000))
    assert 0.08 < masks["label"].float().mean() < 0.12
    assert abs(masks["text"].float().mean() - (1 - 0.9 * 0.7)) < 0.03 and masks["text"][masks["label"]].all()


def test_a_clock_goes_without_saying():
    reader = WordText(about={"text": True, "clock": "start"}, width=16, scalars=["start", "size"])
    raw = reader.parse({"text": "a sine", "start": 3.0, "size": 2.0}, 1)
    assert reader.captions(raw) == ["a sine, size 2"] and raw["start"].item() == 3


def test_the_data_says_how_many_words_are_read():
    caption = "one two three four five six"
    for about, length, read in (({"text": True}, None, 24), ({"text": True, "words": 4}, None, 4),
                                ({"text": True, "words": 4}, 5, 5)):  # fmt: skip
        model = WordText(about=about, width=16, length=length)
        assert model.length == read and int((model.read([caption]) > 0).sum()) == 2 * min(6, read)
