"""Which precision: what the environment sets, and what is faster; torch isn't imported."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from mltr.errors import UsageError

CHOICE = "MLTR_PRECISION"  #: environment variable that sets `auto` to fp32 or bf16
PRODUCT = 256  #: rows and columns of the matrices whose product is timed in each


def told_precision() -> str:
    """Return fp32 or bf16 if MLTR_PRECISION says so, else an empty text.

    Raises `UsageError` for any other value.
    """
    told = os.environ.get(CHOICE, "")
    if told not in ("", "fp32", "bf16"):
        raise UsageError(f"{CHOICE} is {told!r}: set it to fp32 or bf16, or unset it")
    return told


def is_faster(one: Callable[[], object], other: Callable[[], object], rounds: int = 9) -> bool:
    """Return whether `one` takes less time than `other`, by the best of rounds taken in turns.

    Each is called once before that, to get ready.
    """
    calls = (one, other)
    best_s = [float("inf"), float("inf")]
    for number in range(rounds + 1):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if number:
                best_s[index] = min(best_s[index], time.perf_counter() - start)
    return best_s[0] < best_s[1]
