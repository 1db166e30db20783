"""Every check that needs a GPU, in parts of at most nine minutes; each part writes one small JSON.

    python benchmarks/gpu_suite.py --list
    python benchmarks/gpu_suite.py PART [PART ...] [--out benchmarks/results]

Parts: `train_throughput_b` and `train_throughput_xl` (a step of DiT-B/2 and DiT-XL/2 beside a loop by hand and the
step of diffusers' examples: ratio, MFU, memory), `sample_throughput` (images/s at 20 steps beside diffusers),
`memory_format` (a U-Net's step with channels last beside the usual layout), `data_wait` (what of the time is spent
waiting for twelve decoders), `tests` (the suite's gpu marks: no synchronisation, noise bit for bit, the loop in a CUDA
graph), `sampler` (overhead per step beside diffusers and azula
where installed), `graph` (the sampling loop in a CUDA graph against the bare network's), `training` (samples/s and
memory of the digit and DiT models in float32 and bf16, compiled and not), `molecules` (20 minutes on all molecules of
7 heavy atoms with explicit hydrogens: name it three times, each call trains eight minutes more, and every one ends in
10,000 judged samples and molecules per second), `audio` (15 minutes on the Free Spoken Digit Dataset, named twice;
needs its recordings in ../shared/data/fsdd), `video` (15 minutes on bouncing shapes of 32 frames at 64 x 64, named
twice, ending in the attributes of 200 clips and of 200 rolled out to 128 frames), `video_speed` (frames/s and memory
of a DiT-B on clips of 16 frames at 128 x 128, with and without checkpointing), `image_text` (15 minutes on the
rendered shapes with captions, named twice, ending in the attributes of 1,200 samples), `emoji` (text to emoji in
pixels, named twice; needs ../shared/data/noto_emoji), `emoji_autoencoder` and then `emoji_latent` (the same in
latents, one call each), `latent_pixel` (training and sampling of pixels and of latents at 64 and 256 pixels, and what
the emoji autoencoder loses), `shapes` (15 minutes on captioned solids of 2,048 points, named twice, ending in the
attributes of 200 clouds and 1-NNA against real ones), `shapes_upsampler` (as long on 1,024 points to 4,096, fed by
`shapes`), `shapes_speed` (clouds/s and memory of the 43 M model on 2,048 and 8,192 points).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def tests() -> dict[str, Any]:
    """Run the tests marked gpu."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    return {"exit": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]}


def sampler() -> dict[str, Any]:
    """Measure the sampler's overhead on the GPU."""
    script = ROOT / "benchmarks" / "sampler_overhead.py"
    done = subprocess.run(
        [sys.executable, str(script), "--json", "--device", "cuda"], capture_output=True, text=True, check=False
    )
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {"error": done.stderr[-2000:]}


def graph() -> dict[str, Any]:
    """Time per step of sampling over the bare network's, a small DiT at batch 1: eager, and both in CUDA graphs."""
    import statistics

    import torch
    from common import captured
    from suffuse.denoiser import EDMPrecond, Preconditioned
    from suffuse.grid import Exponential
    from suffuse.nn import DiT
    from suffuse.noise import KeyedNoise
    from suffuse.process import Gaussian
    from suffuse.sampler import Multistep, PredictorCorrector, sample
    from suffuse.schedule import EDM

    steps, shape = 20, (4, 32, 32)
    process = Gaussian(EDM())
    network = DiT(shape, width=384, depth=12, heads=6, patch=2).cuda().eval()
    denoiser = Preconditioned(network, process, EDMPrecond(0.5))
    like = torch.empty(1, *shape, device="cuda")
    noise = KeyedNoise(torch.zeros(1, dtype=torch.int64, device="cuda"))
    level = torch.zeros(1, device="cuda")

    def bare() -> Any:
        x = like
        for _ in range(steps):
            x = network(like, level, None)
        return x

    def clock(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(30):
            torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - began) / steps * 1e6)
        return statistics.median(times[5:])

    rows: dict[str, Any] = {
        "unit": "microseconds per step",
        "steps": steps,
        "weights": sum(p.numel() for p in network.parameters()),
    }
    with torch.inference_mode():
        eager, replayed = clock(bare), clock(captured(bare))
        rows["bare network"] = {"eager": eager, "graph": replayed}
        for name, sampler in (("dpmpp_2m", Multistep(steps)), ("unipc", PredictorCorrector(steps, order=2))):
            grid = Exponential()(process.schedule, steps)

            def loop(sampler: Any = sampler, grid: Any = grid) -> Any:
                return sample(denoiser, process, sampler, grid, noise, like)

            found = {"eager": clock(loop), "graph": clock(captured(loop))}
            rows[name] = {**found, "eager ratio": found["eager"] / eager, "graph ratio": found["graph"] / replayed}
    return rows


