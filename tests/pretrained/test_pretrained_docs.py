"""The page on published models says what works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from suffuse.pretrained.families import FAMILIES
from suffuse.pretrained.words import GROUPS

PAGE = (Path(__file__).parents[2] / "core" / "docs" / "pretrained.md").read_text()


def test_the_python_runs(folder):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(block, "pretrained.md", "exec"), {"__name__": "page", "folder": folder("sd"), "torch": torch})


def test_the_commands_run(local, folder, tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("photo.png", (32, 32)), ("pets/cat/a.png", (40, 40)), ("pets/dog/b.png", (40, 40))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(tmp_path / name)
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:12] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [shlex.split(line.replace("FOLDER", str(folder("sd")))) for line in block.splitlines()]
    assert len(lines) == 9
    for words in lines:
        more = ["trainer=cpu"] * (words[0] != "suffuse")
        said = {word.partition("=")[0] for word in words}
        more += [word for word in ("sampler.steps=2", "num=1") if word.partition("=")[0] not in said and more]
        if words[0] == "train":
            more += ["steps=1", "data.batch_size=1", "every.preview=0", "every.validate=0", "metrics=none", "val_num=1"]
        result = local(*words, *more)
        assert result.returncode == 0, f"{words}: {result.stderr}"
    assert len(list((tmp_path / "samples").glob("*/00000.png"))) == 6 and (tmp_path / "mine/model_index.json").is_file()


def test_everything_has_its_row():
    for family in FAMILIES:
        assert f"| {family.name} |" in PAGE
        named = [name for name in family.pipelines if "Img2Img" not in name]
        assert all(f"`{name}`" in PAGE for name in named)
    assert all(f"`{group}=diffusers`" in PAGE for group in GROUPS)
