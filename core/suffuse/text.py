"""Text: captions as tensors, and the conditioners that read them.

A caption travels from the data to the conditioner as its UTF-8 bytes, uint8 of shape (B, `LENGTH`) with zeros behind:
it batches, crosses processes and is kept like any other condition, and the data need not know who will read it.
`Conditioner.prepare` turns the bytes into what is embedded, before the batch goes to a device: whole numbers of hashed
words (`WordText`) or the features of a frozen language model (`PretrainedText`). A caption of zeros is none.

Both yield ``vector`` (B, width), the pooled text beside labels and scalars, for networks that are modulated as a whole,
and ``tokens`` (B, T, width) with ``mask`` (B, T), true where there is a token, for cross-attention. The first token is
a learned one that is always there: attention over no text is attention over it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.conditioner import Conditioner, listed, turns
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise

__all__ = ["LENGTH", "PretrainedText", "Text", "WordText", "captions_of", "encoded", "words"]

LENGTH = 256
"""Bytes of a caption that are kept."""


def encoded(text: str, length: int = LENGTH) -> Tensor:
    """Return the UTF-8 bytes of a caption, uint8 (length,), cut at a whole character, zeros behind."""
    raw = text.replace("\0", " ").strip().encode()[:length].decode(errors="ignore").encode()
    return torch.tensor(list(raw) + [0] * (length - len(raw)), dtype=torch.uint8)


def captions_of(text: Tensor) -> list[str]:
    """Return the captions that `encoded` made, from uint8 (B, length)."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in text.cpu().numpy()]


def words(text: str) -> list[str]:
    """Return the words, numbers and signs of a caption in lower case; an accidental stays with its note."""
    return re.findall(r"[^\W_]+#?|[^\w\s]", text.lower())