CASES = {
    "unet float32": ["model=unet_small"],
    "unet bf16": ["model=unet_small", "trainer.precision=bf16-mixed"],
    "unet bf16 compiled": ["model=unet_small", "trainer.precision=bf16-mixed", "compile=true"],
    "dit_s bf16": ["model=dit_s", "objective=flow", "schedule=flow", "trainer.precision=bf16-mixed"],
}


def training() -> dict[str, Any]:
    """Train each case for some steps and read its own throughput log."""
    import csv

    rows = {}
    for name, words in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            base = ["modality=image", "trainer=gpu", "trainer.precision=32-true", "steps=300", "every.log=50", "name=g"]
            quiet = ["every.validate=0", "every.preview=0", "every.checkpoint=0", "metrics=none", "num=4"]
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "suffuse", "train", *base, *quiet, "data.batch_size=512", *words],
                cwd=folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                rows[name] = {"error": done.stderr[-2000:]}
                continue
            with (Path(folder) / "outputs/image/g/metrics.csv").open() as file:
                last = list(csv.DictReader(file))[-1]
            rows[name] = {key: float(value) for key, value in last.items() if key.startswith("perf/")}
            rows[name]["seconds"] = time.perf_counter() - began
    return rows


MOLECULES = [
    "modality=molecules", "data.heavy=7", "data.hydrogens=explicit", "model=molecules/m", "data.batch_size=1024",
    "data.workers=12", "optimizer.lr=1e-3", "lr_schedule.hold=0.7", "steps=16000", "every.preview=0",
    "every.validate=0", "every.checkpoint=500", "metrics=none", "num=16", "trainer=gpu",
    "trainer.precision=bf16-mixed", "ckpt=auto", "name=gpu",
]  # fmt: skip
MINUTES = 7.0


def trained(words: list[str]) -> int | None:
    """Train for some minutes more, save, and return the exit status."""
    import signal

    train = subprocess.Popen([sys.executable, "-m", "suffuse", "train", *words], cwd=ROOT)
    try:
        train.wait(MINUTES * 60)
    except subprocess.TimeoutExpired:
        train.send_signal(signal.SIGTERM)
        train.wait()
    return train.returncode


