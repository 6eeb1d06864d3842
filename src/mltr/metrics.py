"""The field's metrics, each protocol by its name. Functions of arrays; nothing is kept.

Shapes: probs [N, K] in 0..1 and targets [N, K] in {1, 0, -1 = unknown}, numpy or torch. An unknown
cell counts neither way anywhere. Work goes class by class, so the memory needed beyond the inputs
is a few arrays of N, whatever K.

Conventions, where the field has several (see the table in the documentation):

* ``map`` is the macro mean of non-interpolated average precision; tied scores are one threshold,
  as in scikit-learn and torchmetrics. ``map_voc2010`` makes the precision monotone from the right.
* A class without a positive has no average precision, recall or F1: it is left out of every macro
  mean, and `per_class` shows it as nan with a support of 0.
* A score at or above the threshold counts as predicted. A class never predicted has precision 0.
* ``cf1`` is the harmonic mean of ``cp`` and ``cr``; ``cf1_mean`` is the mean of class F1.
* ``_top3``: the three best labels of an image, and only those at or above the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

    Array = NDArray[Any] | Tensor

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

TOP = 3
_BLOCK_CELLS = 1 << 22  # cells copied at a time: 16 MB of float32


def evaluate(probs: Array, targets: Array, threshold: float | ArrayLike = 0.5) -> dict[str, float]:
    """Return every metric by its name, as fractions.

    The names are `map`, `map_voc2010`, and `cp, cr, cf1, cf1_mean, op, or, of1`, the latter also
    with `_top3`. `threshold` is one number or one for each class [K]. Raises `ValueError` for
    arrays that don't fit, scores outside 0..1 or nan, and targets other than 1, 0, -1.
    """
    probs, targets, thresholds = _checked(probs, targets, threshold)
    aps, aps_voc2010 = _average_precisions(probs, targets)
    metrics = {"map": _mean(aps), "map_voc2010": _mean(aps_voc2010)}
    metrics |= _summarise(_count(probs, targets, thresholds))
    top = _summarise(_count_top(probs, targets, thresholds))
    return metrics | {f"{name}_top{TOP}": value for name, value in top.items()}


def per_class(
    probs: Array, targets: Array, threshold: float | ArrayLike = 0.5
) -> dict[str, Floats]:
    """Return arrays [K]: ap, ap_voc2010, precision, recall, f1, support, predicted, known.

    `support`, `predicted` and `known` count images: with the label, predicted to have it, and
    with a known answer. Arguments and errors as in `evaluate`.
    """
    probs, targets, thresholds = _checked(probs, targets, threshold)
    aps, aps_voc2010 = _average_precisions(probs, targets)
    counts = _count(probs, targets, thresholds)
    known = np.concatenate([(block >= 0).sum(0) for _, block in _class_blocks(targets)])
    return {
        "ap": aps,
        "ap_voc2010": aps_voc2010,
        "precision": counts.precision(),
        "recall": counts.recall(),
        "f1": counts.f1(),
        "support": counts.support.astype(np.float64),
        "predicted": counts.predicted.astype(np.float64),
        "known": known.astype(np.float64),
    }


def average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Return the average precision of one class: scores [N], targets [N]; nan if none is 1."""
    return _average_precision(np.asarray(scores), np.asarray(targets))[0]


# -- average precision -------------------------------------------------------------------------


def _average_precision(scores: NDArray[Any], targets: NDArray[Any]) -> tuple[float, float]:
    """Return average precision, plain and with the monotone (VOC 2010) precision."""
    known = targets >= 0
    if not known.all():
        scores, targets = scores[known], targets[known]
    positive = targets == 1
    support = int(positive.sum())
    if support == 0:
        return float("nan"), float("nan")
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    # Tied scores are one threshold: only the last of each run of equal scores is a step.
    steps = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(positive[order])[steps]
    precision = hits / (steps + 1)
    gained = np.diff(hits, prepend=0) / support
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float(gained @ precision), float(gained @ monotone)


