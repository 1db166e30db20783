"""Latent against pixel: what a picture costs in training and in sampling, side by side, and what the codec loses.

    python benchmarks/latent_pixel.py [--sizes 64 256] [--width 64] [--batch 8] [--device cpu] [--json]
                                      [--autoencoder RUN]

The same U-Net (width, two levels, attention at the coarser) learns pixels, 2 x 2 to a position at 64 and 8 x 8 at 256
so that it fits a small machine, and latents of 4 channels, of 4 x 4 pixels at 64 and of 8 x 8 at 256. Latents are read
as from a cache, so training does not pay for the encoder; sampling pays for the decoder. With an autoencoder's run, the
peak signal-to-noise ratio and the Fréchet distance of its reconstructions of held-out pictures are added.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from suffuse.denoiser import EDMPrecond, Preconditioned
from suffuse.grid import Exponential
from suffuse.nn import ConvAutoencoder, UNet
from suffuse.noise import KeyedNoise
from suffuse.objective import EDMWeight, LogNormal, Objective
from suffuse.process import Gaussian
from suffuse.sampler import Multistep, sample
from suffuse.schedule import EDM

STEPS = 20
PATCH = {64: 2, 256: 8}
FACTOR = {64: (1, 2, 2), 256: (1, 2, 4, 4)}


def clock(run: Callable[[], Any], device: str, times: int) -> float:
    """Return the median seconds of a call, after two that are not counted.

    On a CPU one thread computes, whose own time counts: what else a machine does is no part of it.
    """
    now = time.process_time if device == "cpu" else time.perf_counter
    found = []
    for number in range(times + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        began = now()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if number > 1:
            found.append(now() - began)
    return statistics.median(found)


def speeds(size: int, width: int, batch: int, device: str) -> dict[str, Any]:
    """Measure pixels and latents at one size."""
    torch.manual_seed(0)
    multipliers = FACTOR.get(size, (1, 2, 4, 4))
    factor = 2 ** (len(multipliers) - 1)
    coder = ConvAutoencoder((3, size, size), latent=4, width=32, multipliers=multipliers, attention=False)
    coder = coder.to(device).eval()
    cases = {"pixel": ((3, size, size), PATCH.get(size, 8)), "latent": ((4, size // factor, size // factor), 1)}
    rows: dict[str, Any] = {}
    for name, (shape, patch) in cases.items():
        net = UNet(shape, width=width, multipliers=(1, 2), attention=(1,), patch=patch, coordinates=True).to(device)
        rows[name] = {
            "positions": shape[1] // patch * (shape[2] // patch),
            "numbers": int(torch.Size(shape).numel()),
            **one(net, shape, batch, device, coder if name == "latent" else None),
        }
    rows["training, latent over pixel"] = round(
        rows["latent"]["training images/s"] / rows["pixel"]["training images/s"], 2
    )
    return rows


def one(net: UNet, shape: tuple[int, ...], batch: int, device: str, coder: ConvAutoencoder | None) -> dict[str, float]:
    """Measure a network, with a decoder behind its samples where there is one."""
    process, what = Gaussian(EDM()), EDMPrecond(sigma_data=0.5)
    denoiser, objective = Preconditioned(net, process, what), Objective(EDMWeight(sigma_data=0.5), LogNormal(), what)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    noise = KeyedNoise(torch.arange(batch, device=device))
    x0 = torch.randn(batch, *shape, device=device) * 0.5

    def train() -> None:
        optimizer.zero_grad()
        objective(denoiser, x0, None, noise).total.backward()
        optimizer.step()

    @torch.inference_mode()
    def draw() -> None:
        z = sample(denoiser, process, Multistep(STEPS), Exponential()(process.schedule, STEPS), noise, x0)
        if coder is not None:
            coder.decode(z)

    @torch.inference_mode()
    def decode() -> None:
        assert coder is not None
        coder.decode(x0)

    found = {
        "training images/s": round(batch / clock(train, device, 5), 2),
        "sampling s/image": round(clock(draw, device, 3) / batch, 4),
    }
    return found | ({} if coder is None else {"of it decoding": round(clock(decode, device, 3) / batch, 4)})


def lost(run: str) -> dict[str, float]:
    """Return the figures of the reconstructions of an autoencoder's run on the held-out pictures of its own data."""
    found = json.loads((Path(run) / "metrics.json").read_text())
    return {name: found[name] for name in ("psnr", "ssim", "rfid", "rfid_real") if name in found}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autoencoder", default=None, help="run directory of task=autoencoder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    found: dict[str, Any] = {str(size): speeds(size, args.width, args.batch, args.device) for size in args.sizes}
    if args.autoencoder:
        found["codec"] = lost(args.autoencoder)
    if args.json:
        print(json.dumps(found))
        return
    for size, rows in found.items():
        print(size)
        for name, row in rows.items():
            print(f"  {name}: {row}")


if __name__ == "__main__":
    main()
