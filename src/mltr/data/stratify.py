"""Dividing a labelled set so that every label is shared out in proportion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array


def stratified_split(
    targets: NDArray[np.int8] | csr_array, fractions: Sequence[float], seed: int = 0
) -> list[NDArray[np.int64]]:
    """Divide the rows of targets [N, K] into parts of the given fractions, which sum to 1.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas: "On the Stratification of Multi-label
    Data", 2011): the rarest label first, each of its images to the part that lacks it most.
    Targets are 1, 0, -1, or a sparse array that is true where they are 1. Returns sorted row
    indices for each part; every row is in exactly one. The same seed gives the same parts.
    """
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise ValueError(f"fractions {tuple(fractions)} must not be negative and must sum to 1")
    generator = np.random.default_rng(seed)
    positive = targets if isinstance(targets, csr_array) else csr_array(targets == 1)
    count, num_labels = positive.shape
    shares = np.asarray(fractions, dtype=np.float64)
    wanted_rows = shares * count
    left = np.bincount(positive.indices, minlength=num_labels)
    wanted = shares[:, None] * left
    part_of = np.full(count, -1)
    order = generator.permutation(count)
    by_label = positive[order].tocsc()  # the rows of each label, in the order drawn

    def assign(row: int, part: int) -> None:
        part_of[row] = part
        wanted_rows[part] -= 1
        labels = positive.indices[positive.indptr[row] : positive.indptr[row + 1]]
        wanted[part, labels] -= 1
        left[labels] -= 1

    while (left > 0).any():
        rarest = int(np.where(left > 0, left, np.iinfo(left.dtype).max).argmin())
        for row in order[by_label.indices[by_label.indptr[rarest] : by_label.indptr[rarest + 1]]]:
            if part_of[row] < 0:
                assign(row, _neediest(wanted[:, rarest], wanted_rows))
    for row in order[part_of[order] < 0]:
        assign(row, _neediest(wanted_rows, wanted_rows))
    return [np.flatnonzero(part_of == part) for part in range(len(shares))]


def _neediest(need: NDArray[np.float64], rows: NDArray[np.float64]) -> int:
    """Return the part that lacks most; among equals, the one that lacks most images."""
    return int(np.lexsort((rows, need))[-1])
