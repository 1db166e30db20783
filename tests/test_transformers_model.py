"""Models of transformers that a metric looks through: what is loaded, and what is refused on one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from suffuse.errors import ConfigError
from suffuse.transformers_model import load


def loaded(path: Any, download: bool = False) -> Any:
    return load(path, download, "ViTImageProcessor", "ViTModel", "ViT", "metrics=x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.ViTModel(config).save_pretrained(path)
    transformers.ViTImageProcessor(image_mean=[0.4, 0.5, 0.6]).save_pretrained(path)
    return path


def test_a_folder(folder: Path) -> None:
    processor, model = loaded(str(folder))
    assert list(processor.image_mean) == [0.4, 0.5, 0.6] and model.config.hidden_size == 8
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for path, said in (
        (None, "metrics.path is not set; give a folder with a ViT model"),
        (str(tmp_path / "none"), "no such folder.*metrics.download=true"),
        (str(tmp_path / "empty"), "transformers cannot load it"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            loaded(path)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"metrics=x needs transformers: pip install 'suffuse\[text\]'"):
        loaded(str(folder))
