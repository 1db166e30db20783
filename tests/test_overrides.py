"""The words of a command line: what is understood, and what is said of a slip."""

from __future__ import annotations

import pytest
from suffuse.errors import ConfigError, suggest
from suffuse.overrides import check, check_limits, split, translate


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("a=1", ("", "a", "1")),
        ("+a.b=x=y", ("+", "a.b", "x=y")),
        ("++a=", ("++", "a", "")),
        ("~a", ("~", "a", "")),
        ("data@_global_=x", ("", "data", "x")),
    ],
)
def test_split(word: str, parts: tuple[str, str, str]) -> None:
    assert split(word) == parts


def test_a_number_for_guidance_is_its_scale() -> None:
    assert translate(["guidance=2.5", "a=1"]) == ["guidance=cfg", "guidance.scale=2.5", "a=1"]
    assert translate(["guidance=none"]) == ["guidance=none"]


SLIPS = [
    ("train", "sampler=heunn", "sampler=heunn: no such option; did you mean 'heun'?"),
    (
        "train",
        "trainer=mainframe",
        "trainer=mainframe: no such option; options: auto, cpu, ddp, fsdp, gpu, slurm, slurm_fsdp",
    ),
    ("train", "sampler.stps=3", "unknown key 'sampler.stps'; did you mean 'sampler.steps'?"),
    ("train", "every.previw=3", "unknown key 'every.previw'; did you mean 'every.preview'?"),
    ("train", "sede=3", "unknown key 'sede'; did you mean 'seed'?"),
    ("train", "steps=0", "steps=0 is out of range; it must be at least 1"),
    ("train", "steps=few", "steps=few is not a whole number"),
    ("train", "data.batch_size=-1", "data.batch_size=-1 is out of range; it must be at least 1"),
    ("train", "hello", "'hello' is not of the form key=value"),
    ("sample", "num=0", "num=0 is out of range; it must be at least 1"),
    ("sample", "samplr=heun", "unknown key 'samplr'; did you mean 'sampler'?"),
    ("sample", "sampler.step=1", "unknown key 'sampler.step'; did you mean 'sampler.steps'?"),
    ("sample", "model=dit", "unknown key 'model'"),
]


@pytest.mark.parametrize(("job", "word", "message"), SLIPS)
def test_a_slip_is_named_with_what_was_meant(job: str, word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check([word], job)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("train", ["modality=image", "sampler=heun", "sampler.steps=3", "steps=5", "name=x", "data.batch_size=8"]),
        ("train", ["+anything.new=1", "hydra.verbose=true", "~logger", "sampler=euler,heun", "steps=1,2"]),
        ("train", ["data=image/folder", "data.path=/nowhere", "optimizer.lr=1e-3", "trainer=ddp", "devices=2"]),
        ("sample", ["ckpt=x", "num=3", "condition.label=[0,1]", "condition.gap=1.5", "out=/x", "trainer=ddp"]),
        ("sample", ["guidance=cfg", "guidance.scale=2", "grid=karras", "weights=raw"]),
    ],
)
def test_what_exists_passes(job: str, words: list[str]) -> None:
    check(words, job)


def test_limits_of_a_composed_job() -> None:
    check_limits({"steps": 1, "every": {"log": 0}, "devices": "auto"})
    with pytest.raises(ConfigError, match=r"every.log=-1 is out of range"):
        check_limits({"every": {"log": -1}})


def test_suggest_lists_when_nothing_is_near() -> None:
    assert suggest("zzz", ["b", "a"]) == "; known: a, b"
    assert suggest("zzz", []) == ""
