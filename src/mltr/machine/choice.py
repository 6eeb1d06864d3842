"""What the environment sets; torch isn't imported."""

from __future__ import annotations

import os

from mltr.errors import UsageError

CHOICE = "MLTR_PRECISION"  #: environment variable that sets `auto` to fp32 or bf16


def told_precision() -> str:
    """Return fp32 or bf16 if MLTR_PRECISION says so, else an empty text.

    Raises `UsageError` for any other value.
    """
    told = os.environ.get(CHOICE, "")
    if told not in ("", "fp32", "bf16"):
        raise UsageError(f"{CHOICE} is {told!r}: set it to fp32 or bf16, or unset it")
    return told
