"""A training step of a U-Net with channels last beside the usual layout: which of the two pays, on this machine.

    python benchmarks/memory_format.py [--json] [--device cpu] [--model unet_small] [--batch 8] [--steps 10]
        [--rounds 3] [--precision 32-true] [--compile] [override ...]

``ratio`` is images/s with channels last over images/s without, the same weights and inputs in turns in one run.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
from common import composed, throughput_parser
from suffuse.build import build

SHAPE = (3, 64, 64)


def main() -> None:
    """Measure and print."""
    parser = throughput_parser(__doc__, batch=8, steps=10, rounds=3)
    parser.set_defaults(model="unet_small")
    args = parser.parse_args()
    cfg = composed(f"model={args.model}", *args.overrides)
    x = torch.randn(args.batch, *SHAPE, device=args.device)
    noise = torch.rand(args.batch, device=args.device)
    rates: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
            torch.manual_seed(0)
            network: Any = build(cfg["model"], "model", shape=SHAPE, cond_dim=0, context_dim=0).to(args.device)
            network, given = network.to(memory_format=layout), x.contiguous(memory_format=layout)
            optimizer = torch.optim.AdamW(network.parameters(), fused=True)
            if args.compile:
                network.compile()
            times = []
            for _ in range(args.steps + 2):
                began = time.perf_counter()
                with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16-mixed"):
                    loss = network(given, noise).sub(x).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if args.device == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            rates.setdefault(name, []).append(args.batch / statistics.median(times[2:]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "model": args.model, "batch": args.batch, "size": SHAPE[-1], "device": args.device,
        "precision": args.precision, "compiled": args.compile, "torch": torch.__version__, "images/s": medians,
        "ratio": medians["channels last"] / medians["contiguous"],
    }  # fmt: skip
    print(json.dumps(result, indent=2) if args.json else "\n".join(f"{k:<12} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
