"""Devices to plan for: memory, speed, and how much of it such networks get. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mltr.errors import UsageError, did_you_mean

HERE = ("cpu", "cuda")  #: devices of this machine, whose speed is measured

# How fast a training step is on a device that isn't here, in mixed precision. Such networks wait
# for memory, not for products: `python benchmarks/plan.py --swin` compares with the published speed
# of training six Swins on an RTX 3090, 0.25 to 0.45 of its peak, and finds each byte kept for the
# backward pass moved 21 to 26 times. Devices with other ratios of bandwidth to products, fused
# kernels and torch.compile will be off from that.
TRAFFIC = 22.5  #: bytes moved in a step for each byte kept for the backward pass (measured, above)
BEST_SHARE = 0.5  #: of the peak, at most, whatever the bandwidth (assumed)
OPERATION_S = (
    5e-6  #: of Python and the launch of a kernel, for each of torch's operations (assumed)
)
SCALING = 0.95  #: speed of N devices together, as a share of N times one (assumed)
CONTEXT_GIB = 1.0  #: what CUDA and its libraries take of a device's memory (assumed)


@dataclass(frozen=True)
class Device:
    """A processor as its maker describes it."""

    memory_gib: float
    tflops: float  #: dense, bfloat16 with float32 sums; 1e12 operations/s, an addition counts
    fp32_tflops: float  #: without tensor cores, as torch multiplies float32 by default
    bandwidth_gb_s: float  #: of its memory, 1e9 bytes/s

    def peak(self, precision: str) -> float:
        """Return operations a second in fp32, bf16 or fp16."""
        return 1e12 * (self.fp32_tflops if precision == "fp32" else self.tflops)


# From the makers' data sheets (NVIDIA: figures "with sparsity" halved).
DEVICES = {
    "L4": Device(24, 121, 30.3, 300),
    "A10": Device(24, 125, 31.2, 600),
    "RTX3090": Device(24, 71, 35.6, 936),
    "RTX4090": Device(24, 165, 82.6, 1008),
    "L40S": Device(48, 362, 91.6, 864),
    "A100-40GB": Device(40, 312, 19.5, 1555),
    "A100-80GB": Device(80, 312, 19.5, 2039),
    "H100": Device(80, 989, 66.9, 3350),
    "H200": Device(141, 989, 66.9, 4800),
    "B200": Device(180, 2250, 75.0, 7700),
    "MI300X": Device(192, 1307, 163.4, 5300),
}


def parse_gpus(text: str) -> tuple[int, str]:
    """Return how many of which device ``8xH200``, ``A100-80GB`` or ``cpu`` names.

    Raises `UsageError` for a device that isn't in the table, with the nearest one.
    """
    counted = re.fullmatch(r"(\d+)\s*[x*]\s*(.+)", text.strip())
    count, name = (int(counted[1]), counted[2]) if counted else (1, text.strip())
    known = {device.lower(): device for device in (*HERE, *DEVICES)}
    if name.lower() not in known:
        listed = ", ".join(known.values())
        begun = [device for device in DEVICES if device.startswith(name.upper())]
        hint = did_you_mean(name.upper(), begun or known.values())
        raise UsageError(
            f"--gpus {text}: no device {name!r}{hint}; known: {listed}, with a count in front, "
            "such as 8xH200"
        )
    if count < 1:
        raise UsageError(f"--gpus {text}: at least one")
    return count, known[name.lower()]
