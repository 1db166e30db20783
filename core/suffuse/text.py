"""Text: captions as tensors, and the conditioners that read them.

A caption travels from the data to the conditioner as its UTF-8 bytes, uint8 of shape (B, `LENGTH`) with zeros behind:
it batches, crosses processes and is kept like any other condition, and the data need not know who will read it.
`Conditioner.prepare` turns the bytes into what is embedded, before the batch goes to a device: whole numbers of hashed
words (`WordText`) or the features of frozen language models (`suffuse.text_encoders`). A caption of zeros is none.

Both yield ``vector`` (B, width), the pooled text beside labels and scalars, for networks that are modulated as a whole,
and ``tokens`` (B, T, width) with ``mask`` (B, T), true where there is a token, for cross-attention. The first token is
a learned one that is always there: attention over no text is attention over it.

In a prompt for samples ``(words:1.4)`` counts more, and ``(words:0.5)`` less: a token h of weight w becomes w h, which
scales what is attended to and its share of the pooled text; 0 leaves it out. Captions in training are read as they are.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.conditioner import Conditioner, listed, turns
from suffuse.errors import ConfigError
from suffuse.noise import KeyedNoise
from suffuse.weighting import Weighted, weighted

__all__ = ["LENGTH", "Text", "WordText", "captions_of", "encoded", "words"]

LENGTH = 1024
"""Bytes of a caption that are kept."""

TEXT_STREAM = 160
"""Noise stream of the captions that are dropped for themselves."""

_WORD = re.compile(r"[^\W_]+#?|[^\w\s]")
_log = logging.getLogger(__name__)


def encoded(text: str, length: int = LENGTH) -> Tensor:
    """Return the UTF-8 bytes of a caption, uint8 (length,), cut at a whole character, zeros behind."""
    raw = text.replace("\0", " ").strip().encode()[:length].decode(errors="ignore").encode()
    return torch.tensor(list(raw) + [0] * (length - len(raw)), dtype=torch.uint8)


def captions_of(text: Tensor) -> list[str]:
    """Return the captions that `encoded` made, from uint8 (B, length)."""
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in text.cpu().numpy()]


def words(text: str) -> list[str]:
    """Return the words, numbers and signs of a caption in lower case; an accidental stays with its note."""
    return _WORD.findall(text.lower())


class Text(Conditioner, ABC):
    """Base: labels, scalars and a caption, each of which may be absent.

    Arguments:
        options: Arguments of `Conditioner`.
        about: Facts of the data: ``text`` says whether its items have a caption, ``prompts`` are captions that samples
            are drawn for when none is asked for, ``clock`` names the condition that counts tokens.
        width: Size of the embedded vector and of the tokens.
        drop_text: Share of training rows that lose their caption, whatever happens to labels and scalars.

    Raises:
        ConfigError: As `Conditioner`.
    """

    def __init__(
        self, about: Mapping[str, Any] | None = None, width: int = 128, drop_text: float = 0.0, **options: Any
    ) -> None:
        super().__init__(width=width, **options)
        if isinstance(drop_text, bool) or not isinstance(drop_text, int | float) or not 0 <= drop_text < 1:
            raise ConfigError(f"conditioner.drop_text={drop_text} must be in [0, 1)")
        self.drop_text = float(drop_text)
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

    @abstractmethod
    def weights(self, prompts: Sequence[Weighted]) -> Tensor:
        """Return the weight of every token (B, T) of prompts, 1 where nothing is said."""

    def pooled(self, text: Tensor) -> Tensor | None:
        """Return what stands for a caption as a whole beside its tokens, (B, width); by default nothing."""
        return None

    def cut(self, caption: str) -> list[str]:
        """Return a line for every end of a caption that is not read; by default none."""
        return []

    def prepare(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `raw` with captions read, on the device they came from."""
        text = raw.get("text")
        if not self.text or text is None or text.dtype != torch.uint8:
            return dict(raw)
        captions = captions_of(text)
        if self.training:
            return {**raw, "text": self.read(captions).to(text.device)}
        prompts = [weighted(caption) for caption in captions]
        found = {**raw, "text": self.read([prompt.text for prompt in prompts]).to(text.device)}
        if any(prompt.spans for prompt in prompts):
            found["weights"] = self.weights(prompts).to(text.device)
        return found

    def forward(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``vector``, ``tokens`` and ``mask``; without captions what `Conditioner` returns."""
        found = super().forward(raw)
        if not self.text:
            return found
        ready = self.prepare(raw)
        tokens, mask = self.embed_text(ready["text"])
        if "weights" in ready:
            factor = ready["weights"].to(tokens)
            tokens, mask = tokens * factor[..., None], mask & (factor != 0)
        first = self.first.expand(len(tokens), 1, -1).to(tokens)
        tokens, mask = torch.cat([first, tokens], 1), torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        weight = mask.to(tokens)[..., None]
        vector = (tokens * weight).sum(1) / weight.sum(1)
        more = self.pooled(ready["text"])
        if more is not None:
            vector = vector + more.to(vector)
        return {"vector": found["vector"] + vector if found else vector, "tokens": tokens, "mask": mask}

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
            if self.drop_text:
                masks["text"] = masks["text"] | (noise.uniform(like, step, TEXT_STREAM) < self.drop_text)
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
        if wanted is not None:
            self._say(chosen)
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

    def _say(self, prompts: Sequence[str]) -> None:
        """Say what of prompts is not read."""
        for prompt in dict.fromkeys(prompts):
            if not prompt.strip():
                _log.warning("condition.text is empty: drawn as without a caption")
                continue
            (kept,) = captions_of(encoded(prompt)[None])
            lines = self.cut(weighted(prompt).text)
            if len(kept) < len(prompt.strip()):
                lines = [f"{LENGTH} bytes are read, without: {_short(prompt.strip()[len(kept) :])}"]
            for line in lines:
                _log.warning("condition.text: %r is too long: %s", _short(prompt), line)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


class WordText(Text):
    """Words hashed into a table of learned vectors, and a small transformer over them: no vocabulary, no download.

    A word is the sum of `hashes` rows of the table, which its hash chooses, so any language and any word has a place
    and two words share all of them once in `buckets`\\ :sup:`hashes` pairs ("Hash Embeddings for Efficient Word
    Representations", Svenstrup et al. 2017, section 3, without importance weights).

    Arguments:
        width: Size of the vector and of the tokens.
        depth: Layers of the transformer.
        heads: Attention heads.
        length: Words of a caption that are read; None for what the data says (``about["words"]``), else 24.
        buckets: Rows of the table.
        hashes: Rows that make a word.
        options: Arguments of `Text`.
    """

    def __init__(
        self, width: int = 128, depth: int = 1, heads: int = 4, length: int | None = None, buckets: int = 2048,
        hashes: int = 2, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(width=width, **options)
        length = int((options.get("about") or {}).get("words", 24)) if length is None else length
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

    def weights(self, prompts: Sequence[Weighted]) -> Tensor:
        """Return the weight of every word."""
        found = torch.ones(len(prompts), self.length)
        for row, prompt in zip(found, prompts, strict=True):
            for place, match in enumerate(_WORD.finditer(prompt.text)):
                if place < self.length:
                    row[place] = prompt.weight(*match.span())
        return found

    def cut(self, caption: str) -> list[str]:
        """Return what is behind the last word that is read."""
        spans = [match.span() for match in _WORD.finditer(caption)]
        if len(spans) <= self.length:
            return []
        rest = caption[spans[self.length][0] :]
        return [f"{self.length} of its {len(spans)} words are read, without: {_short(rest)}"]

    def _hashed(self, word: str) -> list[int]:
        if word not in self._seen:
            if len(self._seen) > 100_000:
                self._seen.clear()
            digest = blake2b(word.encode(), digest_size=4 * self.hashes).digest()
            parts = [int.from_bytes(digest[4 * i : 4 * i + 4], "big") for i in range(self.hashes)]
            self._seen[word] = [1 + part % self.buckets for part in parts]
        return self._seen[word]
