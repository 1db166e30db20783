"""The house rules that an import can break."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "core" / "suffuse"
FLOORS = {
    name: floor
    for floor, names in enumerate(
        [
            ["schedule", "betas", "rates", "state", "space", "noise", "nn", "targets", "ema", "integrate"],
            [
                "denoiser",
                "process",
                "categorical",
                "grid",
                "conditioner",
                "text",
                "text_encoders",
                "text_store",
                "weighting",
                "captions",
                "solver",
                "weight",
                "density",
                "levels",
                "coupling",
                "uncertainty",
            ],
            [
                "sampler",
                "guidance",
                "observation",
                "objective",
                "reconstruction",
                "self_condition",
                "likelihood",
                "nelbo",
                "tuning",
                "verify",
            ],
            [
                "disk",
                "data",
                "damage",
                "listing",
                "idx",
                "shards",
                "tables",
                "codec",
                "edit",
                "rollout",
                "preview",
                "metrics",
                "frechet",
                "transformers_model",
                "build",
                "checkpoint",
                "sharded",
                "parts",
                "trust",
                "mismatch",
                "posthoc",
                "model",
                "autoencoder",
                "latent",
                "diffusers_autoencoder",
                "tiles",
                "buckets",
                "pretrained",
            ],
            ["cache", "sampling", "task", "training"],
            ["failures", "rundir"],
            ["jobs", "app", "encode", "info", "testing"],
        ]
    )
    for name in names
}
LIGHT = {
    "errors", "hookspecs", "modality", "plugins", "overrides", "usage", "finding", "cli", "scaffold", "signals",
    "__init__", "__main__",
}  # fmt: skip
MATHS = [name for name, floor in FLOORS.items() if floor <= 2]
FOREIGN = {
    "lightning",
    "hydra",
    "omegaconf",
    "wandb",
    "torchvision",
    "torchaudio",
    "PIL",
    "rdkit",
    "diffusers",
    "soundfile",
}


def files(name: str) -> list[Path]:
    folder = CORE / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [CORE / f"{name}.py"]


def imports(path: Path, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("suffuse.")}


@pytest.mark.parametrize("name", FLOORS)
def test_imports_go_down(name: str) -> None:
    for path in files(name):
        for other in own(imports(path)) & set(FLOORS) - {name}:
            assert FLOORS[other] <= FLOORS[name], f"{path.name} (floor {FLOORS[name]}) imports {other}"


@pytest.mark.parametrize("name", MATHS)
def test_the_mathematics_imports_torch_only(name: str) -> None:
    for path in files(name):
        assert not {module.split(".")[0] for module in imports(path)} & FOREIGN, path
        assert not own(imports(path)) & {"plugins", "cli", "app", "jobs"}, path


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_light_modules_import_nothing_heavy_at_the_top(name: str) -> None:
    heavy = {"torch", "lightning", "hydra", "omegaconf", "wandb", "numpy"}
    top = imports(CORE / f"{name}.py", top_only=True)
    assert not {module.split(".")[0] for module in top} & heavy
    assert own(top) <= LIGHT | {"SuffuseError", "hookimpl", "Modality"}


def test_every_module_is_placed() -> None:
    found = {p.stem for p in CORE.glob("*.py")} | {p.name for p in CORE.iterdir() if (p / "__init__.py").is_file()}
    assert found == set(FLOORS) | LIGHT


def test_the_core_names_no_plugin() -> None:
    for path in [*CORE.rglob("*.py"), *(CORE.parents[1] / "conf").rglob("*.yaml")]:
        text = path.read_text()
        for plugin in ("image", "audio", "video", "molecules", "shapes"):
            assert f"suffuse_{plugin}" not in text and f"suffuse-{plugin}" not in text, f"{path} names {plugin}"