def molecules() -> dict[str, Any]:
    """Train the molecule model for some minutes more, draw 10,000 and judge them."""
    run = ROOT / "outputs" / "molecules" / "gpu"
    code = trained(MOLECULES)
    words = [f"ckpt={run}", "num=10000", "batch_size=1000", "trainer=gpu", f"out={run / 'drawn'}"]
    began = time.perf_counter()
    drawn = subprocess.run(
        [sys.executable, "-m", "suffuse", "sample", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if drawn.returncode:
        return {"train exit": code, "error": drawn.stderr[-2000:]}
    seconds = time.perf_counter() - began
    report = json.loads((run / "drawn" / "report.json").read_text())
    shares = {name: rate["value"] for name, rate in report["rates"].items()}
    rate = [line for line in drawn.stderr.splitlines() if "/s" in line][-1:]
    return {"train exit": code, "seconds to draw and judge": seconds, "last progress": rate, **shares}


AUDIO = [
    "modality=audio", "experiment=audio/fsdd", f"data.path={ROOT.parent / 'shared' / 'data' / 'fsdd' / 'recordings'}",
    "model.width=256", "model.blocks=2", "model.dropout=0.1", "data.batch_size=128", "data.workers=4", "steps=30000",
    "optimizer.lr=6e-4", "every.preview=0", "every.checkpoint=1000", "metrics_num=1000", "trainer=gpu",
    "trainer.precision=bf16-mixed", "ckpt=auto", "name=gpu",
]  # fmt: skip


def audio() -> dict[str, Any]:
    """Train on spoken digits for some minutes more; the run's own figures once it is done."""
    code = trained(AUDIO)
    figures = ROOT / "outputs" / "audio" / "gpu" / "metrics.json"
    return {"train exit": code, **(json.loads(figures.read_text()) if figures.is_file() else {})}


VIDEO = [
    "modality=video", "data.size=64", "data.frames=32", "data.count=20000", "data.later=0.3", "model=video/dit_s",
    "model.patch=[4,8,8]", "model.levels=4", "model.placed=384", "data.batch_size=128", "steps=30000",
    "optimizer.lr=5e-4", "every.preview=0", "every.validate=0", "every.checkpoint=1000", "metrics_num=200",
    "trainer=gpu", "trainer.precision=bf16-mixed", "ckpt=auto", "name=gpu",
]  # fmt: skip


def video() -> dict[str, Any]:
    """Train on bouncing shapes for some minutes more; attributes of clips and of clips of four times the length."""
    code = trained(VIDEO)
    run = ROOT / "outputs" / "video" / "gpu"
    found: dict[str, Any] = {"train exit": code}
    script = ROOT / "benchmarks" / "video_rollout.py"
    for name, frames in (("clips", 32), ("rollout", 128)):
        done = subprocess.run(
            [sys.executable, str(script), str(run), "--frames", str(frames), "--num", "200", "--json"],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        found[name] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr[-1000:]}
    return found


def video_speed() -> dict[str, Any]:
    """Frames per second, share of the card's peak and memory of training, with and without activation checkpointing."""
    import torch
    from suffuse.denoiser import Flow, Preconditioned
    from suffuse.nn import DiT
    from suffuse.noise import KeyedNoise
    from suffuse.objective import FlowWeight, LogitNormal, Objective
    from suffuse.process import Gaussian
    from suffuse.schedule import RectifiedFlow
    from suffuse.state import Dense

    rows: dict[str, Any] = {}
    shape, batch = (16, 16, 32, 32), 8  # a latent clip: 4096 tokens of two by two
    for checkpointing in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        network = DiT(shape, patch=(1, 2, 2), width=768, depth=12, heads=12, checkpointing=checkpointing).cuda()
        denoiser = Preconditioned(network, Gaussian(RectifiedFlow(), Dense((2,))), Flow(sigma_data=1.0))
        objective = Objective(FlowWeight(), LogitNormal(0.0, 1.0), Flow(sigma_data=1.0))
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        x0 = torch.randn(batch, *shape, device="cuda")
        noise = KeyedNoise(torch.arange(batch, device="cuda"))
        times = []
        for step in range(15):
            torch.cuda.synchronize()
            began = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16):
                loss = objective(denoiser, x0, None, noise, step).total
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        seconds = sorted(times[5:])[5]
        weights = sum(p.numel() for p in network.parameters())
        tokens = 16 * 16 * 16
        flops = batch * 3 * (2 * weights * tokens + 4 * 12 * 768 * tokens**2)
        rows["checkpointing" if checkpointing else "plain"] = {
            "frames/s": batch * 16 / seconds, "TFLOP/s": flops / seconds / 1e12, "MFU of 989 TFLOP/s":
            flops / seconds / 989e12, "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
        }  # fmt: skip
    return rows


GPU = ["trainer=gpu", "trainer.precision=bf16-mixed", "ckpt=auto", "every.preview=0", "every.checkpoint=1000"]
IMAGE_TEXT = [
    "modality=image", "experiment=image/shapes_text", "data.count=200000", "data.batch_size=256", "model.width=128",
    "model.multipliers=[1,1.5]", "model.blocks=2", "model.placed=384", "conditioner.width=256", "steps=40000",
    "optimizer.lr=6e-4", "metrics_num=1200", "name=gpu_text", *GPU,
]  # fmt: skip
EMOJI = ["modality=image", f"data.path={ROOT.parent / 'shared' / 'data' / 'noto_emoji'}", "data.batch_size=128", *GPU]


def _image(words: list[str]) -> dict[str, Any]:
    """Train a run of pictures for some minutes more; its own figures once it is done."""
    code = trained(words)
    name = next(word.partition("=")[2] for word in words if word.startswith("name="))
    figures = ROOT / "outputs" / "image" / name / "metrics.json"
    return {"train exit": code, **(json.loads(figures.read_text()) if figures.is_file() else {})}


def image_text() -> dict[str, Any]:
    """Train on rendered shapes with captions for some minutes more; attributes by kind, also of what was held out."""
    return _image(IMAGE_TEXT)


def emoji() -> dict[str, Any]:
    """Train text to emoji in pixels for some minutes more; retrieval and Fréchet distance."""
    return _image(["experiment=image/emoji", "model.width=128", "steps=20000", "name=gpu_emoji", *EMOJI])


def emoji_autoencoder() -> dict[str, Any]:
    """Train the autoencoder of emoji; PSNR, SSIM and Fréchet distance of reconstructions."""
    return _image(["experiment=image/emoji_autoencoder", "model.width=64", "steps=12000", "name=gpu_emoji_ae", *EMOJI])


def emoji_latent() -> dict[str, Any]:
    """Train text to emoji in the latents of `emoji_autoencoder`; retrieval and Fréchet distance."""
    ckpt = ROOT / "outputs" / "image" / "gpu_emoji_ae"
    words = ["experiment=image/emoji_latent", f"codec.ckpt={ckpt}", "model.width=128", "steps=20000"]
    return _image([*words, "name=gpu_emoji_latent", *EMOJI])


def latent_pixel() -> dict[str, Any]:
    """Training and sampling speed of pixels and latents at 64 and 256 pixels, and what the codec loses."""
    script, run = ROOT / "benchmarks" / "latent_pixel.py", ROOT / "outputs" / "image" / "gpu_emoji_ae"
    more = ["--autoencoder", str(run)] if (run / "metrics.json").is_file() else []
    done = subprocess.run(
        [sys.executable, str(script), "--json", "--device", "cuda", "--batch", "32", "--width", "128", *more],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {"error": done.stderr[-2000:]}


SHAPES = [
    "modality=shapes", "model=shapes/set_s", "data.points=2048", "data.batch_size=64", "data.workers=12",
    "data.count=65536", "steps=16000", "optimizer.lr=6e-4", "every.preview=0", "every.validate=0",
    "every.checkpoint=1000", "metrics_num=200", "preview.turn=false", "trainer=gpu", "trainer.precision=bf16-mixed",
    "ckpt=auto",
]  # fmt: skip


def shapes() -> dict[str, Any]:
    """Train on captioned solids of 2,048 points for some minutes more; the run's own figures once it is done."""
    code = trained([*SHAPES, "name=gpu"])
    figures = ROOT / "outputs" / "shapes" / "gpu" / "metrics.json"
    return {"train exit": code, **(json.loads(figures.read_text()) if figures.is_file() else {})}


def shapes_upsampler() -> dict[str, Any]:
    """Train an upsampler from 1,024 to 4,096 points for some minutes more, and feed it what `shapes` draws."""
    more = ["experiment=shapes/upsampler", "data.points=4096", "data.batch_size=32", "metrics_num=100", "name=up"]
    code, runs = trained([*SHAPES, *more]), ROOT / "outputs" / "shapes"
    figures = runs / "up" / "metrics.json"
    found: dict[str, Any] = {"train exit": code, **(json.loads(figures.read_text()) if figures.is_file() else {})}
    words = [f"ckpt={runs / 'gpu'}", "num=16", "points=1024", f"out={runs / 'gpu' / 'coarse'}"]
    given = f"condition.cloud={runs / 'gpu' / 'coarse'}"
    for job in (words, [f"ckpt={runs / 'up'}", "num=16", given, f"out={runs / 'up' / 'fine'}"]):
        done = subprocess.run(
            [sys.executable, "-m", "suffuse", "sample", *job], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return {**found, "error": done.stderr[-1000:]}
    return found


def shapes_speed() -> dict[str, Any]:
    """Clouds per second and peak memory of training the 43 M model, which costs linearly in the points."""
    import torch
    from suffuse_shapes.nn import SetTransformer

    rows: dict[str, Any] = {}
    for points in (2048, 8192):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        size = {"width": 256, "latent": 384, "latents": 128, "depth": 6, "thoughts": 2, "heads": 8, "ratio": 4.0}
        network = SetTransformer((6, points), fourier=16, highest=32.0, **size).cuda()  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        x, noise, times = torch.randn(16, 6, points, device="cuda"), torch.zeros(16, device="cuda"), []
        for _ in range(15):
            torch.cuda.synchronize()
            began = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16):
                loss = network(x, noise).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        rate = 16 / sorted(times[5:])[5]
        rows[f"{points} points"] = {"clouds/s": rate, "peak GiB": torch.cuda.max_memory_allocated() / 2**30}
    return rows


def _script(name: str, *words: str) -> dict[str, Any]:
    """Run a benchmark on the GPU and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), "--json", "--device", "cuda", *words],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {"error": done.stderr[-2000:]}


BF16 = ["--precision", "bf16-mixed", "--compile"]


def train_throughput_b() -> dict[str, Any]:
    """A DiT-B/2 step on latents of 256 pixels, bf16, compiled: ours, by hand and diffusers'; MFU and memory."""
    return _script("train_throughput.py", "--model", "dit_b", "--batch", "256", "--steps", "60", "--rounds", "3", *BF16)


def train_throughput_xl() -> dict[str, Any]:
    """A DiT-XL/2 step on latents of 256 pixels, bf16, compiled: ours, by hand and diffusers'; MFU and memory."""
    return _script(
        "train_throughput.py", "--model", "dit_xl", "--batch", "128", "--steps", "40", "--rounds", "2", *BF16
    )


def sample_throughput() -> dict[str, Any]:
    """Images/s at 20 steps of a DiT-B/2 and a DiT-XL/2 beside diffusers, batches of 1 and 64, also in a CUDA graph."""
    return {
        f"{model} batch {batch}": _script(
            "sample_throughput.py", "--model", model, "--batch", batch, "--precision", "bf16-mixed"
        )
        for model in ("dit_b", "dit_xl")
        for batch in ("1", "64")
    }


def memory_format() -> dict[str, Any]:
    """Images/s of a U-Net's training step with channels last beside the usual layout, float32, bf16, bf16 compiled."""
    found = {}
    for words in ([], BF16[:2], BF16):
        found[" ".join(words) or "float32"] = _script("memory_format.py", "--batch", "64", *words)
    return found


def data_wait() -> dict[str, Any]:
    """Share of the time that a DiT-S waits for data decoded by twelve processes, from its own log."""
    import csv

    with tempfile.TemporaryDirectory() as folder:
        words = [
            "modality=image", "experiment=image/shapes_text", "trainer=gpu", "steps=400", "every.log=100",
            "every.validate=0", "every.preview=0", "every.checkpoint=0", "metrics=none", "num=4",
            "data.batch_size=256", "data.workers=12", "name=g",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "suffuse", "train", *words], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return {"error": done.stderr[-2000:]}
        with (Path(folder) / "outputs/image/g/metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row.get("perf/data_wait")]
        return {key: float(value) for key, value in rows[-1].items() if key.startswith("perf/") and value}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "train_throughput_b": train_throughput_b,
    "train_throughput_xl": train_throughput_xl,
    "sample_throughput": sample_throughput,
    "memory_format": memory_format,
    "data_wait": data_wait,
    "tests": tests,
    "sampler": sampler,
    "graph": graph,
    "training": training,
    "molecules": molecules,
    "audio": audio,
    "video": video,
    "video_speed": video_speed,
    "shapes": shapes,
    "shapes_upsampler": shapes_upsampler,
    "shapes_speed": shapes_speed,
    "image_text": image_text,
    "emoji": emoji,
    "emoji_autoencoder": emoji_autoencoder,
    "emoji_latent": emoji_latent,
    "latent_pixel": latent_pixel,
}


def main() -> None:
    """Run the named parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    if args.list or not args.parts:
        print("\n".join(f"{name:<12} {part.__doc__}" for name, part in PARTS.items()))
        return
    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in args.parts:
        record = {
            "what": PARTS[name].__doc__,
            "command": f"python benchmarks/gpu_suite.py {name}",
            "commit": commit.stdout.strip(),
            "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
            "torch": torch.__version__,
            "numbers": PARTS[name](),
        }
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{name}.json"
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"{path}: {json.dumps(record['numbers'])[:400]}")


if __name__ == "__main__":
    main()
