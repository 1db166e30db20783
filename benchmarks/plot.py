"""One picture for each file of ``benchmarks/results/``: its numbers as bars, with machine and commit below.

Numbers of one unit share a panel; the unit is the last key on the way to a number, so that ``suffuse: {ms: 3}`` and
``diffusers: {ms: 4}`` stand beside each other.

    uv run --group bench python benchmarks/plot.py [FILE.json ...] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MOST = 24
"""Bars of a panel, and panels of a picture."""


def numbers(node: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Yield the numbers of nested mappings, and the keys on the way to each."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from numbers(value, (*way, str(key)))
    elif isinstance(node, int | float) and not isinstance(node, bool) and math.isfinite(node):
        yield way, float(node)


def panels(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return for each quantity what has how much of it."""
    found: dict[str, dict[str, float]] = {}
    for way, value in numbers(record.get("numbers", record)):
        found.setdefault(way[-1], {})[" ".join(way[:-1]) or way[-1]] = value
    return {name: dict(list(bars.items())[:MOST]) for name, bars in list(found.items())[:MOST]}


def plot(path: Path, out: Path) -> Path | None:
    """Draw a file of results; return the picture, or None where it holds no numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    record = json.loads(path.read_text())
    if not isinstance(record, dict) or not (found := panels(record)):
        return None
    tall = [max(1.0, 0.3 * len(bars) + 0.6) for bars in found.values()]
    figure, axes = plt.subplots(len(found), 1, figsize=(8, sum(tall) + 1), height_ratios=tall, squeeze=False)
    for ax, (name, bars) in zip(axes[:, 0], found.items(), strict=True):
        ax.barh(list(bars), list(bars.values()), color="#4c72b0")
        ax.invert_yaxis()
        ax.set_title(name, fontsize=9, loc="left")
        ax.tick_params(labelsize=7)
        for place, value in enumerate(bars.values()):
            ax.text(value, place, f" {value:.4g}", va="center", fontsize=7)
        ax.margins(x=0.15)
    said = [str(record[key])[:60] for key in ("machine", "torch", "commit") if record.get(key)]
    figure.suptitle(str(record.get("what") or path.stem)[:110], fontsize=10)
    figure.text(0.01, 0.005, "   ".join(said), fontsize=6)
    figure.tight_layout(rect=(0, 0.02, 1, 0.98))
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{path.stem}.png"
    figure.savefig(target, dpi=100, metadata={"Software": None})
    plt.close(figure)
    return target


def main() -> None:
    """Draw the named files, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    for path in args.files or sorted(RESULTS.glob("*.json")):
        print(plot(path, args.out) or f"{path}: no numbers")


if __name__ == "__main__":
    main()
