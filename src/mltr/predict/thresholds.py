"""Thresholds on the command line: one for all classes, or one for each category of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mltr.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALL = ""  #: stands for all classes


def parse_thresholds(text: str) -> dict[str, float]:
    """Return the thresholds by category that a text such as ``0.4,character=0.85`` holds.

    >>> parse_thresholds("0.4,character=0.85")
    {'': 0.4, 'character': 0.85}

    Raises `UsageError` for anything else.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        category, _, value = part.rpartition("=")
        try:
            threshold = float(value)
        except ValueError:
            raise UsageError(
                f"--threshold {text}: expected a number, or CATEGORY=NUMBER, with commas between "
                "several"
            ) from None
        if not 0 <= threshold <= 1:
            raise UsageError(f"--threshold {text} must lie in 0..1")
        if category.strip() in found:
            raise UsageError(
                f"--threshold {text} names {category.strip() or 'that of all classes'} twice; "
                "decimals have a point"
            )
        found[category.strip()] = threshold
    return found


def set_thresholds(
    thresholds: NDArray[np.float32], wanted: Mapping[str, float], categories: Sequence[str] | None
) -> None:
    """Set the thresholds [K] of the classes whose category, or all, are named in `wanted`.

    Raises `UsageError` for a category that no class has.
    """
    if ALL in wanted:
        thresholds[:] = wanted[ALL]
    known = sorted(set(categories or ()))
    for category, threshold in wanted.items():
        if category == ALL:
            continue
        if category not in known:
            hint = did_you_mean(category, known)
            told = f"known: {', '.join(known)}" if known else "this network has none"
            raise UsageError(f"--threshold: no category {category!r}{hint} ({told})")
        own = [place for place, kind in enumerate(categories or ()) if kind == category]
        thresholds[own] = threshold
