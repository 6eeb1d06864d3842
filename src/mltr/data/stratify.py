"""Dividing a labelled set so that every label is shared out in proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

ROUNDING = 1e-9  #: so that 0.29 of 100 is 29
LEAST_GAIN = 1e-9
HALF = 0.5  #: an image at most: a label is divided as well as its number allows


def part_sizes(count: int, fractions: Sequence[float]) -> list[int]:
    """Return whole sizes that sum to `count`, each less than one from its fraction of it.

    What is left after rounding down goes to the parts that lost most by it (largest remainder);
    among equals, to the smallest.
    """
    exact = [fraction * count for fraction in fractions]
    sizes = [math.floor(size + ROUNDING) for size in exact]

    def lost(part: int) -> tuple[float, float]:
        return round(exact[part] - sizes[part], 6), -fractions[part]

    for part in sorted(range(len(sizes)), key=lost, reverse=True)[: count - sum(sizes)]:
        sizes[part] += 1
    return sizes


def stratified_split(
    targets: NDArray[np.int8] | csr_array, fractions: Sequence[float], seed: int = 0
) -> list[NDArray[np.int64]]:
    """Divide the rows of targets [N, K] into parts of the given fractions, which sum to 1.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas: "On the Stratification of Multi-label
    Data", 2011): the rarest label first, each of its images to the part that lacks it most. Parts
    have the sizes of `part_sizes`, to the image: what one label's images can't be divided into is
    carried to the next label, a part that is full takes no more, and in the end parts exchange
    images as long as that brings them nearer to their shares. Targets are 1, 0, -1, or a
    sparse array that is true where they are 1. Returns sorted row indices for each part; every row
    is in exactly one. The same seed gives the same parts.
    """
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise ValueError(f"fractions {tuple(fractions)} must not be negative and must sum to 1")
    generator = np.random.default_rng(seed)
    positive = targets if isinstance(targets, csr_array) else csr_array(targets == 1)
    count, num_labels = positive.shape
    shares = np.asarray(fractions, dtype=np.float64)
    sizes = np.asarray(part_sizes(count, fractions))
    room = sizes.copy()  # images that each part still takes
    left = np.bincount(positive.indices, minlength=num_labels)
    wanted = shares[:, None] * left
    held = np.zeros(wanted.shape, np.int64)
    largest = int(shares.argmax())
    part_of = np.full(count, -1)
    order = generator.permutation(count)
    by_label = positive[order].tocsc()  # the rows of each label, in the order drawn
    while (left > 0).any():
        rarest = int(np.where(left > 0, left, np.iinfo(left.dtype).max).argmin())
        taken = sizes - room
        # A part behind its share of all images so far gets the odd image of this label.
        carried = (shares * taken.sum() - taken).clip(-HALF, HALF)
        for row in order[by_label.indices[by_label.indptr[rarest] : by_label.indptr[rarest + 1]]]:
            if part_of[row] >= 0:
                continue
            need = np.where(room > 0, wanted[:, rarest] - held[:, rarest] + carried, -np.inf)
            part = int(np.lexsort((room, need))[-1])  # among equals, the one with most room
            if room[largest] and not held[largest, rarest]:  # it learns each label, if it can
                part = largest
            part_of[row] = part
            room[part] -= 1
            labels = positive.indices[positive.indptr[row] : positive.indptr[row + 1]]
            held[part, labels] += 1
            left[labels] -= 1
    part_of[order[part_of[order] < 0]] = np.repeat(np.arange(len(shares)), room)
    _exchange(positive, part_of, wanted, held)
    return [np.flatnonzero(part_of == part) for part in range(len(shares))]


def _exchange(
    positive: csr_array,
    part_of: NDArray[np.int64],
    wanted: NDArray[np.float64],
    held: NDArray[np.int64],
) -> None:
    """Exchange rows between parts, in place, while that lowers the misfit of their labels.

    `wanted` and `held` [parts, K] are how many positives of each label a part should have and has;
    the misfit is the sum of squared differences, each over the root of the label's positives. A
    part that has a label keeps an image with it.
    """
    weights = 1 / np.sqrt(wanted.sum(axis=0).clip(1))

    def best(giver: int, taker: int) -> tuple[int, float]:
        """Return the row whose move lowers the misfit most, and by how much."""
        surplus = held - wanted
        change = 2 * weights * (1 - surplus[giver] + surplus[taker])
        change[held[giver] == 1] = np.inf
        rows = np.flatnonzero(part_of == giver)
        costs = (positive @ change)[rows]
        return int(rows[costs.argmin()]), -float(costs.min())

    def move(row: int, giver: int, taker: int) -> None:
        labels = positive.indices[positive.indptr[row] : positive.indptr[row + 1]]
        held[giver, labels] -= 1
        held[taker, labels] += 1
        part_of[row] = taker

    for one, other in combinations(range(len(held)), 2):
        while (part_of == one).any() and (part_of == other).any():
            first, gain = best(one, other)
            move(first, one, other)
            second, more = best(other, one)
            move(second, other, one)
            if gain + more <= LEAST_GAIN:
                move(second, one, other)
                move(first, other, one)
                break
