"""Plots: a sample is written as .npy and shown as a curve."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


class Plots:
    def save(self, x, stem: Path) -> Path:
        np.save(stem.with_suffix(".npy"), x.numpy())
        return stem.with_suffix(".npy")

    def overview(self, xs, captions, path: Path) -> Path:
        cells = [self.draw(x, caption) for x, caption in zip(xs, captions, strict=True)]
        sheet = Image.new("RGB", (5 * 160, -(-len(cells) // 5) * 90), "white")
        for i, cell in enumerate(cells):
            sheet.paste(cell, (i % 5 * 160, i // 5 * 90))
        sheet.save(path)
        return path

    def media(self, xs, captions) -> list:
        import wandb

        return [wandb.Image(self.draw(x, c), caption=c) for x, c in zip(xs, captions, strict=True)]

    def draw(self, x, caption: str) -> Image.Image:
        cell, values = Image.new("RGB", (160, 90), "white"), np.asarray(x[0]).clip(-1.5, 1.5)
        points = [(4 + 152 * i / len(values), 52 - 20 * float(v)) for i, v in enumerate(values)]
        ImageDraw.Draw(cell).line(points, fill="steelblue", width=2)
        ImageDraw.Draw(cell).text((4, 2), caption, fill="black")
        return cell
