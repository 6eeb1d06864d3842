"""Choice of the floating-point precision by device."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mltr.machine.choice import told_precision

log = logging.getLogger(__name__)

#: Kinds of device with autocast. Asked at import: older compilers can't trace the question.
AUTOCASTS = frozenset(
    kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)
)
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def slow_cpu_types() -> frozenset[torch.dtype]:
    """Return the types this CPU has no instructions for; they are far slower than float32."""
    known = torch.cpu.get_capabilities()
    types = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return frozenset(
        kind
        for kind, name in types.items()
        if not (known.get(f"avx512_{name}") or known.get(f"amx_{name}"))
    )


def choose_precision(wanted: str, device: torch.device) -> str:
    """Resolve `wanted` to fp32, bf16 or fp16.

    ``auto`` is bf16 if the device has instructions for it and fp32 otherwise, unless the
    environment variable MLTR_PRECISION sets fp32 or bf16. Without such instructions bf16 takes
    many times as long as fp32, so an explicit bf16 logs a warning. Raises `UsageError` for any
    other value of MLTR_PRECISION.
    """
    if wanted == "auto":
        return told_precision() or ("bf16" if computes_in_bf16(device) else "fp32")
    if wanted == "bf16" and not computes_in_bf16(device):
        log.warning(
            "this %s has no bf16 instructions, so bf16 is many times slower than fp32: use "
            "--train.precision auto (or fp32)",
            "processor" if device.type == "cpu" else "device",
        )
    return wanted


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether a device has instructions for bf16."""
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
