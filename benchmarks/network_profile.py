"""Profile of MlTr and timm's Swin-T: milliseconds by kind of operation.

    python benchmarks/network_profile.py
    python benchmarks/network_profile.py --modes compiled train

Measured with torch.profiler as self time of each operation, in the fastest of several calls.
Compiled kernels fuse several operations and count as the first kind in `KINDS` that their name
matches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from network import make_job
from timing import REFERENCE, about
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile

from mltr.files.writing import write_figures
from mltr.machine.memory import keep_freed_memory

#: Kinds of operations by parts of their names; the first match counts.
KINDS = {
    "linear layers": ("aten::addmm", "aten::mm"),
    "attention": ("scaled_dot_product", "bmm", "softmax", "masked_fill"),
    "GELU": ("gelu",),
    "normalisation, residuals, bias": ("layer_norm", "aten::add", "aten::sum", "aten::mul"),
    "copies": ("aten::copy_", "aten::cat", "clone", "aten::fill_", "aten::zero_"),
}
REST = "rest"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mltr_s", REFERENCE])
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["fp32", "train"],
        choices=("fp32", "bf16", "train", "compiled"),
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    inductor.cpp.enable_kernel_profile = True  # names for compiled kernels
    machine = about(batch_size=args.batch_size, keeps_memory=keep_freed_memory())
    print(*(f"{key}: {value}" for key, value in machine.items()), sep=", ")
    rows = []
    for mode in args.modes:
        for name in args.models:
            job = make_job(name, mode, args.batch_size)
            job()
            calls = [by_kind(job) for _ in range(args.calls)]
            found = min(calls, key=lambda call: sum(call.values()))
            rows.append({"model": name, "mode": mode, "ms": found})
            print(f"\n{mode} {name}: {sum(found.values()):.0f} ms")
            for kind, ms in found.items():
                print(f"  {kind:<32} {ms:7.1f}", flush=True)
    if args.out:
        write_figures(args.out, {"about": machine, "rows": rows})


def by_kind(job: Callable[[], Any]) -> dict[str, float]:
    """Return the milliseconds of each kind of operation in one call."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        job()
    found = dict.fromkeys([*KINDS, REST], 0.0)
    for operation in record.key_averages():
        kinds = (k for k, parts in KINDS.items() if any(p in operation.key for p in parts))
        found[next(kinds, REST)] += operation.self_cpu_time_total / 1000
    return found


if __name__ == "__main__":
    main()
