"""Which images to label next: those with a label that could be either, none like another.

The order is that of farthest-first traversal (O. Sener and S. Savarese, "Active Learning for
Convolutional Neural Networks: A Core-Set Approach", arXiv 1708.00489) among the most uncertain
images, each distance weighted by the uncertainty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]

SHORTLIST = 4  #: times as many uncertain images are considered as are chosen


def choose(
    probs: Floats, features: Floats, count: int, thresholds: ArrayLike = 0.5
) -> NDArray[np.int64]:
    """Return the rows of at most `count` of N images to label, the most useful first.

    `probs` [N, K] and `features` [N, D] are the network's, and a label counts as predicted from
    `thresholds` [K] on.
    """
    scores = uncertainty(probs, thresholds)
    rows = np.argsort(-scores, kind="stable")[: SHORTLIST * count]
    return rows[farthest_first(features[rows], scores[rows], count)]


def uncertainty(probs: Floats, thresholds: ArrayLike = 0.5) -> Floats:
    """Return how uncertain the most uncertain label of each image is [N].

    That is 1 at a label's threshold and falls evenly to 0 at the probabilities 0 and 1. It favours
    photos that may show a rare class: few have a probability of it anywhere near the threshold.
    """
    limits = np.clip(np.asarray(thresholds, np.float32), 1e-6, 1 - 1e-6)
    found: Floats = np.minimum(probs / limits, (1 - probs) / (1 - limits)).max(axis=1)
    return found


def farthest_first(features: Floats, scores: Floats, count: int) -> NDArray[np.int64]:
    """Return at most `count` rows of features [N, D], far from one another and of high scores [N].

    The first has the highest score. Each further one has the largest product of its score and its
    squared distance to the nearest that is chosen, between features of unit length.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    nearest = np.full(len(features), np.inf, np.float32)
    chosen: list[int] = []
    gains = scores
    while len(chosen) < min(count, len(features)):
        chosen.append(int(np.argmax(gains)))
        nearest = np.minimum(nearest, 2 - 2 * directions @ directions[chosen[-1]])
        gains = np.maximum(nearest, 0) * scores
        gains[chosen] = -1
    return np.array(chosen, np.int64)
