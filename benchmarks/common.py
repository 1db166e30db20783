"""What the benchmarks share: the words of their commands, composed configs, and CUDA graphs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import OmegaConf
from suffuse.app import compose_train


def throughput_parser(doc: str | None, **counts: int) -> argparse.ArgumentParser:
    """Return the parser of a benchmark of one network; `counts` are its whole numbers and their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="dit")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--compile", action="store_true")
    for name, value in counts.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("overrides", nargs="*")
    return parser


def composed(*words: str) -> dict[str, Any]:
    """Return the config of a run of pictures on the CPU, as plain values."""
    cfg = compose_train(["modality=image", "trainer=cpu", "name=benchmark", *words])
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return the replay of a CUDA graph of `run`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    whole = torch.cuda.CUDAGraph()
    with torch.cuda.graph(whole):
        run()
    return whole.replay
