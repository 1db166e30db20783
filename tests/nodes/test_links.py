"""Two nodes that are network namespaces, with a cable between them: the losses of one process; a cable that is pulled.

A pulled cable is not a dead process: nothing arrives that says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `ip`."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def refusal() -> str:
    """Return why this process may not make namespaces, or nothing."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "no ip: apt-get install iproute2"
    name = f"try{os.getpid()}"
    said = ip("netns", "add", name)
    ip("netns", "del", name)
    return said.stderr.strip()


class Node(NamedTuple):
    """A namespace, its end of the cable, and its address."""

    name: str
    cable: str
    address: str

    def inside(self, *words: str) -> list[str]:
        """Return a command as it is started in the namespace."""
        return ["ip", "netns", "exec", self.name, *words]


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Return two nodes that see each other alone."""
    if why := refusal():
        pytest.skip(f"network namespaces are not permitted: {why}")
    mark = os.getpid() % 100000
    found = [
        Node(f"suffuse{mark}{end}", f"sf{mark}{end}", f"10.213.7.{number}") for number, end in ((1, "a"), (2, "b"))
    ]
    try:
        for node in found:
            assert not ip("netns", "add", node.name).returncode
        a, b = found
        assert not ip("-n", a.name, "link", "add", a.cable, "type", "veth", "peer", b.cable, "netns", b.name).returncode
        for node in found:
            ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", node.cable)
            ip("-n", node.name, "link", "set", "lo", "up")
            assert not ip("-n", node.name, "link", "set", node.cable, "up").returncode
        yield found
    finally:
        for node in found:
            ip("netns", "del", node.name)


@pytest.fixture
def train(runs, nodes: list[Node], launch, agent, tmp_path: Path):
    """Return a function that starts the agents of both nodes."""

    def start(steps: int = runs.steps) -> list:
        words, meet = runs.words("ddp", nodes=2, steps=steps), f"{nodes[0].address}:29500"
        # The name of this machine, by which the first node would know itself, is of no namespace.
        commands = [agent(meet, *words, address=node.address, host=node is nodes[0]) for node in nodes]
        return [
            launch(tmp_path, *node.inside(*command), GLOO_SOCKET_IFNAME=node.cable)
            for node, command in zip(nodes, commands, strict=True)
        ]

    return start


@pytest.mark.slow
def test_losses_are_those_of_one_process(runs, alone: Path, train, tmp_path: Path) -> None:
    ended = [one.end() for one in train()]
    assert [code for code, _ in ended] == [0, 0], ended
    torch.testing.assert_close(runs.losses(tmp_path), runs.losses(alone), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("patience", [15, 5])
def test_a_pulled_cable_ends_both(
    runs, nodes: list[Node], train, until, started, tmp_path: Path, patience: int
) -> None:
    """The agent of the node that is cut off ends when the system gives up what it wants to send: after 15 minutes.

    Where it gives up sooner, a collective may find out before the line between the ranks does.
    """
    for node in nodes:
        subprocess.run(node.inside("sysctl", "-qw", f"net.ipv4.tcp_retries2={patience}"), check=True)
    agents = train(steps=1000000)
    until((tmp_path / runs.last).exists, *agents)
    began = time.monotonic()
    assert not ip("-n", nodes[0].name, "link", "set", nodes[0].cable, "down").returncode
    for one in agents:
        until(lambda one=one: not started(one.pid), one, seconds=150)
        assert not started(one.pid), one.log.read_text()
    print(f"all workers had ended {time.monotonic() - began:.0f} s after the cable was pulled")
    for one in agents if patience < 15 else agents[:1]:
        assert one.end(120)[0] == 1
    for one in agents:
        said = one.log.read_text()
        lines = [line for line in said.splitlines() if "train: " in line]
        assert len(lines) == 1 and "the last checkpoint is " in lines[0], said
        assert not any("suffuse" in line for line in said.splitlines() if line.startswith("  File ")), said
