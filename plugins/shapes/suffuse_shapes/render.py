"""Render: pictures of clouds, each point a shaded disc, nearest in front; numpy alone.

Orthographic: the camera looks along a direction given by azimuth and elevation at the origin; a point of depth d keeps
its colour times a factor that falls with d, so that near and far can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["angles", "picture", "sheet", "turntable"]

PAPER = 255


def angles(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Return the rows (right, up, towards the camera) of a camera, (3, 3); both angles in radians."""
    ca, sa, ce, se = math.cos(azimuth), math.sin(azimuth), math.cos(elevation), math.sin(elevation)
    return np.array([[-sa, ca, 0], [-se * ca, -se * sa, ce], [ce * ca, ce * sa, se]])


def picture(
    cloud: NDArray[np.floating], size: int = 128, azimuth: float = 0.6, elevation: float = 0.45, radius: float = 0.0
) -> Image.Image:
    """Return a square picture of a cloud (6, N) or (3, N), drawn at twice the size and reduced.

    Arguments:
        cloud: Coordinates, then colours in [0, 1]; without colours all are grey.
        size: Pixels of an edge.
        azimuth: Where the camera stands, in radians about z.
        elevation: How high it stands, in radians.
        radius: Of a disc in the units of the cloud; 0 fits it to the number of points.
    """
    points = np.nan_to_num(np.asarray(cloud, dtype=float))
    xyz = points[:3].T.clip(-4, 4)
    rgb = points[3:6].T.clip(0, 1) if len(points) >= 6 else np.full_like(xyz, 0.5)
    edge, view = 2 * size, xyz @ angles(azimuth, elevation).T
    scale = edge / 2 / 1.75
    disc = max(1, round(scale * (radius or 1.1 / math.sqrt(max(len(xyz), 1)))))
    depth = view[:, 2]
    light = 0.6 + 0.4 * (depth - depth.min(initial=0)) / max(float(np.ptp(depth)) if len(depth) else 0, 1e-6)
    canvas = np.full((edge, edge, 3), PAPER, dtype=np.uint8)
    column, row = (np.round(edge / 2 + sign * scale * view[:, i]).astype(int) for i, sign in ((0, 1), (1, -1)))
    dy, dx = np.mgrid[-disc : disc + 1, -disc : disc + 1]
    inside = dy**2 + dx**2 <= disc**2
    dy, dx = dy[inside], dx[inside]
    order = np.argsort(depth, kind="stable")
    # The discs of all points at once, from back to front: of several writes to a pixel numpy keeps the last.
    rows, columns = (row[order, None] + dy).ravel(), (column[order, None] + dx).ravel()
    there = (rows >= 0) & (rows < edge) & (columns >= 0) & (columns < edge)
    rim = np.where(dy**2 + dx**2 > 0.55 * disc**2, 0.85, 1.0) if disc > 2 else np.ones(len(dy))
    shade = (rgb[order] * light[order, None] * 255)[:, None] * rim[None, :, None]
    canvas[rows[there], columns[there]] = shade.reshape(-1, 3)[there].astype(np.uint8)
    return Image.fromarray(canvas).resize((size, size), Image.Resampling.BOX)


def sheet(clouds: Sequence[NDArray[np.floating]], captions: Sequence[str], path: Path, size: int = 144) -> Path:
    """Write one PNG of all clouds with their captions; each is seen from the side and from above."""
    columns = max(1, min(5, len(clouds)))
    wide, high = 2 * size, size + 30
    canvas = Image.new("RGB", (columns * wide, max(1, -(-len(clouds) // columns)) * high), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (cloud, caption) in enumerate(zip(clouds, captions, strict=True)):
        x, y = i % columns * wide, i // columns * high
        canvas.paste(picture(cloud, size), (x, y))
        canvas.paste(picture(cloud, size, azimuth=0.6 + math.pi / 2, elevation=1.2), (x + size, y))
        for line, text in enumerate(_wrapped(caption, wide // 6 - 1)[:2]):
            pen.text((x + 4, y + size + 2 + 13 * line), text, fill="black")
    temporary = path.with_name(f".{path.name}.tmp")
    canvas.save(temporary, format="PNG")
    return temporary.replace(path)


def turntable(cloud: NDArray[np.floating], path: Path, frames: int = 24, size: int = 160) -> Path:
    """Write an animated GIF of a cloud turning once about z."""
    views = [picture(cloud, size, azimuth=2 * math.pi * i / frames) for i in range(frames)]
    palette = [view.quantize(64) for view in views]
    temporary = path.with_name(f".{path.name}.tmp")
    palette[0].save(temporary, format="GIF", save_all=True, append_images=palette[1:], duration=80, loop=0)
    return temporary.replace(path)


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
