"""Encoders: the text encoders of a published model, and how each family puts their outputs together.

Every encoder reads a prompt by its own tokenizer, cut or filled to its own length. A CLIP gives a hidden state per
token (the last, or the one before) and a pooled vector; a T5 gives hidden states. They are frozen and no part of a
model's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.errors import ConfigError
from suffuse.pretrained.folder import Folder
from suffuse.weighting import Weighted, weighted

__all__ = ["Encoders", "Stream"]

Embedded = dict[str, Tensor]


@dataclass
class Stream:
    """One tokenizer and its encoder.

    Arguments:
        name: ``CLIP`` or ``T5``, for messages.
        tokenizer: Of transformers.
        model: Of transformers.
        length: Tokens that are read.
        layer: Which hidden state is the tokens': None for the last one, -2 for the one before.
        masked: Whether the model is told where the prompt ends.
        pooled: Which of its outputs is the prompt as a whole: ``first``, ``pooler``, or None.
        lower: Whether prompts are read in lower case.
    """

    name: str
    tokenizer: Any
    model: Any
    length: int
    layer: int | None = None
    masked: bool = False
    pooled: str | None = None
    lower: bool = False

    def text(self, prompt: str) -> str:
        """Return the prompt as the tokenizer gets it."""
        return prompt.lower().strip() if self.lower else prompt

    def cut(self, prompt: str) -> tuple[int, str] | None:
        """Return how many tokens a prompt has and what is cut from its end, where something is."""
        ids = self.tokenizer(self.text(prompt)).input_ids
        if len(ids) <= self.length:
            return None
        return len(ids), str(self.tokenizer.decode(ids[self.length - 1 : -1])).strip()

    def __call__(self, prompts: Sequence[Weighted], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return tokens (B, L, D), the pooled vector (B, P) or None, and which tokens are the prompt's (B, L)."""
        texts = [self.text(prompt.text) for prompt in prompts]
        tokens, pooled, mask = self._encode(texts, device)
        if any(prompt.spans for prompt in prompts):
            empty = self._encode([""], device)[0]
            factor = torch.stack([self._factors(p, text) for p, text in zip(prompts, texts, strict=True)])
            factor = factor.to(tokens)[..., None]
            tokens = torch.where(factor == 1, tokens, empty + factor * (tokens - empty))
        return tokens, pooled, mask

    def _ids(self, texts: list[str], **more: Any) -> Any:
        return self.tokenizer(
            texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt", **more
        )

    def _encode(self, texts: list[str], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
        read = self._ids(texts)
        mask = read.attention_mask.to(device)
        told = {"attention_mask": mask} if self.masked else {}
        out = self.model(read.input_ids.to(device), output_hidden_states=self.layer is not None, **told)
        hidden = out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]
        pooled = None if self.pooled is None else out[0] if self.pooled == "first" else out.pooler_output
        return hidden.float(), None if pooled is None else pooled.float(), mask.bool()

    def _factors(self, prompt: Weighted, text: str) -> Tensor:
        """Return the weight of every token, shape (L,)."""
        found = torch.ones(self.length)
        if not prompt.spans:
            return found
        if not getattr(self.tokenizer, "is_fast", False):
            raise ConfigError(
                f"condition.text: the tokenizer of its {self.name} does not say where a token is, which weights need"
            )
        shift = len(prompt.text) - len(prompt.text.lstrip()) if self.lower else 0
        for at, (start, end) in enumerate(self._ids([text], return_offsets_mapping=True).offset_mapping[0].tolist()):
            if end > start:
                found[at] = prompt.weight(start + shift, end + shift)
        return found


class Encoders:
    """The text side of a folder.

    Arguments:
        folder: The folder.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.streams: list[Stream | None] = STREAMS[folder.family.name](folder)
        self.projection = folder.load("projection_model") if folder.has("projection_model") else None
        self._join = JOINS[folder.family.name]
        for part in [
            *(stream.model for stream in self.streams if stream),
            *([self.projection] * (self.projection is not None)),
        ]:
            part.requires_grad_(False)
        self._device: torch.device | None = None

    def cut(self, prompt: str) -> list[str]:
        """Return a line for every encoder that does not read the end of a prompt."""
        text, lines = weighted(prompt).text, []
        for stream in self.streams:
            if stream is not None and (found := stream.cut(text)) is not None:
                lines.append(f"{stream.name} reads {stream.length} of its {found[0]} tokens; cut: {found[1]!r}")
        return lines

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], device: torch.device) -> Embedded:
        """Return what the network is given for prompts, float32."""
        self.to(device)
        marked = [weighted(prompt) for prompt in prompts]
        return self._join(self, marked, device)

    def to(self, device: torch.device) -> None:
        """Move the encoders."""
        if self._device != device:
            for stream in self.streams:
                if stream is not None:
                    stream.model.to(device)
            if self.projection is not None:
                self.projection.to(device)
            self._device = device

    @torch.no_grad()
    def seconds(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedded beginnings and ends of sounds, each (B, 1, D)."""
        assert self.projection is not None  # of Stable Audio
        self.to(start.device)
        found = self.projection(start_seconds=start, end_seconds=end)
        return found.seconds_start_hidden_states.float(), found.seconds_end_hidden_states.float()

    def each(self, prompts: Sequence[Weighted], device: torch.device) -> list[Any]:
        """Return what every encoder makes of the prompts; None for one that the folder leaves out."""
        return [None if stream is None else stream(prompts, device) for stream in self.streams]


