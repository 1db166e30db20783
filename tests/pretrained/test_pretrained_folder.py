"""Folders: what is loaded, what is refused, and that no file of one runs code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from suffuse.errors import ConfigError
from suffuse.pretrained.families import FAMILIES
from suffuse.pretrained.folder import _opened, opened, resolve
from suffuse.pretrained.network import Network, pack, unpack
from suffuse.pretrained.words import for_training


@pytest.fixture
def copy(folder, tmp_path):
    """Return a function that copies a pipeline to where it may be changed."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(folder(name), tmp_path / name))

    return make


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_payload_in_a_weights_file_does_not_run(part, copy, tmp_path):
    root, sign = copy("sd"), tmp_path / "it-ran"
    (file,) = (root / part).glob("*.safetensors")
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save({"weight": Payload(sign)}, root / part / name)
    file.unlink()
    with pytest.raises(ConfigError, match=f"its {part} does not load"):
        opened(str(root)).load(part)
    assert not sign.exists()
    # The payload is one indeed.
    torch.load(root / part / name, weights_only=False)
    assert sign.exists()


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_plain_weights_in_a_pickle_are_read(part, copy):
    root = copy("sd")
    folder = opened(str(root))
    before = folder.load(part).state_dict()
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save({key: value.clone() for key, value in before.items()}, root / part / name)
    for file in (root / part).glob("*.safetensors"):
        file.unlink()
    after = folder.load(part).state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_pickle_beside_safetensors_is_not_looked_at(copy, tmp_path):
    root, sign = copy("sd"), tmp_path / "it-ran"
    torch.save(Payload(sign), root / "unet" / "diffusion_pytorch_model.bin")
    opened(str(root)).load("unet")
    assert not sign.exists()


def test_a_class_of_its_own_is_not_imported(copy, tmp_path):
    root = copy("sd")
    (root / "unet" / "mine.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\nclass Mine: pass\n")
    index = json.loads((root / "model_index.json").read_text())
    (root / "model_index.json").write_text(json.dumps(index | {"unet": ["mine", "Mine"]}))
    with pytest.raises(
        ConfigError, match="its unet is a Mine, not a UNet2DConditionModel; supported: Stable Diffusion"
    ):
        opened(str(root)).check()
    with pytest.raises(ConfigError, match=r"its unet is mine\.Mine; we load UNet2DConditionModel"):
        opened(str(root)).load("unet")
    assert not (tmp_path / "it-ran").exists()


