"""How long the commands take to answer: whole processes, median of several runs, against bare Python in the same run.

python benchmarks/startup.py [--json] [--runs 7]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import suffuse": [sys.executable, "-c", "import suffuse"],
    "train --help": ["train", "--help"],
    "train modality=nosuch": ["train", "modality=nosuch"],
    "train modality=image sampler.stps=3": ["train", "modality=image", "sampler.stps=3"],
    "train modality=image --cfg job": ["train", "modality=image", "--cfg", "job"],
    "suffuse plugins": ["suffuse", "plugins"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import torch, lightning, wandb": [sys.executable, "-c", "import torch, lightning.pytorch, wandb"],
}


def seconds(command: list[str]) -> float:
    """Return the wall time of one run."""
    program = shutil.which(command[0]) or command[0]
    began = time.perf_counter()
    subprocess.run([program, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    rows = {}
    for name, command in COMMANDS.items():
        seconds(command)  # fills the file cache
        rows[name] = statistics.median(seconds(command) for _ in range(args.runs))
    base = rows["python -c pass"]
    if args.json:
        print(json.dumps({name: {"seconds": value, "ratio": value / base} for name, value in rows.items()}, indent=2))
        return
    print(f"{'command':<40} {'median s':>9} {'x bare Python':>14}")
    for name, value in rows.items():
        print(f"{name:<40} {value:9.3f} {value / base:14.1f}")


if __name__ == "__main__":
    main()