def _clip(folder: Folder, part: str, **how: Any) -> Stream:
    tokenizer, model = folder.tokenizer(part), folder.load(part)
    length = min(int(tokenizer.model_max_length), int(model.config.max_position_embeddings))
    return Stream("CLIP", tokenizer, model, length, **how)


def _t5(folder: Folder, part: str, length: int, **how: Any) -> Stream:
    return Stream("T5", folder.tokenizer(part), folder.load(part), length, **how)


def _sd_streams(folder: Folder) -> list[Stream | None]:
    stream = _clip(folder, "text_encoder")
    stream.masked = bool(getattr(stream.model.config, "use_attention_mask", False))
    return [stream]


def _xl_streams(folder: Folder) -> list[Stream | None]:
    first = _clip(folder, "text_encoder", layer=-2) if folder.has("text_encoder") else None
    return [first, _clip(folder, "text_encoder_2", layer=-2, pooled="first")]


def _sd3_streams(folder: Folder) -> list[Stream | None]:
    clips: list[Stream | None] = [
        _clip(folder, part, layer=-2, pooled="first") for part in ("text_encoder", "text_encoder_2")
    ]
    return [*clips, _t5(folder, "text_encoder_3", 256) if folder.has("text_encoder_3") else None]


def _flux_streams(folder: Folder) -> list[Stream | None]:
    return [_clip(folder, "text_encoder", pooled="pooler"), _t5(folder, "text_encoder_2", 512)]


def _pixart_streams(folder: Folder) -> list[Stream | None]:
    length = 120 if folder.index["_class_name"] == "PixArtAlphaPipeline" else 300
    return [_t5(folder, "text_encoder", length, masked=True, lower=True)]


def _audio_streams(folder: Folder) -> list[Stream | None]:
    tokenizer = folder.tokenizer("text_encoder")
    length = min(int(tokenizer.model_max_length), 512)
    return [Stream("T5", tokenizer, folder.load("text_encoder"), length, masked=True)]


STREAMS: Mapping[str, Callable[[Folder], list[Stream | None]]] = {
    "Stable Diffusion 1 and 2": _sd_streams,
    "Stable Diffusion XL": _xl_streams,
    "Stable Diffusion 3": _sd3_streams,
    "Flux": _flux_streams,
    "PixArt": _pixart_streams,
    "Stable Audio": _audio_streams,
}


def _sd(encoders: Encoders, prompts: Sequence[Weighted], device: torch.device) -> Embedded:
    ((tokens, _, _),) = encoders.each(prompts, device)
    return {"tokens": tokens}


def _xl(encoders: Encoders, prompts: Sequence[Weighted], device: torch.device) -> Embedded:
    found = [each for each in encoders.each(prompts, device) if each is not None]
    return {"tokens": torch.cat([tokens for tokens, _, _ in found], -1), "vector": found[-1][1]}


def _sd3(encoders: Encoders, prompts: Sequence[Weighted], device: torch.device) -> Embedded:
    first, second, third = encoders.each(prompts, device)
    clip = torch.cat([first[0], second[0]], -1)
    width = int(encoders.folder.config("transformer").get("joint_attention_dim", 4096))
    t5 = torch.zeros(len(prompts), 256, width, device=device) if third is None else third[0]
    clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    return {"tokens": torch.cat([clip, t5], 1), "vector": torch.cat([first[1], second[1]], -1)}


def _flux(encoders: Encoders, prompts: Sequence[Weighted], device: torch.device) -> Embedded:
    clip, t5 = encoders.each(prompts, device)
    return {"tokens": t5[0], "vector": clip[1]}


def _pixart(encoders: Encoders, prompts: Sequence[Weighted], device: torch.device) -> Embedded:
    ((tokens, _, mask),) = encoders.each(prompts, device)
    return {"tokens": tokens, "mask": mask}


def _audio(encoders: Encoders, prompts: Sequence[Weighted], device: torch.device) -> Embedded:
    ((tokens, _, mask),) = encoders.each(prompts, device)
    assert encoders.projection is not None  # of Stable Audio
    projected = encoders.projection(text_hidden_states=tokens).text_hidden_states.float()
    return {"tokens": projected * mask[..., None]}


JOINS: Mapping[str, Callable[[Encoders, Sequence[Weighted], torch.device], Embedded]] = {
    "Stable Diffusion 1 and 2": _sd,
    "Stable Diffusion XL": _xl,
    "Stable Diffusion 3": _sd3,
    "Flux": _flux,
    "PixArt": _pixart,
    "Stable Audio": _audio,
}