def _average_precisions(probs: NDArray[Any], targets: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return both average precisions of each class: two arrays [K]."""
    pairs = [
        _average_precision(scores, truths)
        for (_, score_block), (_, target_block) in zip(
            _class_blocks(probs), _class_blocks(targets), strict=True
        )
        for scores, truths in zip(score_block.T.copy(), target_block.T.copy(), strict=True)
    ]
    plain, voc2010 = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return plain, voc2010


# -- decisions at a threshold ------------------------------------------------------------------


@dataclass(frozen=True)
class _Decisions:
    """Images of each class [K]: rightly predicted, predicted, and with the label."""

    hits: Counts
    predicted: Counts
    support: Counts

    def precision(self) -> Floats:
        """0 for a class never predicted."""
        return self.hits / np.maximum(self.predicted, 1)

    def recall(self) -> Floats:
        """Nan for a class without a positive."""
        return np.where(self.support > 0, self.hits / np.maximum(self.support, 1), np.nan)

    def f1(self) -> Floats:
        """Nan for a class without a positive."""
        f1 = 2 * self.hits / np.maximum(self.predicted + self.support, 1)
        return np.where(self.support > 0, f1, np.nan)


def _count(probs: NDArray[Any], targets: NDArray[Any], thresholds: NDArray[Any]) -> _Decisions:
    """Count decisions at or above the thresholds [K]."""
    rows = []
    for (start, score_block), (_, target_block) in zip(
        _class_blocks(probs), _class_blocks(targets), strict=True
    ):
        limits = thresholds[start : start + score_block.shape[1]]
        decided = (score_block >= limits) & (target_block >= 0)
        positive = target_block == 1
        rows.append([(decided & positive).sum(0), decided.sum(0), positive.sum(0)])
    hits, predicted, support = np.concatenate(rows, axis=1)
    return _Decisions(hits, predicted, support)


def _count_top(probs: NDArray[Any], targets: NDArray[Any], thresholds: NDArray[Any]) -> _Decisions:
    """Count decisions among the best labels of each image that reach their threshold.

    Unknown cells compete for the three places, as in CSRA, but are not counted. Of equal scores
    the earlier class wins.
    """
    N, K = probs.shape
    hits, predicted = np.zeros(K, np.int64), np.zeros(K, np.int64)
    rows_at_a_time = max(1, _BLOCK_CELLS // K)
    for start in range(0, N, rows_at_a_time):
        scores = probs[start : start + rows_at_a_time].copy()
        truths = targets[start : start + rows_at_a_time]
        rows = np.arange(len(scores))
        for _ in range(min(TOP, K)):
            best = scores.argmax(1)
            truth = truths[rows, best]
            decided = (scores[rows, best] >= thresholds[best]) & (truth >= 0)
            predicted += np.bincount(best[decided], minlength=K)
            hits += np.bincount(best[decided & (truth == 1)], minlength=K)
            scores[rows, best] = -1  # below every threshold, and never the best again
    support = np.concatenate([(block == 1).sum(0) for _, block in _class_blocks(targets)])
    return _Decisions(hits, predicted, support)


def _summarise(counts: _Decisions) -> dict[str, float]:
    """Return the macro (c) and overall (o) precision, recall and F1."""
    scored = counts.support > 0
    cp, cr = _mean(counts.precision()[scored]), _mean(counts.recall()[scored])
    hits, predicted, support = (
        int(column.sum()) for column in (counts.hits, counts.predicted, counts.support)
    )
    op = hits / max(predicted, 1)
    overall_recall = hits / support if support else float("nan")
    return {
        "cp": cp,
        "cr": cr,
        "cf1": _harmonic_mean(cp, cr),
        "cf1_mean": _mean(counts.f1()[scored]),
        "op": op,
        "or": overall_recall,
        "of1": _harmonic_mean(op, overall_recall),
    }


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def _mean(values: Floats) -> float:
    """Return the mean of what is not nan; nan if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


# -- inputs ------------------------------------------------------------------------------------


def _class_blocks(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first class, columns [N, k]) so that a copy of a block stays small."""
    N, K = array.shape
    width = max(1, _BLOCK_CELLS // max(N, 1))
    for start in range(0, K, width):
        yield start, array[:, start : start + width]


def _as_numpy(array: Array) -> NDArray[Any]:
    """Return a numpy view where possible; bfloat16, which numpy lacks, becomes float32."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":
            array = array.float()
        return array.numpy()
    return np.asarray(array)


def _checked(
    probs: Array, targets: Array, threshold: float | ArrayLike
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return numpy arrays that fit together, or say what doesn't."""
    probs, targets = _as_numpy(probs), _as_numpy(targets)
    if probs.ndim != 2 or probs.shape != targets.shape or 0 in probs.shape:
        raise ValueError(
            f"probs {probs.shape} and targets {targets.shape} must be of one shape [N, K], "
            "with at least one image and one class"
        )
    for start, block in _class_blocks(probs):
        if not (block.min() >= 0 and block.max() <= 1):  # nan fails both comparisons
            raise ValueError(f"probs of class {start} and on must lie in 0..1 (no nan)")
    for start, block in _class_blocks(targets):
        if not np.isin(block, (1, 0, -1)).all():
            raise ValueError(f"targets of class {start} and on must be 1, 0 or -1 (unknown)")
    thresholds = np.asarray(threshold, dtype=np.float64)
    if thresholds.shape not in ((), (probs.shape[1],)):
        raise ValueError(f"threshold {thresholds.shape} must be one number or one a class")
    # Compare in the scores' own precision: float32 0.8 is at the threshold 0.8.
    return probs, targets, np.broadcast_to(thresholds.astype(probs.dtype), probs.shape[1])
