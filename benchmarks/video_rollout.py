"""Attributes of clips that a run draws at any length, and of clips that begin with a given picture.

    python benchmarks/video_rollout.py outputs/video/v --frames 32 --num 200
    python benchmarks/video_rollout.py outputs/video/v --given 1 --num 200

With ``--given N`` the first N frames of held-out real clips are given (image to video for 1). ``whole`` is the share of
samples with every attribute right and one speed between bounces; ``kept`` the PSNR of given frames after 8 bits.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from suffuse.build import build
from suffuse.checkpoint import read
from suffuse.cli import find_checkpoint
from suffuse.codec import implied
from suffuse.edit import Edit
from suffuse.model import Model, Recipe
from suffuse.rollout import Window
from suffuse.text import encoded
from suffuse_video.grammar import by_caption, clips, held_out
from suffuse_video.metrics.attributes import figures
from suffuse_video.render import render
from suffuse_video.watch import watch


def main() -> None:
    """Draw and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--frames", type=int, default=None)
    parser.add_argument("--given", type=int, default=0)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--overlap", type=int, default=None)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    saved = read(find_checkpoint(str(args.run)))
    cfg = saved["suffuse"]["config"]
    if args.guidance is not None:
        cfg["guidance"]["scale"] = args.guidance
    model = Model.load(saved)
    model = model.cuda() if torch.cuda.is_available() else model
    about = model.facts.about
    frames, size = args.frames or int(about["frames"]), int(about["height"])
    codec, recipe = build(cfg["codec"], "codec", about=about, frames=frames), Recipe.build(cfg)
    captions = [about["prompts"][i % len(about["prompts"])] for i in range(args.num)]
    found, kept, began = [], [], time.perf_counter()
    for first in range(0, args.num, args.batch):
        rows = range(first, min(first + args.batch, args.num))
        raw = model.conditioner.parse(implied(codec, model.conditioner), len(rows))
        raw["text"] = torch.stack([encoded(captions[i]) for i in rows])
        edit, seeds = None, torch.tensor(list(rows))
        like = codec.like(seeds, raw, model.device)
        if args.given:
            real = [render(by_caption()[captions[i]], 5 * 10**9 + i, frames, size) for i in rows]
            known = codec.encode(torch.from_numpy(np.rint(np.stack(real) * 255) / 255).float())
            mask = torch.zeros_like(known, dtype=torch.bool)
            mask[:, :, : args.given] = True
            edit = Edit(known, mask)
        x = codec.decode(model.draw(recipe, seeds, raw, like, edit, None, Window(overlap=args.overlap))).cpu().numpy()
        if args.given:
            error = np.square(np.rint(255 * x) - np.rint(255 * codec.decode(known).numpy()))[:, :, : args.given]
            kept += [float(10 * np.log10(255**2 / max(e.mean(), 1e-9))) for e in error]
        found += [watch(clip) for clip in x]
    asked = [by_caption()[caption] for caption in captions]
    whole = [s.straight and s.values == clip.values for s, clip in zip(found, asked, strict=True)]
    result = figures(asked, found) | {"whole": float(np.mean(whole)), "frames": frames, "num": args.num}
    result |= {"seconds": round(time.perf_counter() - began, 1)}
    result |= {"kept_min": min(kept)} if kept else {}
    result["held_out_combinations"] = sum(map(held_out, clips()))
    print(json.dumps(result) if args.json else "\n".join(f"{k:<24}{v:.4g}" for k, v in result.items()))


if __name__ == "__main__":
    main()
