"""Dividing a labelled set so that every label is shared out in proportion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified_split(
    targets: NDArray[np.int8], fractions: Sequence[float], seed: int = 0
) -> list[NDArray[np.int64]]:
    """Divide the rows of targets [N, K] into parts of the given fractions, which sum to 1.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas: "On the Stratification of Multi-label
    Data", 2011): the rarest label first, each of its images to the part that lacks it most.
    Returns sorted row indices for each part; every row is in exactly one. The same seed gives
    the same parts.
    """
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise ValueError(f"fractions {tuple(fractions)} must not be negative and must sum to 1")
    generator = np.random.default_rng(seed)
    positive = targets == 1
    shares = np.asarray(fractions, dtype=np.float64)
    wanted_rows = shares * len(targets)
    wanted = shares[:, None] * positive.sum(0)
    part_of = np.full(len(targets), -1)
    left = positive.sum(0)
    order = generator.permutation(len(targets))
    rows_with = [order[positive[order, label]] for label in range(targets.shape[1])]

    def assign(row: int, part: int) -> None:
        part_of[row] = part
        wanted_rows[part] -= 1
        wanted[part] -= positive[row]
        left[positive[row]] -= 1

    while (left > 0).any():
        rarest = int(np.where(left > 0, left, np.iinfo(left.dtype).max).argmin())
        for row in rows_with[rarest]:
            if part_of[row] < 0:
                assign(row, _neediest(wanted[:, rarest], wanted_rows))
    for row in order[part_of[order] < 0]:
        assign(row, _neediest(wanted_rows, wanted_rows))
    return [np.flatnonzero(part_of == part) for part in range(len(shares))]


def _neediest(need: NDArray[np.float64], rows: NDArray[np.float64]) -> int:
    """Return the part that lacks most; among equals, the one that lacks most images."""
    return int(np.lexsort((rows, need))[-1])
