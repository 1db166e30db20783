"""Every option of the group `sampler` passes the sampler's contract, and the table of the docs knows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from suffuse.build import build
from suffuse.plugins import CONF
from suffuse.testing import SamplerContract

OPTIONS = {path.stem: path for path in sorted((CONF / "sampler").glob("*.yaml"))}

ORDERS = {
    "adaptive": None, "deis": 3, "dpm1": 1, "dpm2": 2, "dpm3": 3, "dpmpp": 2, "dpmpp_2m": 2, "dpmpp_2s": 2,
    "dpmpp_3m": 3, "dpmpp_3s": 3, "ddim": 1, "euler": 1, "flow_ab": 2, "flow_euler": 1, "flow_heun": 2, "heun": 2,
    "lms": 2.8, "pndm": 2, "unipc": 3,
}  # fmt: skip
"""Of those that follow the ODE; pndm starts with Euler's step and lms' error is large, so its slope comes late."""

WEAK = {
    "ancestral": 1, "ddpm": 1, "sde": 2, "dpmpp_2m_sde": 2, "dpmpp_3m_sde": 2, "dpmpp_sde": 2, "sa_solver": 2,
}  # fmt: skip


def _contract(name: str) -> type[SamplerContract]:
    node = yaml.safe_load(OPTIONS[name].read_text())

    def make(self, steps):
        return build({**node, "steps": steps}, "sampler")

    members = {
        "make": make,
        "order": ORDERS.get(name),
        "weak": WEAK.get(name),
        "tokens": name not in ("adaptive", "churn", "restart", "repaint"),
        "adaptive": name == "adaptive",
    }
    return type(f"Test_{name}", (SamplerContract,), members)


for _name in OPTIONS:
    if _name not in (
        "mask_ancestral",
        "mask_cached",
        "tau_leaping",
        "confidence",
    ):  # of tokens: tests/test_categorical.py
        globals()[f"Test_{_name}"] = _contract(_name)


@pytest.mark.parametrize("name", OPTIONS)
def test_documented(name):
    first = OPTIONS[name].read_text().splitlines()[0]
    assert re.fullmatch(r"# .{10,90}", first)
    page = (Path(__file__).parents[1] / "core" / "docs" / "sampler.md").read_text()
    assert f"`{name}`" in page
