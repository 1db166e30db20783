"""The page "write a modality" and the README say what works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "plugins" / "README.md"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


def test_the_python_blocks_run_one_after_another() -> None:
    space: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks(PAGE, "python")):
        exec(compile(block, f"block {number}", "exec"), space)
    assert {"Dots", "DotData", "Centred", "TestModality"} <= space.keys()


def test_the_yaml_blocks_are_the_skeletons(tmp_path: Path) -> None:
    from suffuse.scaffold import write

    conf = write("dots", tmp_path) / "suffuse_dots" / "conf"
    shown = blocks(PAGE, "yaml")
    assert shown == [(conf / "modality/dots.yaml").read_text(), (conf / "data/dots/waves.yaml").read_text()]
    assert yaml.safe_load(shown[0])["modality"]["name"] == "dots"


def test_the_skeleton_is_as_small_as_the_page_says(tmp_path: Path) -> None:
    from suffuse.scaffold import write

    package = write("dots", tmp_path) / "suffuse_dots"

    def lines(pattern: str) -> int:
        return sum(bool(line.strip()) for path in package.rglob(pattern) for line in path.read_text().splitlines())

    assert f"{lines('*.py')} lines of Python and {lines('*.yaml')} of YAML" in PAGE.read_text()
    assert lines("*.py") <= 60 and lines("*.yaml") <= 20


def test_the_shell_block_runs(tmp_path: Path, command, local) -> None:
    """`suffuse new`, then train; the package is put on the path with its metadata instead of calling pip."""
    words = [line.split() for line in blocks(PAGE, "sh")[0].splitlines()]
    assert words[0] == ["suffuse", "new", "dots"] and words[2] == ["train", "modality=dots", "steps=20"]
    assert command(*words[0]).returncode == 0
    package = tmp_path / "suffuse-dots"
    meta = package / "suffuse_dots-0.1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: suffuse-dots\nVersion: 0.1.0\n")
    (meta / "entry_points.txt").write_text("[suffuse]\ndots = suffuse_dots.plugin\n")
    path = {"PYTHONPATH": str(package)}
    more = ["trainer=cpu", "name=x", "num=4", "every.preview=20", "preview_num=5"]
    # One process for both commands: half of the time is that of a start.
    code = (
        "import sys, pytest; from suffuse.testing import command; from pathlib import Path\n"
        f"done = command(Path(), *{[*words[2], *more]!r})\n"
        "assert done.returncode == 0, done.stderr\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(package / 'tests')!r}]))"
    )
    both = command("python", "-c", code, **path)
    assert both.returncode == 0, both.stdout + both.stderr
    run = tmp_path / "outputs" / "dots" / "x"
    assert (run / "samples/final/00003.npy").is_file() and (run / "previews/step-000020.png").is_file()
    # Switched off again, its checkpoint says what is missing.
    gone = local("sample", f"ckpt={run}")
    assert "trained with suffuse-dots 0.1.0, which is not installed" in gone.stderr


@pytest.mark.parametrize("text", ["pip install uv && uv run train modality=image", "pip install uv && uv run pytest"])
def test_the_readme_has_the_two_lines(text: str) -> None:
    assert text in (ROOT / "README.md").read_text()


DOCS = ROOT / "core" / "docs"


def test_the_blocks_of_the_mathematics_run() -> None:
    import torch

    space: dict[str, object] = {"__name__": "page"}
    exec(compile(blocks(DOCS / "README.md", "python")[0], "docs/README.md", "exec"), space)
    rows = torch.full((4, 1), 1.5)
    space |= {"picture": rows, "keep": torch.ones(4, 1), "x0": rows, "cond": None}
    for page in ("observation", "likelihood", "conditioner", "autoencoder"):
        exec(compile(blocks(DOCS / f"{page}.md", "python")[0], page, "exec"), space)
    assert torch.isfinite(space["found"].nats).all()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "group", ["schedule", "grid", "sampler", "guidance", "objective", "ema", "conditioner", "parameterization"]
)
def test_every_option_has_its_row(group: str) -> None:
    page = {"parameterization": "denoiser"}.get(group, group)
    text = (DOCS / f"{page}.md").read_text()
    missing = [path.stem for path in (ROOT / "conf" / group).glob("*.yaml") if f"`{path.stem}`" not in text]
    assert not missing


def test_the_pages_lead_to_each_other() -> None:
    for page in [*DOCS.glob("*.md"), ROOT / "README.md", PAGE]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