def test_half_precision_files_are_found(copy, loaded):
    root = copy("sd")
    shutil.rmtree(root / "unet")
    loaded("sd").unet.half().save_pretrained(root / "unet", variant="fp16")
    assert [p.name for p in (root / "unet").glob("*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert next(opened(str(root)).load("unet").parameters()).dtype == torch.float32


def test_what_is_no_pipeline(tmp_path, copy):
    (tmp_path / "notes.txt").write_text("x")
    for path, text in (
        (tmp_path, r"no pipeline of diffusers, there is no model_index\.json in it \(it holds: notes\.txt\)"),
        (tmp_path / "gone", "no such folder"),
    ):
        with pytest.raises(ConfigError, match=text):
            opened(str(path))
    with pytest.raises(ConfigError, match="a file; give the folder that holds model_index"):
        resolve(str(tmp_path / "notes.txt"))
    with pytest.raises(ConfigError, match="no such folder, and no name of the form owner/name"):
        resolve(str(tmp_path / "gone" / "further"))
    root = copy("ddpm")
    (root / "model_index.json").write_text(json.dumps({"_class_name": "WuerstchenPipeline"}))
    with pytest.raises(
        ConfigError, match="WuerstchenPipeline is no pipeline that we know; supported: Stable"
    ) as caught:
        opened(str(root))
    assert all(family.name in str(caught.value) for family in FAMILIES)
    (root / "model_index.json").write_text("{")
    _opened.cache_clear()
    with pytest.raises(ConfigError, match=r"model_index\.json: cannot be read as JSON"):
        opened(str(root))


def test_missing_parts(copy):
    root = copy("sd")
    next((root / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(ConfigError, match="no weights of its vae in"):
        opened(str(root)).load("vae")
    next((root / "unet").glob("*.safetensors")).write_bytes(b"\x10")
    with pytest.raises(ConfigError, match="its unet does not load"):
        opened(str(root)).load("unet")
    shutil.rmtree(root / "scheduler")
    with pytest.raises(ConfigError, match=r"scheduler/scheduler_config\.json is missing"):
        for_training([f"pretrained={root}"])


def test_a_model_that_inpaints_by_itself_is_refused(copy):
    root = copy("sd")
    config = json.loads((root / "unet" / "config.json").read_text())
    (root / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 9}))
    with pytest.raises(ConfigError, match="takes 9 channels where the latents have 4"):
        opened(str(root)).check()


def test_names_on_the_hub(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def absent(name, local_files_only, **_):
        raise LocalEntryNotFoundError("x") if local_files_only else ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(ConfigError, match="neither a folder nor in the hub's local cache; fetch it with download=true"):
        resolve("someone/something")
    with pytest.raises(ConfigError, match=r"the hub did not give it \(ConnectionError: no route to host\)"):
        resolve("someone/something", download=True)
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.update(how, name=name) or "/")
    assert resolve("someone/something") == Path("/")
    assert asked["name"] == "someone/something" and not any("bin" in pattern for pattern in asked["allow_patterns"])


def test_a_unet_alone_is_a_model(tmp_path, folder):
    shutil.copytree(folder("ddpm") / "unet", tmp_path / "flat")
    alone = opened(str(tmp_path / "flat"))
    assert alone.flat and alone.config("scheduler") == {"_class_name": "DDPMScheduler"}
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0])
    assert torch.equal(Network(str(alone.path))(x, t), Network(str(folder("ddpm")))(x, t))


@pytest.mark.parametrize(
    ("name", "factor", "multiple", "size", "tokens"),
    [
        ("sd", 2, 2, (16, 16), 256), ("sd3", 2, 4, (16, 16), 64), ("flux", 2, 4, (128, 128), 4096),
        ("pixart", 2, 4, (16, 16), 64), ("ddpm", 1, 2, (16, 16), 256),
    ],
)  # fmt: skip
def test_sizes(name, factor, multiple, size, tokens, folder):
    found = opened(str(folder(name)))
    assert (found.factor, found.multiple, found.size, found.tokens()) == (factor, multiple, size, tokens)
    assert found.tokens(32, 48) == (32 // factor // found.patch) * (48 // factor // found.patch)


def test_packing_there_and_back():
    x = torch.randn(2, 3, 4, 6)
    assert pack(x).shape == (2, 6, 12) and torch.equal(unpack(pack(x), 2, 3), x)


def test_dtypes(folder):
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([5.0])
    whole, half = (Network(str(folder("ddpm")), dtype=dtype)(x, t) for dtype in ("float32", "bfloat16"))
    assert half.dtype == torch.float32 and 0 < (whole - half).abs().max() < 0.1
    with pytest.raises(ConfigError, match=r"model\.dtype=int8 is none of"):
        Network(str(folder("ddpm")), dtype="int8")


def test_words_need_no_torch(folder):
    code = (
        "import sys; from suffuse.pretrained.words import for_training; "
        f"for_training(['pretrained={folder('sd')}']); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'hydra', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_words(folder):
    where = folder("sdxl")
    words = for_training([f"pretrained={where}", "sampler=heun", "model.lora=4"])
    assert words[0] == "modality=image" and f"pretrained='{where}'" in words
    assert {"model=diffusers", "codec=diffusers", "objective=eps", "guidance.scale=5.0", "optimizer.lr=0.0001"} <= set(
        words
    )
    assert not any(word.startswith("sampler.") or word == "sampler=euler" for word in words)
    assert for_training(["modality=image"]) == ["modality=image"]
    audio = for_training([f"pretrained={folder('audio')}"])
    assert audio[0] == "modality=audio" and "objective=v" in audio and "sampler=dpmpp" in audio
