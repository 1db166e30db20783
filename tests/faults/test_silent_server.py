"""A server of Weights & Biases that does not answer, from the start or from some moment on: the run goes on to its end.

The server is a stand-in on this machine that takes runs as W&B's does, as far as its client asks.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from suffuse.training import loggers

PATIENCE = 4.0


class Server(ThreadingHTTPServer):
    """Answers until `silent` is set; from then on it takes requests and says nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.silent, self.closed = threading.Event(), threading.Event()
        self.asked: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        self.server.asked.append(f"{self.path} {text}")
        if self.server.silent.is_set():
            self.server.closed.wait(600)
            return
        entity = {"id": "e", "name": "me"}
        project = {"id": "p", "name": "suffuse", "entity": entity}
        if "upsertBucket" in text:
            bucket = {"id": "b", "name": json.loads(text)["variables"]["name"], "displayName": "run", "config": "{}"}
            said: Any = {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": True}}
        elif "RunResumeStatus" in text:
            said = {"model": {**project, "bucket": None}}
        elif "createRunFiles" in text:
            url = f"http://127.0.0.1:{self.server.server_port}/kept"
            files = [{"name": name, "uploadUrl": url} for name in json.loads(text)["variables"]["files"]]
            said = {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        else:
            said = {}
        answer = json.dumps({"data": said} if self.path == "/graphql" else {"limits": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST  # noqa: N815


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    """Return a server that answers, for clients with little patience."""
    monkeypatch.setattr(loggers, "PATIENCE", PATIENCE)
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield found
        found.closed.set()
        found.shutdown()
        thread.join()


def env(server: Server) -> dict[str, str]:
    """Return how a run finds the server."""
    return {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"}


def finished(process: Any, run: Path, steps: int) -> str:
    """Return what a run printed that has all its figures and samples."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in said, said
    with (run / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["loss"]] == list(range(1, steps + 1))
    assert (run / "metrics.json").is_file() and (run / "samples/final/manifest.jsonl").is_file()
    return said


def test_silent_from_the_start(forked, short, server: Server, tmp_path: Path) -> None:
    server.silent.set()
    began = time.monotonic()
    process = forked(tmp_path, "train", *short("steps=4", "logger=wandb"), **env(server))
    run = tmp_path / "outputs/image/run"
    said = finished(process, run, 4)
    assert time.monotonic() - began < 100 and server.asked
    found = [line for line in said.splitlines() if line.startswith("W&B ")]
    assert len(found) == 1 and found[0].startswith("W&B logs offline: the server takes no run ("), said
    assert found[0].endswith("; send the run later with `wandb sync`")
    (kept,) = run.glob(f"wandb/offline-run-*-{(run / 'wandb_id').read_text()}/run-*.wandb")
    assert b"grad_norm" in kept.read_bytes()


def test_silent_from_some_moment_on(forked, short, until, server: Server, tmp_path: Path) -> None:
    process = forked(tmp_path, "train", *short("steps=12", "logger=wandb"), **env(server))
    run = tmp_path / "outputs/image/run"
    until(lambda: (run / "checkpoints/step-000003.ckpt").is_file(), process)
    server.silent.set()
    said = finished(process, run, 12)
    found = [line for line in said.splitlines() if line.startswith("W&B ")]
    (folder,) = (run / "wandb").glob("run-*")
    where = folder.relative_to(tmp_path)
    assert found == [f"W&B has not taken all within {PATIENCE:.0f} s; send the rest later with `wandb sync {where}`"]
    (kept,) = folder.glob("run-*.wandb")
    assert kept.read_bytes().count(b"grad_norm") >= 12


def test_a_process_of_wandb_that_is_killed(forked, short, until, server: Server, tmp_path: Path) -> None:
    process = forked(tmp_path, "train", *short("steps=12", "logger=wandb"), **env(server))
    run = tmp_path / "outputs/image/run"
    until(lambda: (run / "checkpoints/step-000003.ckpt").is_file(), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.is_file():
        process.kill()
        pytest.skip("this system does not list the children of a process")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    said = finished(process, run, 12)
    found = [line for line in said.splitlines() if line.startswith("W&B ")]
    assert len(found) == 1 and found[0].startswith("W&B has ended ("), said
    assert "; the run goes on, metrics.csv is complete, and `wandb sync` sends outputs/image/run/wandb/run-" in found[0]


@pytest.mark.slow
def test_a_server_that_answers_is_not_spoken_of(forked, short, server: Server, tmp_path: Path) -> None:
    process = forked(tmp_path, "train", *short("steps=4", "logger=wandb"), **env(server))
    said = finished(process, tmp_path / "outputs/image/run", 4)
    assert "W&B" not in said, said
    assert any("file_stream" in asked and "grad_norm" in asked for asked in server.asked)
