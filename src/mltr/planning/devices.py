"""GPUs to plan for: memory, peak speed, and the share of it that training reaches. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mltr.errors import UsageError, did_you_mean

HERE = ("cpu", "cuda")  #: devices of this machine, whose speed is measured

# Model of a training step's speed in mixed precision on a device that isn't present. Such networks
# are bound by memory bandwidth, not by matrix products. `python benchmarks/plan.py --swin` compares
# with the published training speeds of six Swins on an RTX 3090, at 0.25 to 0.45 of its peak: each
# byte kept for the backward pass is moved 21 to 26 times. The model is less accurate for devices
# with another ratio of bandwidth to compute, fused kernels and torch.compile.
TRAFFIC = 22.5  #: bytes moved per byte kept for the backward pass (measured, see above)
BEST_SHARE = 0.5  #: maximum share of the peak, whatever the bandwidth (assumed)
OPERATION_S = 5e-6  #: seconds of Python and kernel launch per torch operation (assumed)
SCALING = 0.95  #: speed of N devices as a share of N times one (assumed)
CONTEXT_GIB = 1.0  #: device memory used by CUDA and its libraries (assumed)


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet."""

    memory_gib: float
    tflops: float  #: dense bf16 with fp32 accumulation, 1e12 FLOP/s
    fp32_tflops: float  #: fp32 without tensor cores (torch's default), 1e12 FLOP/s
    bandwidth_gb_s: float  #: memory bandwidth, 1e9 bytes/s

    def peak(self, precision: str) -> float:
        """Return the peak in FLOP/s for fp32, bf16 or fp16."""
        return 1e12 * (self.fp32_tflops if precision == "fp32" else self.tflops)


# From the vendors' data sheets (NVIDIA: figures "with sparsity" halved).
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
    """Parse a number and name of devices, such as ``8xH200``, ``A100-80GB`` or ``cpu``.

    Raises `UsageError` for an unknown device, suggesting the nearest one.
    """
    counted = re.fullmatch(r"(\d+)\s*[x*]\s*(.+)", text.strip())
    count, name = (int(counted[1]), counted[2]) if counted else (1, text.strip())
    known = {device.lower(): device for device in (*HERE, *DEVICES)}
    if name.lower() not in known:
        listed = ", ".join(known.values())
        begun = [device for device in DEVICES if device.startswith(name.upper())]
        hint = did_you_mean(name.upper(), begun or known.values())
        raise UsageError(
            f"--gpus {text}: no device {name!r}{hint}; known: {listed}; put a number in front, "
            "such as 8xH200"
        )
    if count < 1:
        raise UsageError(f"--gpus {text}: needs at least one device")
    return count, known[name.lower()]
