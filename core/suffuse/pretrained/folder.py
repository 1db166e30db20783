"""Folder: the files of a published model, as diffusers lays them out, and how its parts are loaded.

``model_index.json`` names a pipeline and the class of each part; every part is a folder of a config and of weights. The
weights of a single unconditional U-Net may lie in the folder itself. Weights are safetensors, or else a pickle that is
read with ``weights_only``: no file of a folder runs code, and only classes of `families` are loaded.

The JSON is read without torch, diffusers or transformers; weights need ``suffuse[pretrained]``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suffuse.errors import ConfigError
from suffuse.pretrained.families import LOADABLE, Family, family_of, supported

__all__ = ["Folder", "opened", "resolve"]

INSTALL = "pip install 'suffuse[pretrained]'"
ID = re.compile(r"[\w.-]+/[\w.-]+")
PATTERNS = ("*.json", "*.txt", "*.model", "*/*.safetensors", "diffusion_pytorch_model*.safetensors")
"""Files that are fetched from the hub: no pickles, and none of the single files that lie beside the parts."""


def resolve(where: str, download: bool = False) -> Path:
    """Return the folder that `where` names: itself, or the local copy of a name on the hub.

    Arguments:
        where: A folder, or ``owner/name``.
        download: Fetch from the hub what is not in its local cache.

    Raises:
        ConfigError: When there is none.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ConfigError(f"pretrained={where}: a file; give the folder that holds model_index.json")
    if not ID.fullmatch(where):
        raise ConfigError(f"pretrained={where}: no such folder, and no name of the form owner/name on the hub")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(f"pretrained={where}: names on the hub need huggingface_hub: {INSTALL}") from error
    try:
        return Path(snapshot_download(where, local_files_only=not download, allow_patterns=list(PATTERNS))).resolve()
    except Exception as error:  # a dozen kinds for no network, no such name, no permission
        if not download:
            raise ConfigError(
                f"pretrained={where}: neither a folder nor in the hub's local cache; fetch it with download=true, or "
                "give a folder"
            ) from error
        text = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"pretrained={where}: the hub did not give it ({type(error).__name__}: {text}); check name and network, or "
            "give a folder"
        ) from error


