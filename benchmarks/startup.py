"""Start-up time of commands, each in fresh processes.

    python benchmarks/startup.py --out runs/startup.json
    python benchmarks/startup.py --run RUN --photo PHOTO.jpg     # also the first prediction

Prints the median and range of the wall time, and the median of the CPU time, which depends less on
other load. The first call of each command warms the disk cache and isn't counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from statistics import median
from typing import Any

from mltr.cli import COMMANDS
from mltr.files.writing import write_figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", help="trained run for the first prediction")
    parser.add_argument("--photo", help="photo for the first prediction")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    commands = {
        "python": ["-c", "pass"],
        "import mltr": ["-c", "import mltr"],
        "mltr --help": ["-m", "mltr", "--help"],
        **{f"mltr {name} --help": ["-m", "mltr", *name.split(), "--help"] for name in COMMANDS},
        "import torch": ["-c", "import torch"],
    }
    if args.run and args.photo:
        commands["mltr predict RUN PHOTO"] = ["-m", "mltr", "predict", args.run, args.photo]
    about = {
        "date": str(date.today()), "machine": platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(),
    }  # fmt: skip
    print(about)
    figures: dict[str, Any] = {"about": about}
    for name, words in commands.items():
        figures[name] = found = measure(words, args.rounds)
        low, high = found["range"]
        print(
            f"{name:<24} {found['seconds']:7.3f} s ({low:.3f}..{high:.3f}), "
            f"{found['cpu_seconds']:.3f} s of the processor",
            flush=True,
        )
    if args.out:
        write_figures(args.out, figures)


def measure(words: list[str], rounds: int) -> dict[str, Any]:
    clock, processor = [], []
    for _ in range(rounds + 1):
        spent, began = _cpu_seconds(), time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        clock.append(time.perf_counter() - began)
        processor.append(_cpu_seconds() - spent)
    return {
        "seconds": median(clock[1:]), "range": [min(clock[1:]), max(clock[1:])],
        "cpu_seconds": median(processor[1:]),
    }  # fmt: skip


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
