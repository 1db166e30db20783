"""The command line: its answers, its files, and its one-line errors."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from suffuse import cli
from suffuse.testing import command as inside


def one_line(result, status: int = 1) -> str:
    """Return the single line of a failed command."""
    assert result.returncode == status, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("[0-9]*.png"))}


# Answers before anything heavy is imported.


@pytest.mark.parametrize("words", [["train", "--help"], ["suffuse", "train", "--help"], ["train", "-h"]])
def test_help_lists_modalities_groups_and_keys(command, words: list[str]) -> None:
    result = command(*words)
    assert result.returncode == 0
    for text in ("modality=NAME", "image", "sampler", "heun", "ckpt=auto"):
        assert text in result.stdout


def test_sample_help(command) -> None:
    result = command("sample", "--help")
    assert result.returncode == 0 and "condition.label" in result.stdout and "heun" in result.stdout


def test_mistakes_import_no_torch(command, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    for words in (["train", "--help"], ["train", "modality=imge"], ["train", "modality=image", "sampler.stps=1"],
                  ["sample", "ckpt=nowhere"], ["suffuse", "plugins"]):  # fmt: skip
        result = command(*words, PYTHONPATH=str(tmp_path))
        assert "torch was imported" not in result.stderr, words


@pytest.mark.parametrize(
    ("words", "group", "gone"),
    [
        (["modality=molecules", "ema=power"], "ema", "decay"),
        (["modality=molecules", "optimizer=adam"], "optimizer", "fused"),
        (["modality=molecules"], "ema", None),
    ],
)
def test_what_a_modality_sets_is_its_own_options(words: list[str], group: str, gone: str | None) -> None:
    """A modality's ``ema.decay`` means its own average; another option without that key is left alone."""
    from suffuse.app import compose_train

    node = compose_train(words)[group]
    assert gone not in node if gone else node["decay"] == 0.995
    assert compose_train([*words, "optimizer.lr=0.5"]).optimizer.lr == 0.5
    if gone:
        # What the command line says is for the option to refuse.
        assert compose_train([*words, f"{group}.{gone}=0.3"])[group][gone] == 0.3


MISTAKES = [
    (["train", "modality=imge"], "train: modality=imge: no such modality; did you mean 'image'?"),
    (["train", "modality=image", "sampler.stps=3"], "did you mean 'sampler.steps'?"),
    (["train", "modality=image", "smapler=heun"], "did you mean 'sampler'?"),
    (["train", "modality=image", "data.root_=x"], "train: unknown key 'data.root_'"),
    (["train", "modality=image", "steps=0"], "steps=0 is out of range"),
    (["train"], "say which modality"),
    (["sample", "num=3"], "say which model"),
    (["sample", "ckpt=nowhere"], "ckpt=nowhere: no such run directory or file"),
    (["sample", "ckpt=.", "num=0"], "num=0 is out of range"),
    (["sample", "ckpt=."], "no checkpoint there"),
    (["suffuse", "new", "Not-Snake"], "use lower_snake_case, for example 'not_snake'"),
    (["suffuse", "new", "image"], "'image' is already provided by"),
    (["suffuse", "info", "nowhere"], "no such run directory or file"),
]


@pytest.mark.parametrize(("words", "text"), MISTAKES)
def test_a_mistake_is_one_clear_line(command, words: list[str], text: str) -> None:
    assert text in one_line(command(*words))


def test_what_the_data_need_is_asked_for(local) -> None:
    assert "data.path" in one_line(local("train", "modality=image", "name=x", "data=image/folder"))


def test_a_key_of_another_data_option_is_named(command) -> None:
    """The key exists somewhere in the group, so only Hydra notices; still one line."""
    assert "path" in one_line(command("train", "modality=image", "data.path=x"))


def test_plugins_json(command) -> None:
    found = json.loads(command("suffuse", "plugins", "--json").stdout)
    names = [m["name"] for m in found["modalities"]]
    assert names == sorted(names) and {"audio", "image", "molecules", "shapes", "video"} <= set(names)
    assert found["failures"] == []


def test_config_can_be_shown(command) -> None:
    result = command("train", "modality=image", "guidance=2", "--cfg", "job")
    shown = yaml.safe_load(result.stdout)
    assert shown["guidance"]["scale"] == 2 and shown["modality"]["name"] == "image"


# A finished run.