class Text(Conditioner, ABC):
    """Base: labels, scalars and a caption, each of which may be absent.

    Arguments:
        options: Arguments of `Conditioner`.
        about: Facts of the data: ``text`` says whether its items have a caption, ``prompts`` are captions that samples
            are drawn for when none is asked for, ``clock`` names the condition that counts tokens.
        width: Size of the embedded vector and of the tokens.

    Raises:
        ConfigError: As `Conditioner`.
    """

    def __init__(self, about: Mapping[str, Any] | None = None, width: int = 128, **options: Any) -> None:
        super().__init__(width=width, **options)
        about = about or {}
        self.text, self.prompts = bool(about.get("text")), tuple(about.get("prompts") or ())
        self.quiet = (about["clock"],) if about.get("clock") else ()
        if self.text:
            self.width = width
            self.first = nn.Parameter(torch.randn(width) / width**0.5)
        self.context = width if self.text else 0

    @abstractmethod
    def read(self, captions: Sequence[str]) -> Tensor:
        """Return what `embed_text` takes, of B rows, zeros where nothing is: (B, T) int64 or (B, T, D) float."""

    @abstractmethod
    def embed_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, width) and which of them exist (B, T)."""

    def prepare(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `raw` with captions read, on the device they came from."""
        text = raw.get("text")
        if not self.text or text is None or text.dtype != torch.uint8:
            return dict(raw)
        return {**raw, "text": self.read(captions_of(text)).to(text.device)}

    def forward(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``vector``, ``tokens`` and ``mask``; without captions what `Conditioner` returns."""
        found = super().forward(raw)
        if not self.text:
            return found
        tokens, mask = self.embed_text(self.prepare(raw)["text"])
        first = self.first.expand(len(tokens), 1, -1).to(tokens)
        tokens, mask = torch.cat([first, tokens], 1), torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        weight = mask.to(tokens)[..., None]
        pooled = (tokens * weight).sum(1) / weight.sum(1)
        vector = found["vector"] + pooled if found else pooled
        return {"vector": vector, "tokens": tokens, "mask": mask}

    def nothing(self, batch: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the raw absent condition of `batch` rows."""
        raw = super().nothing(batch, device)
        return raw | {"text": torch.zeros(batch, LENGTH, dtype=torch.uint8, device=device)} if self.text else raw

    def dropped(self, noise: KeyedNoise, step: int, like: Tensor) -> dict[str, Tensor]:
        """Return which rows of each condition a training step drops; a caption goes with the label."""
        masks = super().dropped(noise, step, like)
        if self.text:
            every = masks.get("label")
            masks["text"] = self.whole(noise, step, like) if every is None else every
        return masks

    def parse(self, given: Mapping[str, Any], num: int) -> dict[str, Tensor]:
        """Return raw conditions of `num` rows; ``text`` is a caption or several that take turns."""
        given = dict(given)
        wanted = given.pop("text", None)
        if wanted is not None and not self.text:
            raise ConfigError("condition.text: this model was trained without captions")
        raw = super().parse(given, num)
        if not self.text:
            return raw
        if not self._others():
            raw = {}
        chosen = [str(text) for text in listed(wanted)] if wanted is not None else list(self.prompts) or [""]
        raw["text"] = turns(torch.stack([encoded(text) for text in chosen]), num)
        return raw

    def known(self) -> list[str]:
        """Return the names of the conditions."""
        return super().known() + ["text"] * self.text

    def captions(self, raw: Mapping[str, Tensor]) -> list[str]:
        """Return one short text per row: the caption, then labels and scalars."""
        if not self.text:
            return super().captions(raw)
        texts = captions_of(raw["text"])
        others = super().captions(raw) if self._others() else [""] * len(texts)
        return [", ".join(part for part in pair if part) for pair in zip(texts, others, strict=True)]

    def _others(self) -> list[str]:
        return super().known()


class WordText(Text):
    """Words hashed into a table of learned vectors, and a small transformer over them: no vocabulary, no download.

    A word is the sum of `hashes` rows of the table, which its hash chooses, so any language and any word has a place
    and two words share all of them once in `buckets`\\ :sup:`hashes` pairs ("Hash Embeddings for Efficient Word
    Representations", Svenstrup et al. 2017, section 3, without importance weights).

    Arguments:
        width: Size of the vector and of the tokens.
        depth: Layers of the transformer.
        heads: Attention heads.
        length: Words of a caption that are read.
        buckets: Rows of the table.
        hashes: Rows that make a word.
        options: Arguments of `Text`.
    """

    def __init__(
        self, width: int = 128, depth: int = 1, heads: int = 4, length: int = 24, buckets: int = 2048, hashes: int = 2,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(width=width, **options)
        for name, value in (("depth", depth), ("heads", heads), ("length", length), ("buckets", buckets)):
            if value < 1:
                raise ConfigError(f"conditioner.{name}={value} must be at least 1")
        if width % heads:
            raise ConfigError(f"conditioner.heads={heads} does not divide the width {width}")
        self.length, self.buckets, self.hashes = length, buckets, hashes
        self._seen: dict[str, list[int]] = {}
        if self.text:
            self.table = nn.Embedding(buckets, width)
            nn.init.normal_(self.table.weight, std=(hashes * width) ** -0.5)
            self.place = nn.Parameter(torch.randn(length, width) * 0.3 / width**0.5)
            layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def read(self, captions: Sequence[str]) -> Tensor:
        """Return hashed words, int64 (B, length · hashes), 0 where none is."""
        rows = torch.zeros(len(captions), self.length, self.hashes, dtype=torch.long)
        for row, caption in zip(rows, captions, strict=True):
            found = words(caption)[: self.length]
            if found:
                row[: len(found)] = torch.tensor([self._hashed(word) for word in found])
        return rows.flatten(1)

    def embed_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens and which exist."""
        ids = text.view(len(text), self.length, self.hashes)
        mask = ids[..., 0] > 0
        h = self.table((ids - 1).clamp(min=0)).sum(2) + self.place
        # Attention over nothing is undefined; what it returns for a row without words is masked out.
        empty = ~mask.any(1, keepdim=True)
        return self.layers(h, src_key_padding_mask=~(mask | empty)), mask

    def _hashed(self, word: str) -> list[int]:
        if word not in self._seen:
            if len(self._seen) > 100_000:
                self._seen.clear()
            digest = blake2b(word.encode(), digest_size=4 * self.hashes).digest()
            parts = [int.from_bytes(digest[4 * i : 4 * i + 4], "big") for i in range(self.hashes)]
            self._seen[word] = [1 + part % self.buckets for part in parts]
        return self._seen[word]


class PretrainedText(Text):
    """The hidden states of a frozen text encoder of the transformers library, projected to `width`.

    The encoder (T5, CLIP, CLAP, or any that ``AutoModel`` loads) is no part of the model's weights: a checkpoint holds
    its name alone. Captions are encoded once each and remembered.

    Arguments:
        path: Folder, or name on the Hugging Face hub.
        download: Allow the hub; else only what is on disk.
        width: Size of the vector and of the tokens.
        length: Tokens of a caption that are read; what is longer is cut.
        remember: Captions whose features are kept in memory.
        options: Arguments of `Text`.

    Raises:
        ConfigError: Without `path`, without transformers, or when there is no such encoder.
    """

    def __init__(
        self, path: str | None = None, download: bool = False, width: int = 128, length: int = 64,
        remember: int = 20_000, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(width=width, **options)
        if not path:
            raise ConfigError("conditioner.path is not set; give a folder with a text encoder")
        self.path, self.length, self.remember = str(path), length, remember
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        tokenizer, encoder, size = _encoder(self.path, download)
        # In a tuple, so that it is no submodule: it is frozen, and belongs in no checkpoint.
        self._frozen = (tokenizer, encoder)
        if self.text:
            self.project = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, width))
        self.size = size

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> Tensor:
        """Return features, float (B, length, D), zeros where no token is."""
        new = [text for text in dict.fromkeys(captions) if text and text not in self._kept]
        tokenizer, encoder = self._frozen
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            ids = tokenizer(part, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
            hidden = encoder(**{k: v for k, v in ids.items() if k in ("input_ids", "attention_mask")}).last_hidden_state
            for text, row, mask in zip(part, hidden.float(), ids["attention_mask"].bool(), strict=True):
                self._kept[text] = row[mask]
        rows = torch.zeros(len(captions), self.length, self.size)
        for row, text in zip(rows, captions, strict=True):
            if text:
                found = self._kept[text]
                row[: len(found)] = found
        while len(self._kept) > self.remember:
            self._kept.popitem(last=False)
        return rows

    def embed_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return projected features and which exist."""
        return self.project(text), text.abs().sum(-1) > 0


def _encoder(path: str, download: bool) -> tuple[Any, Any, int]:
    """Return tokenizer, text encoder in evaluation mode, and the size of its hidden states."""
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel
    except ImportError as error:
        raise ConfigError("conditioner: text encoders need transformers: pip install 'suffuse[text]'") from error
    if not download and not Path(path).expanduser().is_dir():
        raise ConfigError(f"conditioner.path={path}: no such folder; allow the hub with conditioner.download=true")
    try:
        where = str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path
        config = AutoConfig.from_pretrained(where)
        kind = T5EncoderModel if config.model_type in ("t5", "mt5", "umt5") else AutoModel
        model = kind.from_pretrained(where, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as error:  # the library raises a dozen kinds for what a wrong folder or no network causes
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"conditioner.path={path}: transformers cannot load it ({text})") from error
    encoder = getattr(model, "text_model", model).eval().requires_grad_(False)
    return tokenizer, encoder, int(encoder.config.hidden_size)
