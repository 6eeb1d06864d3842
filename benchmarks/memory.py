"""Training memory: measurements beside the estimate, and the largest batches that fit.

    python benchmarks/memory.py --out runs/memory.json

For each network, with and without gradient checkpointing, separate processes take one step of AdamW
with 4 and 8 images. The difference of their peak resident sizes is the memory of 4 images; the rest
is fixed. `mltr.planning.workload` should agree within 15 %. Then MlTr's step is timed with and
without checkpointing alternately, and the largest batch of each variant is printed for several
memory sizes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from timing import TrainingMemory, about, alternate, training_memory, training_step

from mltr.files.writing import write_figures
from mltr.network.model import create_model

MODELS = (
    "mltr_s",
    "timm/swin_tiny_patch4_window7_224",
    "timm/swin_small_patch4_window7_224",
    "timm/swin_base_patch4_window7_224",
)
VARIANTS = ("mltr_nano", "mltr_s", "mltr_m", "mltr_l", "mltr_xl")
SIDES = (224, 384, 448)
BUDGETS_GB = (8, 16, 24, 40, 80)
USABLE = 0.9  #: share of an accelerator's memory available for tensors
BATCHES = (4, 8)

# Large freed blocks are returned to the system, so the peak size is that of live tensors.
STEP = """
import resource, sys, torch
from mltr.network.model import create_model
name, batch_size, checkpointing = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = create_model(name, num_classes=80).train()
model.set_grad_checkpointing(checkpointing)
optimizer = torch.optim.AdamW(model.parameters())
for parameter in model.parameters():
    state = optimizer.state[parameter]
    state["step"] = torch.zeros(())
    state["exp_avg"], state["exp_avg_sq"] = torch.ones_like(parameter), torch.ones_like(parameter)
model(torch.randn(batch_size, 3, 224, 224)).square().mean().backward()
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument(
        "--variants", nargs="*", default=list(VARIANTS), help="variants of the table"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing checkpointing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time instead of wall time")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures: dict[str, Any] = {"about": about()}
    print(figures["about"])
    figures["measured"] = [
        compare(name, checkpointing) for name in args.models for checkpointing in (False, True)
    ]
    figures["checkpointing"] = time_checkpointing(args)
    figures["largest_batch"] = table(args.variants)
    if args.out:
        write_figures(args.out, figures)


def compare(name: str, checkpointing: bool) -> dict[str, Any]:
    """Measure the memory of a network and compare it with the estimate."""
    few, many = (measure(name, batch_size, checkpointing) for batch_size in BATCHES)
    said = training_memory(name, 224, checkpointing)
    row = {
        "model": name, "checkpointing": checkpointing, "measured_bytes": many,
        "modelled_bytes": said.at(BATCHES[1]), "batch_size": BATCHES[1],
        "measured_per_image": (many - few) / (BATCHES[1] - BATCHES[0]),
        "modelled_per_image": said.per_image,
    }  # fmt: skip
    print(
        f"{name:<36} checkpointing {checkpointing!s:<5}  batch {BATCHES[1]}: "
        f"{many / 1e6:6.0f} MB, modelled {said.at(BATCHES[1]) / 1e6:6.0f} "
        f"({said.at(BATCHES[1]) / many - 1:+.0%});  an image: "
        f"{row['measured_per_image'] / 1e6:6.1f} MB, modelled {said.per_image / 1e6:6.1f}",
        flush=True,
    )
    return row


def measure(name: str, batch_size: int, checkpointing: bool) -> int:
    """Return the bytes by which a training step raised the peak size of a process."""
    command = [sys.executable, "-c", STEP, name, str(batch_size), str(checkpointing)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def time_checkpointing(args: argparse.Namespace) -> dict[str, float]:
    """Time a step of mltr_s with and without checkpointing alternately."""
    plain, recomputing = (create_model("mltr_s").train() for _ in range(2))
    recomputing.set_grad_checkpointing(True)
    images = torch.randn(8, 3, 224, 224)
    jobs = [lambda: training_step(plain, images), lambda: training_step(recomputing, images)]
    clock = time.process_time if args.cpu_time else time.perf_counter
    seconds = alternate(jobs, args.rounds, clock)
    ratio = median(second / first for first, second in zip(*seconds, strict=True))
    memory = [training_memory("mltr_s", 224, on).at(8) for on in (False, True)]
    print(f"mltr_s, batch 8: checkpointing takes {ratio:.2f} of the time", end=" ")
    print(f"and {memory[1] / memory[0]:.2f} of the memory")
    return {"time_ratio": ratio, "memory_ratio": memory[1] / memory[0]}


def table(variants: list[str]) -> list[dict[str, Any]]:
    """Print the largest batch of each variant for several memory sizes."""
    rows = []
    print(f"\nlargest batch, float32, {USABLE:.0%} of the memory; with checkpointing in brackets")
    print("| variant | side | " + " | ".join(f"{gb} GB" for gb in BUDGETS_GB) + " |")
    print("| --- | --- |" + " --- |" * len(BUDGETS_GB))
    for name in variants:
        for side in SIDES:
            both = [training_memory(name, side, on) for on in (False, True)]
            cells = [[fits(memory, gb) for memory in both] for gb in BUDGETS_GB]
            texts = [f"{plain} ({recomputing})" for plain, recomputing in cells]
            print(f"| {name} | {side} | " + " | ".join(texts) + " |", flush=True)
            rows.append({"model": name, "side": side, "gb": BUDGETS_GB, "batches": cells})
    return rows


def fits(memory: TrainingMemory, gigabytes: int) -> int:
    return memory.largest_batch(USABLE * gigabytes * 2**30)


if __name__ == "__main__":
    main()