def test_a_run_leaves_what_it_promises(trained: Path) -> None:
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == [
        "last.ckpt", "step-000002.ckpt", "step-000004.ckpt", "step-000006.ckpt",
    ]  # fmt: skip
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["steps"] == 6 and config["name"] == "tiny" and "$" not in (trained / "config.yaml").read_text()
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert all(float(row["loss"]) > 0 and float(row["perf/samples_per_s"]) > 0 for row in rows)
    assert [row["step"] for row in rows if row["val/loss"]] == ["3", "6"]
    assert json.loads((trained / "metrics.json").read_text())["step"] == 6
    assert sorted(p.name for p in (trained / "previews").iterdir()) == ["step-000003.png", "step-000006.png"]
    final = trained / "samples" / "final"
    assert {p.name for p in final.iterdir()} == {
        "00000.png", "00001.png", "00002.png", "00003.png", "overview.png", "manifest.jsonl",
    }  # fmt: skip


def test_a_run_says_what_to_do_next(trained: Path) -> None:
    said = (trained.parents[2] / "train.out").read_text()
    assert "sample ckpt=outputs/image/tiny num=64 condition.label=0" in said
    shown = (trained.parents[2] / "train.err").read_text()
    assert "step 6/6  100%" in shown and "samples/s" in shown and "left" in shown and "loss" in shown


def test_an_existing_run_is_not_overwritten(local, tiny: list[str], trained: Path) -> None:
    before = digests(trained / "samples" / "final")
    line = one_line(local("train", *tiny, "name=tiny", cwd=trained.parents[2]))
    assert "already holds a run; add ckpt=auto" in line
    assert digests(trained / "samples" / "final") == before


def test_auto_needs_a_fixed_name(local, tiny: list[str]) -> None:
    assert "ckpt=auto needs name=" in one_line(local("train", *tiny, "ckpt=auto"))


def test_info(local, trained: Path) -> None:
    text = local("suffuse", "info", str(trained)).stdout
    assert "modality     image" in text and "step         6" in text and "val/loss" in text
    known = json.loads(local("suffuse", "info", str(trained / "checkpoints" / "step-000004.ckpt"), "--json").stdout)
    assert known["step"] == 4 and known["plugin"].startswith("suffuse-image 0.") and known["config"]["steps"] == 6
    assert known["facts"]["shape"] == [1, 8, 8] and len(known["facts"]["labels"]) == 10


# Sampling.


def test_samples_depend_on_seed_and_condition_alone(local, trained: Path, tmp_path: Path) -> None:
    base = ["sample", f"ckpt={trained}", "sampler.steps=4", "trainer=cpu"]
    assert local(*base, "num=5", "condition.label=[1,2]", "batch_size=5", "out=all").returncode == 0
    # Sample 3 alone: its seed is 3, its label the second of the two.
    assert local(*base, "num=1", "seed=3", "condition.label=2", "out=one").returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "all" / "manifest.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["condition"] for row in rows] == [{"label": v} for v in (1, 2, 1, 2, 1)]
    assert (
        rows[3]["file"] == "00003.png"
        and rows[3]["steps"] == 4
        and rows[3]["sampler"] == "dpmpp"
        and rows[3]["checkpoint"].endswith("last.ckpt")
    )
    assert digests(tmp_path / "all")["00003.png"] == digests(tmp_path / "one")["00000.png"]


@pytest.mark.slow
def test_compiled_samples_are_the_same(local, trained: Path, tmp_path: Path) -> None:
    """A batch and a half: the second has another size, and what the first returned is still there."""
    from PIL import Image

    base = ["sample", f"ckpt={trained}", "num=3", "batch_size=2", "sampler.steps=4", "trainer=cpu"]
    for name, more in (("plain", []), ("compiled", ["compile=true"])):
        assert local(*base, *more, f"out={name}").returncode == 0
    pairs = [(tmp_path / "plain" / f"0000{i}.png", tmp_path / "compiled" / f"0000{i}.png") for i in range(3)]
    for one, other in pairs:
        a, b = (np.asarray(Image.open(path)).astype(int) for path in (one, other))
        assert a.std() > 1 and np.abs(a - b).max() <= 1


def test_two_ranks_write_the_same_files(forked, trained: Path, tmp_path: Path) -> None:
    base = ["sample", f"ckpt={trained}", "num=7", "batch_size=2", "sampler=ancestral", "sampler.steps=3"]
    assert inside(tmp_path, *base, "trainer=cpu", "out=one").returncode == 0
    process = forked(tmp_path, *base, "trainer=ddp", "trainer.accelerator=cpu", "devices=2")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found = next((trained / "samples").glob("[0-9]*"))  # the default directory, which all ranks must agree on
    assert len(digests(tmp_path / "one")) == 7
    assert digests(tmp_path / "one") == digests(found)
    assert not list(found.glob(".*"))
    shutil.rmtree(found)


