"""Choice of the floating-point precision by device."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from mltr.machine.choice import PRODUCT, is_faster, told_precision
from mltr.machine.threads import on_one_thread

log = logging.getLogger(__name__)

#: Kinds of device with autocast. Asked at import: older compilers can't trace the question.
AUTOCASTS = frozenset(
    kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)
)
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def slow_cpu_types() -> frozenset[torch.dtype]:
    """Return the half precisions in which this CPU takes longer than in float32.

    Without instructions for a type it takes many times as long. But there are processors whose
    AVX-512 instructions for bf16 are half as fast as those for float32, such as Intel's where the
    virtual machine hides AMX, so a product is timed once.
    """
    known = torch.cpu.get_capabilities()
    slow = set()
    if not (known.get("avx512_fp16") or known.get("amx_fp16")):
        slow.add(torch.float16)
    if not known.get("amx_bf16") and not (known.get("avx512_bf16") and _gains_by_bf16()):
        slow.add(torch.bfloat16)
    return frozenset(slow)


@cache
def _gains_by_bf16() -> bool:
    """Time a product of matrices in bf16 and in float32, which takes some milliseconds."""
    # Said in full, as a network may be built within other defaults, such as on no device.
    weight = torch.ones(PRODUCT, PRODUCT, dtype=torch.float32, device="cpu")
    half = weight.bfloat16()
    # Several threads would wait for one another where other programs run.
    with on_one_thread(), torch.inference_mode(), without_autocast("cpu"):
        return is_faster(lambda: half @ half.T, lambda: weight @ weight.T)


def choose_precision(wanted: str, device: torch.device) -> str:
    """Resolve `wanted` to fp32, bf16 or fp16.

    ``auto`` is bf16 if the device is faster in it and fp32 otherwise, unless the environment
    variable MLTR_PRECISION sets fp32 or bf16. An explicit bf16 that is slower, often many times,
    logs a warning. Raises `UsageError` for any other value of MLTR_PRECISION.
    """
    if wanted == "auto":
        return told_precision() or ("bf16" if computes_in_bf16(device) else "fp32")
    if wanted == "bf16" and not computes_in_bf16(device):
        log.warning(
            "this %s is slower in bf16 than in fp32, often many times: use --train.precision auto "
            "(or fp32)",
            "processor" if device.type == "cpu" else "device",
        )
    return wanted


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether a device is faster in bf16 than in float32."""
    if device.type == "cpu":
        return torch.bfloat16 not in slow_cpu_types()
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context for `precision`: fp32 (disabled), bf16 or fp16."""
    return torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "fp32")


def type_under_autocast(values: Tensor) -> torch.dtype:
    """Return the type that products with these values are computed in."""
    kind = values.device.type
    if kind in AUTOCASTS and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return values.dtype


def without_autocast(kind: str) -> AbstractContextManager[None]:
    """Return a context without autocast on a kind of device."""
    if kind in AUTOCASTS:
        return torch.autocast(kind, enabled=False)
    return nullcontext()
