"""Wheels of the core and of the plugin, in a clean environment, from another directory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BOTH = """
import json, runpy, sys
from hydra.core.global_hydra import GlobalHydra
folder, commands = sys.argv[1:]
for script, *words in json.loads(commands):
    sys.argv = [f"{folder}/{script}", *words]
    GlobalHydra.instance().clear()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, (script, end.code)
"""
"""Runs console scripts one after another."""

pytestmark = pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv to build wheels")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("wheels")
    done = subprocess.run(
        ["uv", "build", "--wheel", "--all-packages", "--out-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sorted(out.glob("*.whl"))


def test_configs_template_and_licence_are_inside(wheels: list[Path]) -> None:
    names = {name for wheel in wheels for name in zipfile.ZipFile(wheel).namelist()}
    conf = [p.relative_to(ROOT / "conf").as_posix() for p in (ROOT / "conf").rglob("*.yaml")]
    assert {f"suffuse/conf/{name}" for name in conf} <= names
    template = ROOT / "core/suffuse/template"
    assert {f"suffuse/template/{p.relative_to(template).as_posix()}" for p in template.rglob("*.in")} <= names
    image = ROOT / "plugins/image"
    assert {p.relative_to(image).as_posix() for p in (image / "suffuse_image").rglob("*.yaml")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("conf/", "tests/", "core/")) for name in names)


@pytest.mark.slow
def test_a_clean_environment(wheels: list[Path], tmp_path: Path, tiny: list[str], environment) -> None:
    """A new environment that gets the wheels and, from the index, what they ask for."""
    home = tmp_path / "clean"
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, str(home)], check=True)
    install = ["uv", "pip", "install", "--quiet", "--python", str(home / "bin" / "python"), *map(str, wheels)]
    subprocess.run(install, check=True, cwd=tmp_path)
    env = environment()
    for words in (["train", *tiny, "name=w"], ["sample", "ckpt=outputs/image/w", "num=2", "out=drawn"]):
        line = [str(home / "bin" / words[0]), *words[1:]]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "drawn" / "00001.png").is_file()


def test_train_and_sample_from_anywhere(wheels: list[Path], tmp_path: Path, tiny: list[str], environment) -> None:
    """The dependencies come from this environment, the two packages from their wheels alone."""
    site = tmp_path / "site"
    subprocess.run(
        [
            "uv",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--python",
            sys.executable,
            "--target",
            str(site),
            *map(str, wheels),
        ],
        check=True,
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = environment(PYTHONPATH=str(site))

    def run(*words: str) -> str:
        line = [sys.executable, *words]
        done = subprocess.run(line, cwd=elsewhere, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import suffuse, suffuse.plugins as p; print(suffuse.__file__, p.CONF)")
    assert where.count(str(site)) == 2
    # Both scripts in one process: half of the time is that of a start.
    commands = [
        ["train", *tiny, "steps=2", "name=w"],
        ["sample", "ckpt=outputs/image/w", "num=2", "out=drawn", "trainer=cpu"],
    ]
    run("-c", BOTH, str(site / "bin"), json.dumps(commands))
    names = sorted(path.name for path in (elsewhere / "drawn").iterdir())
    assert names == ["00000.png", "00001.png", "manifest.jsonl", "overview.png"]