def test_guidance_sampler_and_weights_change_the_samples(local, trained: Path, tmp_path: Path) -> None:
    base = ["sample", f"ckpt={trained}", "num=2", "sampler.steps=8", "trainer=cpu"]
    for name, words in {
        "plain": ["guidance=1"],
        "guided": ["guidance=40"],
        "heun": ["sampler=heun"],
        "raw": ["weights=raw"],
    }.items():
        assert local(*base, *words, f"out={name}").returncode == 0
    found = [tuple(digests(tmp_path / name).values()) for name in ("plain", "guided", "heun", "raw")]
    assert len(set(found)) == 4


def test_the_preview_can_be_told_how_to_show(local, trained: Path, tmp_path: Path) -> None:
    from PIL import Image

    base = ["sample", f"ckpt={trained}", "num=4", "sampler.steps=2", "trainer=cpu"]
    for columns in (1, 4):
        assert local(*base, f"preview.columns={columns}", f"out=c{columns}").returncode == 0
    sizes = [Image.open(tmp_path / f"c{columns}" / "overview.png").size for columns in (1, 4)]
    assert sizes[0][0] < sizes[1][0] and sizes[0][1] > sizes[1][1]
    assert "preview.columns" in one_line(local(*base, "preview.colums=1", "out=c"))


def test_default_output_is_the_next_free_number(local, trained: Path) -> None:
    for number in ("001", "002"):
        assert local("sample", f"ckpt={trained}", "num=1", "sampler.steps=2", "trainer=cpu").returncode == 0
        assert (trained / "samples" / number / "00000.png").is_file()
    shutil.rmtree(trained / "samples" / "001")
    shutil.rmtree(trained / "samples" / "002")


def test_other_samples_are_not_overwritten(local, trained: Path, tmp_path: Path) -> None:
    base = ["sample", f"ckpt={trained}", "num=1", "sampler.steps=2", "trainer=cpu", "out=x"]
    assert local(*base).returncode == 0
    before = digests(tmp_path / "x")
    assert local(*base).returncode == 0  # the same samples may be written again
    assert "already holds other samples" in one_line(local(*base, "seed=1"))
    assert digests(tmp_path / "x") == before


SAMPLE_MISTAKES = [
    (["condition.label=11"], "label"),
    (["condition.label=nine"], "label"),
    (["condition.lable=1"], "did you mean"),
    (["sampler=heunn"], "did you mean 'heun'?"),
    (["weights=both"], "neither 'ema' nor 'raw'"),
    (["guidance=-1"], "guidance.scale=-1"),
    (["condition.label=a (b), c's"], "a (b), c's"),  # no value of Hydra's: taken as it is, to the conditioner
    (["preview.scale=(2"], """put quotes around the value: "preview.scale='(2'\""""),
    (["num=3,4", "batch_size=(2"], "cannot read 'batch_size=(2'"),
    (["init=a.png", "strength=0.5"], "init=a.png: no such file; give a picture"),
    (["mask=1-2"], "mask=1-2 needs init="),
    (["seed_to=3"], "belongs to interpolate=true"),
    (["seconds=2"], "takes no seconds"),
]


@pytest.mark.parametrize(("words", "text"), SAMPLE_MISTAKES)
def test_a_sampling_mistake_is_one_clear_line(local, trained: Path, words: list[str], text: str) -> None:
    assert text in one_line(local("sample", f"ckpt={trained}", "num=2", "trainer=cpu", *words))


def test_a_checkpoint_of_an_absent_plugin(local, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from suffuse.plugins import registry

    monkeypatch.setenv("SUFFUSE_DISABLE_PLUGINS", "image")
    registry.cache_clear()
    try:
        line = one_line(local("sample", f"ckpt={trained}"))
    finally:
        monkeypatch.undo()
        registry.cache_clear()
    assert "trained with suffuse-image" in line and "pip install suffuse-image" in line


def test_a_torn_checkpoint(local, trained: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes()[:1000])
    assert "not a readable checkpoint" in one_line(local("sample", f"ckpt={torn}"))


def test_checkpoints_hold_both_weights(trained: Path) -> None:
    saved = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == saved["current_model_state"].keys()
    assert any(not torch.equal(v, saved["current_model_state"][k]) for k, v in saved["state_dict"].items())
    assert saved["suffuse"]["config"]["modality"]["name"] == "image"


def test_the_module_runs_too(tmp_path: Path) -> None:
    import subprocess

    result = subprocess.run([sys.executable, "-m", "suffuse", "plugins"], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "image" in result.stdout


def test_a_further_rank_of_suffuse_train_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning starts it with the words that are left of the command, without the first."""
    monkeypatch.setattr(sys, "argv", ["suffuse", "modality=imag"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("SUFFUSE_TASK", "train")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1 and "train: modality=imag: " in capsys.readouterr().err
