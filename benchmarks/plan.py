"""Estimates of `mltr plan` compared with short runs on this machine.

    python benchmarks/plan.py --out runs/plan.json       # three recipes, a few minutes
    python benchmarks/plan.py --swin                     # the assumed speed of GPUs, half a minute

A plan is made before and after each run, so that noise affects both, and their mean is compared.
Memory is the peak of the run's main process. `--swin` compares the assumed speed of GPUs that
aren't present with timm's published training speeds of Swins on an RTX 3090
(results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv of huggingface/pytorch-image-models).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from mltr.files.writing import write_figures
from mltr.network.model import create_model
from mltr.planning.devices import DEVICES, TRAFFIC
from mltr.planning.workload import measure_step

CASES = {
    "mltr_nano, 64 px": [
        "--data.scenes.train=960", "--data.scenes.val=120", "--data.scenes.test=60",
        "--train.epochs=2",
    ],
    "mltr_s, 224 px": [
        "--model.name=mltr_s", "--model.image_size=224", "--data.base_size=224",
        "--data.scenes.train=64", "--data.scenes.val=16", "--data.scenes.test=8",
        "--train.batch_size=8", "--train.epochs=1", "--train.ema_decay=0.99",
    ],
    "timm/resnet18, 96 px": [
        "--model.name=timm/resnet18", "--model.image_size=96", "--data.base_size=96",
        "--data.scenes.train=480", "--data.scenes.val=64", "--data.scenes.test=32",
        "--train.epochs=2",
    ],
}  # fmt: skip
#: Images/s of training in mixed precision on an RTX 3090, and the image size in pixels.
SWINS = {
    "swin_tiny_patch4_window7_224": (648.69, 224),
    "swin_small_patch4_window7_224": (400.37, 224),
    "swin_base_patch4_window7_224": (281.0, 224),
    "swin_large_patch4_window7_224": (153.79, 224),
    "swin_base_patch4_window12_384": (74.73, 384),
    "swin_large_patch4_window12_384": (41.75, 384),
}
# Runs a command and prints the peak memory of its process in kB at the end. CLOCK is the function
# of `time` that replaces perf_counter.
RUNNER = """
import sys, time
time.perf_counter = getattr(time, "CLOCK")
from mltr.cli import main
code = main(sys.argv[1:])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--swin", action="store_true", help="check the assumed speed of GPUs instead"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time instead of wall time, for a busy machine (one thread, no workers)",
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if args.swin:
        rows = [compare_swin(name, *published) for name, published in SWINS.items()]
    else:
        fixed = [f"--train.threads={args.threads}", f"--data.workers={args.workers}"]
        rows = [
            compare(name, [*CASES[name], *fixed], args.threads, args.cpu_time)
            for name in args.cases
        ]
    if args.out:
        about = {
            "date": str(date.today()),
            "cores": os.cpu_count(),
            "threads": args.threads,
            "cpu_time": args.cpu_time,
        }
        write_figures(args.out, {"about": about, "rows": rows})


def compare(name: str, options: list[str], threads: int, cpu_time: bool) -> dict[str, Any]:
    """Plan, run, plan again; print and return planned and measured figures."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    ask = partial(subprocess.run, env=environment, check=True, text=True, stdout=subprocess.PIPE)
    clock = "process_time" if cpu_time else "perf_counter"
    command = [sys.executable, "-c", RUNNER.replace("CLOCK", clock)]
    with tempfile.TemporaryDirectory() as folder:

        def plan() -> dict[str, Any]:
            target = f"--json={folder}/plan.json"
            ask([*command, "plan", "scenes_nano", "--gpus=cpu", target, *options])
            return dict(json.loads(Path(f"{folder}/plan.json").read_text()))

        out = Path(folder) / "run"
        train = ["train", "scenes_nano", f"--out={out}", f"--json={out}.json", *options]
        before = plan()
        peak_kb = int(ask([*command, *train]).stdout.split()[-1])
        after = plan()
        seconds = json.loads(Path(f"{out}.json").read_text())["train_seconds"]
    # `train_seconds` of a run includes validation but not the test.
    planned_s = mean(
        3600 * figures["hours"] - figures["images"]["test"] / figures["speed"]["val_images_per_s"]
        for figures in (before, after)
    )
    row = {
        "case": name,
        "planned_s": planned_s, "measured_s": seconds, "time_ratio": planned_s / seconds,
        "planned_gib": before["memory_gib"]["total"], "measured_gib": peak_kb / 2**20,
        "memory_ratio": before["memory_gib"]["total"] / (peak_kb / 2**20),
    }  # fmt: skip
    print(
        f"{name:<22} time: planned {planned_s:6.1f} s, measured {seconds:6.1f} s "
        f"({row['time_ratio']:.2f})   memory: planned {row['planned_gib']:.2f} GiB, measured "
        f"{row['measured_gib']:.2f} ({row['memory_ratio']:.2f})",
        flush=True,
    )
    return row


def compare_swin(name: str, published: float, side: int) -> dict[str, Any]:
    """Print and return the assumed and the published speed of a Swin."""
    device = DEVICES["RTX3090"]
    work = measure_step(partial(create_model, f"timm/{name}", 1000), 8, side, "bf16")
    kept = work.kept_bytes / work.batch_size
    assumed = 1e9 * device.bandwidth_gb_s / (TRAFFIC * kept)
    row = {
        "network": name, "published_images_per_s": published, "assumed_images_per_s": assumed,
        "ratio": assumed / published,
        "times_moved": 1e9 * device.bandwidth_gb_s / published / kept,
        "share_of_peak": 6 * work.multiply_adds * published / device.peak("bf16"),
    }  # fmt: skip
    print(
        f"{name:<32} published {published:6.1f} img/s ({100 * row['share_of_peak']:.0f} % of the "
        f"peak), each kept byte moved {row['times_moved']:.1f} times; assumed {assumed:6.1f} "
        f"({row['ratio']:.2f})",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
