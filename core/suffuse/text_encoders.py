r"""Text encoders: captions as frozen language models of the transformers library read them, one model or several.

An `Encoder` gives hidden states (T, D) of a caption and, of some kinds, one pooled vector (P,). Every encoder has a
projection of its own into the tokens of the conditioner; tokens of several stand one behind the other, and pooled
vectors are added ("Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", Esser et al. 2024, section
4, where two CLIP models and T5 are read together, and each is left out of 46.4 % of the training rows). The models are
frozen and no part of a checkpoint, which holds their names alone; what they said is kept on disk, see
`suffuse.text_store`, and a model whose captions are all there is never loaded.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.errors import ConfigError, suggest
from suffuse.text import Text
from suffuse.text_store import Row, Store
from suffuse.weighting import Weighted

__all__ = ["EncodedText", "Encoder"]

KINDS = ("auto", "clip", "t5", "llm")
SLOT = "{caption}"
_log = logging.getLogger(__name__)


@dataclass
class Encoder:
    """A frozen text encoder.

    Arguments:
        path: Folder, or name on the Hugging Face hub.
        kind: ``clip``: hidden states and the projected vector of the last token; ``t5``: hidden states; ``llm``: hidden
            states of a decoder, whose last token is the pooled vector; ``auto``: hidden states of any model.
        length: Tokens of a caption that are read; what is longer is cut.
        layer: Which hidden state is taken, as -2 for the one before the last; None for the output.
        template: For ``llm``, what it is told, with ``{caption}``; its tokens before the caption are left out again.
        pooled: Take the pooled vector, where the kind has one.
        download: Allow the hub; else only what is on disk.
        device: Where it runs: ``auto`` is a GPU where there is one.

    Raises:
        ConfigError: Without `path`, for an unknown kind, without transformers, or when there is no such encoder.
    """

    path: str | None = None
    kind: str = "auto"
    length: int = 77
    layer: int | None = None
    template: str = SLOT
    pooled: bool = True
    download: bool = False
    device: str = "auto"
    key: str = "conditioner.path"
    _loaded: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(f"{self.key} is not set; give a folder with a text encoder, or a name on the hub")
        if self.kind not in KINDS:
            raise ConfigError(f"conditioner: kind={self.kind} is unknown{suggest(str(self.kind), KINDS)}")
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 2:
            raise ConfigError(f"conditioner: length={self.length} must be a whole number of at least 2")
        if self.template.count(SLOT) != 1:
            raise ConfigError(f"conditioner: template={self.template!r} must hold {SLOT} once")
        folder = Path(str(self.path)).expanduser()
        if not folder.is_dir() and not self.download:
            raise ConfigError(f"{self.key}={self.path}: no such folder; allow the hub with conditioner.download=true")
        self.where = str(folder) if folder.is_dir() else str(self.path)
        config = self._guarded(lambda library: library.AutoConfig.from_pretrained(self.where))
        own = getattr(config, "text_config", None) or config
        self.size = int(getattr(own, "hidden_size", None) or own.d_model)
        kind = str(config.model_type)
        if self.kind == "t5" and kind not in _T5:
            raise ConfigError(f"{self.key}={self.path}: a {kind} is no T5; use conditioner=text_pretrained")
        self._config, self._clip = config, self.kind == "clip"
        if self._clip and not kind.startswith("clip"):
            raise ConfigError(f"{self.key}={self.path}: a {kind} is no CLIP; use conditioner=text_pretrained")
        self.pool = 0
        if self.pooled and self._clip:
            widths = (getattr(own, "projection_dim", None), getattr(config, "projection_dim", None), self.size)
            self.pool = next(int(width) for width in widths if width)
        elif self.pooled and self.kind == "llm":
            self.pool = self.size

    def fingerprint(self) -> str:
        """Return a hash of the encoder's files and of how it is read."""
        found = blake2b(digest_size=10)
        how = (self.kind, self.length, self.layer, self.template, self.pool)
        found.update(repr(how).encode())
        folder = Path(self.where)
        if not folder.is_dir():
            found.update(f"{self.where} {getattr(self._config, '_commit_hash', None)}".encode())
            return found.hexdigest()
        for path in sorted(folder.iterdir()):
            if path.suffix == ".safetensors":
                # Of weights the header and a few stretches: whole files may take minutes to read.
                size = path.stat().st_size
                found.update(f"{path.name} {size}".encode())
                with path.open("rb") as file:
                    for at in range(0, size, max(size // 16, 1)):
                        file.seek(at)
                        found.update(file.read(1 << 16))
            elif path.suffix in (".json", ".txt", ".model"):
                found.update(path.name.encode() + path.read_bytes())
        return found.hexdigest()

    @property
    def loaded(self) -> tuple[Any, Any]:
        """The tokenizer and the model, loaded when they are first asked for."""
        if self._loaded is None:
            self._loaded = self._guarded(self._load)
        return self._loaded  # type: ignore[no-any-return]

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> list[Row]:
        """Return tokens (T, D) and the pooled vector (P,) or None of each caption, on the CPU."""
        tokenizer, model = self.loaded
        found: list[Row] = []
        for first in range(0, len(captions), 64):
            part = [self.template.replace(SLOT, text) for text in captions[first : first + 64]]
            ids = tokenizer(part, padding=True, truncation=True, max_length=self._most, return_tensors="pt")
            device = next(model.parameters()).device
            given = {k: v.to(device) for k, v in ids.items() if k in ("input_ids", "attention_mask")}
            out = model(**given, output_hidden_states=self.layer is not None)
            hidden = out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]
            mask = ids["attention_mask"].bool()
            for row, (states, there) in enumerate(zip(hidden.float().cpu(), mask, strict=True)):
                kept = states[there]
                found.append((kept[self._skipped :][: self.length], self._pooled(out, row, kept)))
        return found

    def _pooled(self, out: Any, row: int, kept: Tensor) -> Tensor | None:
        if not self.pool:
            return None
        if not self._clip:
            return kept[-1]
        vector: Tensor | None = getattr(out, "text_embeds", None)
        whole: Tensor = out.pooler_output if vector is None else vector
        return whole[row].float().cpu()

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """Return where in a caption each of its tokens begins and ends; the empty span for marks of the model's own."""
        tokenizer = self.loaded[0]
        text, start = self.template.replace(SLOT, caption), self.template.index(SLOT)
        ids = tokenizer(text, truncation=True, max_length=self._most, return_offsets_mapping=True)
        return [(a - start, b - start) for a, b in ids["offset_mapping"]][self._skipped :][: self.length]

    def cut(self, caption: str) -> str | None:
        """Return what is said of the end of a caption that is not read."""
        tokenizer = self.loaded[0]
        text = self.template.replace(SLOT, caption)
        ids = tokenizer(text)["input_ids"]
        if len(ids) <= self._most:
            return None
        rest = str(tokenizer.decode(ids[self._most - 1 :], skip_special_tokens=True)).strip()
        rest = rest if len(rest) <= 60 else f"{rest[:59]}…"
        name = {"clip": "CLIP", "t5": "T5", "llm": "the language model"}.get(self.kind, "the encoder")
        return f"{name} reads {self._most} of its {len(ids)} tokens, without: {rest}"

    @property
    def _skipped(self) -> int:
        """Tokens of the template before the caption."""
        before = self.template[: self.template.index(SLOT)]
        if not before:
            return 0
        return len(self.loaded[0](before, add_special_tokens=False)["input_ids"])

    @property
    def _most(self) -> int:
        """Tokens of a caption within its template."""
        return self.length + self._skipped

    def _load(self, library: Any) -> tuple[Any, Any]:
        if self._clip:
            names = " ".join(getattr(self._config, "architectures", None) or [])
            # A text model alone may come with its projection or without.
            plain = names == "CLIPTextModel"
            model: Any = (library.CLIPTextModel if plain else library.CLIPTextModelWithProjection).from_pretrained(
                self.where, use_safetensors=True
            )
        elif self._config.model_type in _T5:
            model = library.T5EncoderModel.from_pretrained(self.where, use_safetensors=True)
        else:
            model = library.AutoModel.from_pretrained(self.where, use_safetensors=True)
            model = getattr(model, "text_model", model)
        tokenizer = library.AutoTokenizer.from_pretrained(self.where)
        # What is filled up stands behind, so that places in a caption are places in its row.
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return tokenizer, model.eval().requires_grad_(False).to(device)

    def _guarded(self, run: Any) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise ConfigError("conditioner: text encoders need transformers: pip install 'suffuse[text]'") from error
        try:
            return run(transformers)
        except Exception as error:  # the library raises a dozen kinds for what a wrong folder or no network causes
            text = " ".join(str(error).split())[:300]
            raise ConfigError(f"{self.key}={self.path}: transformers cannot load it ({text})") from error


_T5 = ("t5", "mt5", "umt5")


class EncodedText(Text):
    """Captions as one or several frozen encoders read them, projected to `width`; labels and scalars beside.

    Arguments:
        path: Folder or name of the encoder, where there is one; or give `encoders`.
        kind: See `Encoder`, as for `length`, `layer`, `template`, `pooled`, `download` and `device`.
        encoders: Arguments of an `Encoder` for each of several, by name.
        width: Size of the vector and of the tokens.
        drop_each: Share of training rows that lose what one encoder says, of each for itself.
        store: Folder in which is kept what the encoders say; None keeps it in memory alone.
        remember: Captions kept in memory.
        options: Arguments of `Text`.

    Raises:
        ConfigError: Without an encoder, and as `Encoder`.
    """

    def __init__(
        self, path: str | None = None, kind: str = "auto", length: int = 64, layer: int | None = None,
        template: str = SLOT, pooled: bool = True, download: bool = False, device: str = "auto",
        encoders: Mapping[str, Mapping[str, Any]] | None = None, width: int = 128, drop_each: float = 0.0,
        store: str | None = None, remember: int = 20_000, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(width=width, **options)
        if isinstance(drop_each, bool) or not isinstance(drop_each, int | float) or not 0 <= drop_each < 1:
            raise ConfigError(f"conditioner.drop_each={drop_each} must be in [0, 1)")
        self.drop_each, self.remember = float(drop_each), remember
        # In a tuple, so that they are no submodules: they are frozen, and belong in no checkpoint.
        if encoders:
            self.frozen = tuple(
                Encoder(**{"download": download, "device": device, **how}, key=f"conditioner.encoders.{name}.path")
                for name, how in encoders.items()
            )
        else:
            self.frozen = (Encoder(path, kind, length, layer, template, pooled, download, device),)
        root = None if store is None else Path(store).expanduser()
        self.stores = tuple(None if root is None else Store(root / encoder.fingerprint()) for encoder in self.frozen)
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self.sizes = [encoder.length * encoder.size + encoder.pool for encoder in self.frozen]
        if self.text:
            self.project = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(encoder.size), nn.Linear(encoder.size, width)) for encoder in self.frozen
            )
            self.whole_text = nn.ModuleList(
                nn.Linear(encoder.pool, width, bias=False) if encoder.pool else nn.Identity() for encoder in self.frozen
            )

    def read(self, captions: Sequence[str]) -> Tensor:
        """Return features, float (B, N): tokens and pooled vector of every encoder in a row, zeros where none is."""
        new = [text for text in dict.fromkeys(captions) if text and text not in self._kept]
        parts = [self._encoded(encoder, store, new) for encoder, store in zip(self.frozen, self.stores, strict=True)]
        for number, text in enumerate(new):
            rows = zip(self.frozen, parts, strict=True)
            self._kept[text] = torch.cat([self._flat(encoder, part[number]) for encoder, part in rows])
        found = torch.zeros(len(captions), sum(self.sizes))
        for row, text in zip(found, captions, strict=True):
            if text:
                row[:] = self._kept[text]
        while len(self._kept) > self.remember:
            self._kept.popitem(last=False)
        return found

    def _encoded(self, encoder: Encoder, store: Store | None, new: list[str]) -> list[Row]:
        """Return the features of captions, from the store where they are."""
        if store is None:
            return encoder(new)
        missing = [text for text in new if text not in store]
        if missing:
            store.refresh()
            missing = [text for text in missing if text not in store]
        fresh = dict(zip(missing, encoder(missing) if missing else [], strict=True))
        for text, row in fresh.items():
            # What is only asked for once, of samples, is not worth keeping.
            if self.training:
                store.put(text, *row)
        found = [fresh.get(text) or store.get(text) for text in new]
        return [row for row in found if row is not None]

    @staticmethod
    def _flat(encoder: Encoder, row: Row) -> Tensor:
        tokens, pooled = row
        whole = torch.zeros(encoder.length, encoder.size)
        whole[: len(tokens)] = tokens
        return torch.cat([whole.flatten(), *([] if pooled is None else [pooled])])

    def _parts(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return tokens (B, T, D) and pooled vector (B, P) of every encoder."""
        found = []
        for encoder, part in zip(self.frozen, torch.split(text, self.sizes, 1), strict=True):
            tokens = part[:, : encoder.length * encoder.size].reshape(len(part), encoder.length, encoder.size)
            found.append((tokens, part[:, encoder.length * encoder.size :]))
        return found

    def embed_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return projected features and which exist."""
        states = [z for z, _ in self._parts(text)]
        tokens = torch.cat([project(z) for project, z in zip(self.project, states, strict=True)], 1)
        return tokens, torch.cat([z.abs().sum(-1) > 0 for z in states], 1)

    def pooled(self, text: Tensor) -> Tensor | None:
        """Return the sum of the projected pooled vectors; zeros without a caption."""
        parts = zip(self.whole_text, self._parts(text), strict=True)
        found = [layer(vector) for layer, (_, vector) in parts if vector.shape[1]]
        return torch.stack(found).sum(0) if found else None

    def weights(self, prompts: Sequence[Weighted]) -> Tensor:
        """Return the weight of every token."""
        found = torch.ones(len(prompts), sum(encoder.length for encoder in self.frozen))
        for row, prompt in zip(found, prompts, strict=True):
            first = 0
            for encoder in self.frozen:
                for place, (start, end) in enumerate(encoder.spans(prompt.text) if prompt.spans else []):
                    row[first + place] = prompt.weight(start, end)
                first += encoder.length
        return found

    def cut(self, caption: str) -> list[str]:
        """Return a line for every encoder that does not read all of a caption."""
        return [line for encoder in self.frozen if (line := encoder.cut(caption)) is not None]

    def augment(self, raw: Mapping[str, Tensor], noise: Any, step: int) -> dict[str, Tensor]:
        """Return training conditions in which each encoder is silent in a share `drop_each` of the rows."""
        if not self.drop_each or not self.text or len(self.frozen) < 2:
            return dict(raw)
        raw, parts = self.prepare(raw), []
        for number, part in enumerate(torch.split(raw["text"], self.sizes, 1)):
            like = part.new_empty(len(part))
            silent = noise.uniform(like, step, EACH_STREAM + number) < self.drop_each
            parts.append(part * (~silent)[:, None].to(part))
        return {**raw, "text": torch.cat(parts, 1)}


EACH_STREAM = 170
"""Noise stream of the encoders that are silent, one each from there on."""