def opened(path: str) -> Folder:
    """Return the folder at a path; see `Folder`.

    Raises:
        ConfigError: When it holds no pipeline, or one of no family that we know.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ConfigError(f"pretrained={path}: no such folder; a checkpoint needs the one its run was started from")
    return _opened(root)


@functools.lru_cache(maxsize=8)
def _opened(root: Path) -> Folder:
    if (root / "model_index.json").is_file():
        index = _json(root / "model_index.json")
        return Folder(root, _family(root, str(index.get("_class_name"))), index)
    single = _json(root / "config.json") if (root / "config.json").is_file() else {}
    if single.get("_class_name") == "UNet2DModel":
        index = {"_class_name": "UNet2DModel", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", None]}
        return Folder(root, _family(root, "UNet2DModel"), index, flat=True)
    files = sorted(p.name for p in root.iterdir() if not p.name.startswith("."))[:5]
    raise ConfigError(
        f"pretrained={root}: no pipeline of diffusers, there is no model_index.json in it (it holds: "
        f"{', '.join(files) or 'nothing'})"
    )


def _family(root: Path, name: str) -> Family:
    found = family_of(name)
    if found is None:
        raise ConfigError(f"pretrained={root}: {name} is no pipeline that we know; supported: {supported()}")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); fetch the file again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: not a JSON object; fetch the file again")
    return found


@dataclass(frozen=True)
class Folder:
    """A published model on disk.

    Arguments:
        path: Where it is.
        family: What it is.
        index: ``model_index.json``.
        flat: The denoiser lies in the folder itself.
    """

    path: Path
    family: Family
    index: Mapping[str, Any] = field(hash=False, compare=False)
    flat: bool = False

    def has(self, part: str) -> bool:
        """Return whether the pipeline has a part of this name."""
        entry = self.index.get(part)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None

    def of(self, part: str) -> Path:
        """Return the folder of a part."""
        return self.path if self.flat else self.path / part

    def config(self, part: str) -> dict[str, Any]:
        """Return the config of a part; of a scheduler that is not there, diffusers' default of DDPM."""
        if part == "scheduler":
            file = self.of(part) / "scheduler_config.json"
            if self.flat and not file.is_file():
                return {"_class_name": "DDPMScheduler"}
        else:
            file = self.of(part) / "config.json"
        if not file.is_file():
            raise ConfigError(
                f"pretrained={self.path}: {file.relative_to(self.path)} is missing; fetch the folder again"
            )
        return _json(file)

    def check(self) -> None:
        """Raise `ConfigError` when the denoiser is of a class or kind that we do not know."""
        name = str((self.index.get(self.family.network) or [None, None])[1])
        if name not in self.family.classes:
            raise ConfigError(
                f"pretrained={self.path}: its {self.family.network} is a {name}, not a "
                f"{' or '.join(self.family.classes)}; supported: {supported()}"
            )
        config = self.config(self.family.network)
        if config.get("time_cond_proj_dim"):
            raise ConfigError(f"pretrained={self.path}: a U-Net distilled with guidance (LCM) is not supported")
        if self.family.vae:
            channels, latent = config.get("in_channels"), self.latent
            packed = latent * 4 if self.family.name == "Flux" else latent
            if channels is not None and channels != packed:
                raise ConfigError(
                    f"pretrained={self.path}: its {self.family.network} takes {channels} channels where the latents "
                    f"have {packed}: inpainting and editing models are not supported; any other model inpaints with "
                    "init= and mask="
                )

    @property
    def latent(self) -> int:
        """Channels of a state."""
        if not self.family.vae:
            return int(self.config("unet").get("in_channels", 3))
        vae = self.config("vae")
        return int(vae.get("latent_channels") or vae.get("decoder_input_channels") or 4)

    @property
    def factor(self) -> int:
        """Entries of the signal per latent, along an axis."""
        if not self.family.vae:
            return 1
        vae = self.config("vae")
        if "downsampling_ratios" in vae:
            product = 1
            for ratio in vae["downsampling_ratios"]:
                product *= int(ratio)
            return product
        blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [1, 1, 1, 1]
        return int(2 ** (len(blocks) - 1))

    @property
    def patch(self) -> int:
        """Latents per token, along an axis."""
        if self.family.name == "Flux":
            return 2
        return int(self.config(self.family.network).get("patch_size") or 1) if self.family.modality == "image" else 1

    @property
    def multiple(self) -> int:
        """What a height or width must be a multiple of."""
        config = self.config(self.family.network)
        if self.family.network == "unet":
            levels = len(config.get("block_out_channels") or config.get("down_block_types") or [1])
            return self.factor * (2 ** (levels - 1) if not self.family.vae else 1)
        return self.factor * self.patch

    @property
    def size(self) -> tuple[int, ...]:
        """Size of a state without its channels, as the model was trained."""
        config = self.config(self.family.network)
        size = config.get("sample_size") or config.get("default_sample_size")
        if self.family.modality != "image":
            return (int(size or 1024),)
        if self.family.name == "Flux":
            size = 128 if size is None else size
        if size is None:
            size = 64
        return (int(size), int(size)) if isinstance(size, int) else tuple(int(side) for side in size)

    def tokens(self, height: int | None = None, width: int | None = None) -> int:
        """Return the number of tokens of a picture, of the model's own size by default."""
        own = [side * self.factor for side in self.size]
        tall, wide = height or own[0], width or own[-1]
        return (tall // self.factor // self.patch) * (wide // self.factor // self.patch)

    def load(self, part: str) -> Any:
        """Return a part with its weights, in evaluation mode, float32.

        Raises:
            ConfigError: When its class is not one that we load, a library is missing, or the weights do not load.
        """
        library, name = self.index.get(part) or (None, None)
        kinds = self.family.classes if part == self.family.network else LOADABLE.get(re.sub(r"_\d$", "", part), ())
        if name not in kinds or library not in ("diffusers", "transformers", "stable_audio"):
            raise ConfigError(
                f"pretrained={self.path}: its {part} is {library}.{name}; we load "
                f"{' or '.join(kinds) or 'no such part'}"
            )
        kind = _class(str(library), str(name))
        where = self.of(part)
        try:
            model = kind.from_pretrained(str(where), local_files_only=True, **self._weights(part))
        except ConfigError:
            raise
        except Exception as error:  # the libraries raise a dozen kinds for damaged, missing or refused weights
            text = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"pretrained={self.path}: its {part} does not load ({type(error).__name__}: {text})"
            ) from error
        return model.float().eval()

    def _weights(self, part: str) -> dict[str, Any]:
        """Return which files the library is to read: safetensors where there are any."""
        where = self.of(part)
        names = [p.name for p in where.glob("*.safetensors")]
        if names:
            variants = {m[1] for n in names if (m := re.search(r"model(?:-\d+-of-\d+)?\.(fp16|bf16)\.", n))}
            plain = any(not re.search(r"\.(fp16|bf16|non_ema|ema)[.-]", n) for n in names)
            return {"use_safetensors": True} | ({} if plain or not variants else {"variant": sorted(variants)[0]})
        if any(where.glob("*.bin")):
            return {"use_safetensors": False}  # both libraries then read it with weights_only
        raise ConfigError(f"pretrained={self.path}: no weights of its {part} in {where}; fetch the folder again")

    def tokenizer(self, part: str) -> Any:
        """Return the tokenizer of a text encoder ``text_encoder…``."""
        name = part.replace("text_encoder", "tokenizer")
        _class("transformers", "AutoTokenizer")
        from transformers import AutoTokenizer

        where = self.path / name
        if not where.is_dir():
            raise ConfigError(f"pretrained={self.path}: it has no {name}; fetch the folder again")
        try:
            return AutoTokenizer.from_pretrained(str(where), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # as in load
            text = " ".join(str(error).split())[:300]
            raise ConfigError(f"pretrained={self.path}: its {name} does not load ({text})") from error


def _class(library: str, name: str) -> Any:
    """Return a class of diffusers or transformers, with their own lines kept off the screen."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise ConfigError(f"pretrained: needs diffusers and transformers ({error}): {INSTALL}") from error
    for library_logging in (diffusers.utils.logging, transformers.utils.logging):
        said: Any = library_logging
        said.set_verbosity_error()
        said.disable_progress_bar()
    if name == "Transformer2DModel":  # how the first PixArt folders call what has a class of its own today
        name = "PixArtTransformer2DModel"
    if library == "stable_audio":
        return diffusers.pipelines.stable_audio.StableAudioProjectionModel
    return getattr(transformers if library == "transformers" else diffusers, name)
