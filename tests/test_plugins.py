"""Discovery: a faulty plugin is that plugin's alone."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from suffuse.plugins import Registry

GOOD = """
from pathlib import Path
from suffuse import Modality, hookimpl

@hookimpl
def suffuse_modalities():
    return [Modality({name!r}, "a test", conf=Path({conf!r}){more})]
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes a plugin module and gives its entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str | None = None, *, modality: str = "", more: str = "", files=("{}",)) -> EntryPoint:
        modality = modality or name
        conf = tmp_path / f"conf_{name}"
        for file in [f"modality/{modality}.yaml", *(f for f in files if f != "{}")]:
            path = conf / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n")
        text = source if source is not None else GOOD.format(name=modality, conf=str(conf), more=more)
        (tmp_path / f"plugin_{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"plugin_{name}", raising=False)
        importlib.invalidate_caches()
        return EntryPoint(name, f"plugin_{name}", "suffuse")

    return write


FAULTS = {
    "import error": ("import nothing_of_that_name", "ModuleNotFoundError"),
    "exit at import": ("import sys; sys.exit(3)", "SystemExit"),
    "misspelt hook": (
        "from suffuse import hookimpl\n@hookimpl\ndef suffuse_modality(): return []",
        "suffuse_modality",
    ),
    "returns None": (
        "from suffuse import hookimpl\n@hookimpl\ndef suffuse_modalities(): return None",
        "returned nothing",
    ),
    "no hook": ("x = 1", "implements no suffuse_modalities"),
    "raises": ("from suffuse import hookimpl\n@hookimpl\ndef suffuse_modalities(): raise ValueError('spilt')", "spilt"),
    "wrong type": ("from suffuse import hookimpl\n@hookimpl\ndef suffuse_modalities(): return ['x']", "not str"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_recorded_and_others_load(fault: str, make) -> None:
    source, text = FAULTS[fault]
    registry = Registry()
    for entry in (make("bad", source), make("good")):
        registry.load(entry)
    assert list(registry.providers) == ["good"]
    assert [failure.name for failure in registry.failures] == ["bad"]
    line = str(registry.failures[0])
    assert text in line and "\n" not in line and line.startswith("plugin 'bad'")


def test_wrong_api_version(make) -> None:
    registry = Registry()
    registry.load(make("old", more=", api=99"))
    assert "API 99, this suffuse speaks 1" in str(registry.failures[0])


def test_missing_conf(make, tmp_path: Path) -> None:
    registry = Registry()
    entry = make("bare")
    (tmp_path / "conf_bare" / "modality" / "bare.yaml").unlink()
    registry.load(entry)
    assert "has no config file" in str(registry.failures[0])


def test_duplicate_name_keeps_the_first(make) -> None:
    registry = Registry()
    registry.load(make("one", modality="same"))
    registry.load(make("two", modality="same"))
    assert list(registry.providers) == ["same"]
    assert "'same' is already provided by" in str(registry.failures[0])


@pytest.mark.parametrize("shadowed", ["sampler/euler.yaml", "data/one/x.yaml"])
def test_shadowing_a_config_is_refused(make, shadowed: str) -> None:
    registry = Registry()
    registry.load(make("one", files=("data/one/x.yaml",)))
    registry.load(make("two", files=(shadowed,)))
    assert list(registry.providers) == ["one"]
    assert f"config {shadowed} is already provided by" in str(registry.failures[0])


def test_bad_name(make) -> None:
    registry = Registry()
    registry.load(make("caps", modality="Caps"))
    assert "not lower_snake_case" in str(registry.failures[0])


COMMAND = """
@hookimpl
def suffuse_commands():
    from suffuse import Command
    return [Command({name!r}, "a test", {run!r})]
"""


def test_a_package_may_add_a_command(make, tmp_path: Path) -> None:
    conf = str(tmp_path / "conf_a")
    text = GOOD.format(name="a", conf=conf, more="") + COMMAND.format(name="look", run="plugin_a:run")
    registry = Registry()
    registry.load(make("a", text))
    assert registry.failures == [] and registry.commands["look"].run == "plugin_a:run"
    registry.load(make("b", text.replace("'a'", "'b'").replace("conf_a", "conf_b")))
    assert "command 'look' is taken" in str(registry.failures[0]) and list(registry.providers) == ["a"]


@pytest.mark.parametrize(
    ("name", "run", "why"),
    [
        ("train", "a:b", "is taken"),
        ("Look", "a:b", "not lower case"),
        ("look", "nowhere", "not package.module:function"),
    ],
)
def test_bad_commands(make, tmp_path: Path, name: str, run: str, why: str) -> None:
    text = GOOD.format(name="a", conf=str(tmp_path / "conf_a"), more="") + COMMAND.format(name=name, run=run)
    registry = Registry()
    registry.load(make("a", text))
    assert why in str(registry.failures[0]) and not registry.commands


def _run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def test_disabled_plugins_are_not_loaded() -> None:
    code = "from suffuse.plugins import registry; print(sorted(registry().providers))"
    assert "image" in _run(code).stdout
    assert "image" not in _run(code, SUFFUSE_DISABLE_PLUGINS="x, image").stdout


def test_importing_suffuse_imports_no_torch() -> None:
    heavy = ("torch", "hydra", "lightning", "wandb")
    code = f"import sys, suffuse, suffuse.cli; print([m for m in {heavy} if m in sys.modules])"
    assert _run(code).stdout.strip() == "[]"
