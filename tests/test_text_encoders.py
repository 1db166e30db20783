"""Frozen text encoders: what they say is what transformers says, once, on disk, and of several at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.text_encoders import EncodedText, Encoder
from suffuse.text_store import Store

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

ABOUT = {"text": True, "prompts": ["a red fox", "two blue owls"]}
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "two", "blue", "owls", "say", ":"]


def tokenizer(folder: Path, end: bool) -> None:
    """A tokenizer of words; with `end` it closes a text with </s>, as CLIP's and T5's do."""
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if end:
        raw.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5, CLIP and language model, as transformers saves them."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    count = len(WORDS)
    t5 = transformers.T5Config(vocab_size=count, d_model=12, d_kv=6, d_ff=16, num_layers=2, num_heads=2)
    transformers.T5EncoderModel(t5).save_pretrained(root / "t5")
    clip = transformers.CLIPTextConfig(
        vocab_size=count, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=6, eos_token_id=1, pad_token_id=0, bos_token_id=3,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(clip).save_pretrained(root / "clip")
    llm = transformers.LlamaConfig(
        vocab_size=count, hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=32, eos_token_id=1, pad_token_id=0, bos_token_id=3,
    )  # fmt: skip
    transformers.LlamaModel(llm).save_pretrained(root / "llm")
    for name, end in (("t5", True), ("clip", True), ("llm", False)):
        tokenizer(root / name, end)
    return root


def made(models: Path, kind: str, **options: Any) -> EncodedText:
    torch.manual_seed(1)
    return EncodedText(path=str(models / kind), kind=kind, length=5, width=16, about=ABOUT, **options)


def test_t5(models: Path) -> None:
    found = made(models, "t5")
    raw = found.parse({"text": ["a red fox", "", "two blue owls"]}, 3)
    (tokens, pooled), *rest = found._parts(found.prepare(raw)["text"])
    assert tokens.shape == (3, 5, 12) and pooled.shape == (3, 0) and not rest and tokens[1].abs().max() == 0
    model = transformers.T5EncoderModel.from_pretrained(models / "t5")
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[3, 4, 5, 1]])).last_hidden_state[0]
    torch.testing.assert_close(tokens[0, :4], wanted, atol=1e-5, rtol=1e-4)
    cond = found(raw)
    assert cond["tokens"].shape == (3, 6, 16) and cond["mask"].sum(1).tolist() == [5, 1, 5]
    # The encoder is frozen and no part of a checkpoint.
    assert {name.split(".")[0] for name in found.state_dict()} == {"first", "project"}
    dropped = found(found.drop(found.prepare(raw), torch.tensor([True, False, False])))
    torch.testing.assert_close(dropped["vector"][0], found.null(1, "cpu")["vector"][0])


def test_clip_gives_the_state_before_the_last_and_the_projected_end(models: Path) -> None:
    found = made(models, "clip", layer=-2)
    (tokens, pooled), *_ = found._parts(found.prepare(found.parse({"text": "two owls"}, 1))["text"])
    model = transformers.CLIPTextModelWithProjection.from_pretrained(models / "clip")
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[6, 8, 1]]), output_hidden_states=True)
    torch.testing.assert_close(tokens[0, :3], wanted.hidden_states[-2][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, wanted.text_embeds, atol=1e-5, rtol=1e-4)
    # The pooled vector reaches the network's vector.
    raw = found.prepare(found.parse({"text": "two owls"}, 1))
    torch.nn.init.zeros_(found.project[0][1].weight)
    first = found(raw)["vector"]
    without = raw["text"] * torch.cat([torch.ones(5 * 8), torch.zeros(6)])
    assert (found({"text": without})["vector"] - first).abs().max() > 1e-3


def test_a_language_model_is_told_what_to_do_and_only_its_caption_is_read(models: Path) -> None:
    found = made(models, "llm", template="say : {caption}", layer=-1)
    (tokens, pooled), *_ = found._parts(found.prepare(found.parse({"text": "a red fox"}, 1))["text"])
    model = transformers.LlamaModel.from_pretrained(models / "llm")
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[9, 10, 3, 4, 5]])).last_hidden_state[0]
    torch.testing.assert_close(tokens[0, :3], wanted[2:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled[0], wanted[-1], atol=1e-5, rtol=1e-4)
    assert tokens[0, 3:].abs().max() == 0


def test_several_at_once(models: Path) -> None:
    encoders = {
        "clip": {"kind": "clip", "path": str(models / "clip"), "length": 4},
        "t5": {"kind": "t5", "path": str(models / "t5"), "length": 5},
    }
    torch.manual_seed(0)
    found = EncodedText(encoders=encoders, width=16, drop_each=0.4, about=ABOUT, labels=["x", "y"])
    raw = found.parse({"text": ["a red fox", "owls"], "label": 1}, 2)
    cond = found(raw)
    assert cond["tokens"].shape == (2, 1 + 4 + 5, 16) and cond["mask"].sum(1).tolist() == [9, 5]
    alone = EncodedText(**encoders["clip"], width=16, about=ABOUT)
    assert torch.equal(found._parts(found.prepare(raw)["text"])[0][0], alone._parts(alone.prepare(raw)["text"])[0][0])
    many = found.prepare({name: value[:1].repeat(4000, *[1] * (value.ndim - 1)) for name, value in raw.items()})
    noise = KeyedNoise(torch.arange(4000))
    parts = found._parts(found.augment(many, noise, 0)["text"])
    silent = torch.stack([part.flatten(1).abs().sum(1) + pool.abs().sum(1) == 0 for part, pool in parts]).float()
    assert (silent.mean(1) - 0.4).abs().max() < 0.03  # each for itself, independently
    assert abs((silent[0] * silent[1]).mean() - 0.16) < 0.03
    assert torch.equal(found.augment(many, noise, 0)["text"], found.augment(many, noise, 0)["text"])


def test_weights_of_a_prompt_reach_the_tokens_they_overlap(models: Path) -> None:
    found = made(models, "t5").eval()
    plain, heavy = (found(found.parse({"text": text}, 1)) for text in ("a red fox", "a (red:2) fox"))
    ratio = heavy["tokens"][0] / plain["tokens"][0]
    assert torch.allclose(ratio[2], torch.full((16,), 2.0)) and torch.allclose(ratio[[1, 3]], torch.ones(2, 16))


def test_a_caption_is_encoded_once_and_for_all(models: Path, tmp_path: Path) -> None:
    found = made(models, "t5", store=str(tmp_path / "s"))
    first = found.read(["a red fox", "two owls", "a red fox"])
    again = made(models, "t5", store=str(tmp_path / "s"))
    assert torch.equal(again.read(["two owls", "a red fox"]), first[[1, 0]])
    assert again.frozen[0]._loaded is None  # the model was not needed
    again.eval().read(["a fox"])
    assert len(Store(again.stores[0].folder)) == 2  # what is asked for in sampling is not kept
    # Another way of reading, or other weights, are another encoder's.
    assert made(models, "t5").frozen[0].fingerprint() != Encoder(str(models / "t5"), "t5", length=6).fingerprint()


def test_what_an_interrupted_process_left_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("one", torch.arange(6.0).view(2, 3), torch.ones(4))
    store.put("two", torch.zeros(1, 3))
    (index,) = tmp_path.glob("*.jsonl")
    whole = index.read_bytes()
    index.write_bytes(whole[:-7])
    left = Store(tmp_path)
    tokens, pooled = left.get("one")
    assert torch.equal(tokens, torch.arange(6.0).view(2, 3)) and torch.equal(pooled, torch.ones(4))
    assert "two" not in left and left.get("two") is None
    index.write_bytes(whole)
    left.refresh()
    assert left.get("two")[0].shape == (1, 3) and left.get("two")[1] is None
    assert all(set(json.loads(line)) == {"key", "at", "tokens", "pooled"} for line in whole.splitlines())


def test_what_is_not_read_is_said(models: Path, caplog) -> None:
    found = made(models, "t5")
    found.parse({"text": "a red fox two blue owls"}, 1)
    assert "T5 reads 5 of its 7 tokens, without: blue owls" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": None}, "path is not set"),
        ({"path": "none"}, "no such folder; allow the hub"),
        ({"kind": "clipp"}, "did you mean 'clip'"),
        ({"kind": "clip"}, "a t5 is no CLIP"),
        ({"length": 1}, "length=1"),
        ({"template": "say"}, "must hold {caption} once"),
        ({"drop_each": 1.0}, "drop_each=1.0"),
        ({"drop_text": -1}, "drop_text=-1"),
    ],
)
def test_bad_arguments(models: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EncodedText(**{"path": str(models / "t5"), "kind": "t5", "width": 16, "about": ABOUT, **options})


def test_a_folder_without_an_encoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"transformers cannot load it") as caught:
        EncodedText(path=str(tmp_path))
    assert "\n" not in str(caught.value)
