"""Shared by the network benchmarks: alternating timings, counters, description of the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mltr.network.model import create_model
from mltr.planning.workload import measure_step, state_bytes

REFERENCE = "timm/swin_tiny_patch4_window7_224"
SIDE = 224


def about(**settings: Any) -> dict[str, Any]:
    """Return the date, machine and versions, together with the given settings."""
    return {
        "date": str(date.today()), "machine": cpu_name(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__,
    } | settings  # fmt: skip


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def multiply_adds(name: str, side: int = SIDE, **overrides: Any) -> float:
    """Count the multiply-adds of all products and convolutions for one image, in 1e9."""
    with torch.device("meta"):
        model = create_model(name, num_classes=80, **overrides).eval()
        images = torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / 2 / 1e9


@torch.inference_mode()
def inference(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits


def training_step(model: nn.Module, images: Tensor) -> None:
    model(images).square().mean().backward()
    model.zero_grad()


def alternate(
    jobs: list[Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Time all jobs alternately and return the seconds of each; the first round is warm-up."""
    seconds: list[list[float]] = [[] for _ in jobs]
    for _ in range(rounds + 1):
        for job, times in zip(jobs, seconds, strict=True):
            began = clock()
            job()
            times.append(clock() - began)
    return [times[1:] for times in seconds]


def spread(values: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": median(values), "low": min(values), "high": max(values)}


@dataclass(frozen=True)
class TrainingMemory:
    """Estimate of the peak bytes of a training step with AdamW in float32."""

    fixed: int
    per_image: int

    def at(self, batch_size: int) -> int:
        return self.fixed + batch_size * self.per_image

    def largest_batch(self, budget: float) -> int:
        return max(0, int((budget - self.fixed) // self.per_image))


def training_memory(name: str, side: int, grad_checkpointing: bool = False) -> TrainingMemory:
    """Estimate the memory from two batches, large enough for activations to dominate the peak."""
    few, many = (
        measure_step(
            lambda: create_model(name, image_size=side),
            batch_size, side, grad_checkpointing=grad_checkpointing,
        )
        for batch_size in (32, 64)
    )  # fmt: skip
    per_image = (many.peak_bytes - few.peak_bytes) // 32
    return TrainingMemory(state_bytes(few, False) + few.peak_bytes - 32 * per_image, per_image)
