"""The standard metrics, each protocol under its own name, as stateless functions of arrays.

Shapes: probs [N, K] in 0..1 and targets [N, K] in {1, 0, -1 = unknown}, numpy or torch. Unknown
labels are ignored everywhere. Blocks of classes or images are processed in threads, a few at a
time, so the memory beyond the inputs is a few hundred MB, whatever N and K.

Conventions where several are in use (see the table in the documentation):

* ``map`` is the macro mean of non-interpolated average precision; tied scores are one threshold, as
  in scikit-learn and torchmetrics. ``map_voc2010`` makes the precision monotone from the right.
* A class without positives has no average precision, recall or F1: it is left out of every macro
  mean, and `per_class` shows it as nan with a support of 0.
* A score at or above the threshold counts as predicted. A class that is never predicted has
  precision 0.
* ``cf1`` is the harmonic mean of ``cp`` and ``cr``; ``cf1_mean`` is the mean of class F1.
* ``_top3`` counts only the three best labels of an image, and of those only the ones at or above
  the threshold.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

    Array = NDArray[Any] | Tensor

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

TOP = 3
_BLOCK_CELLS = 1 << 22  # cells copied at a time and thread: 16 MB of float32
_THREADS = min(8, os.cpu_count() or 1)

Result = TypeVar("Result")


def evaluate(probs: Array, targets: Array, threshold: float | ArrayLike = 0.5) -> dict[str, float]:
    """Return all metrics by name, as fractions.

    The names are `map`, `map_voc2010`, and `cp, cr, cf1, cf1_mean, op, or, of1`; the latter also
    exist with `_top3`. `threshold` is one number, one for each class [K], or one for each cell
    [N, K]. Raises `ValueError` for arrays that don't fit, scores outside 0..1 or nan, and targets
    other than 1, 0, -1.

    >>> found = evaluate([[0.9, 0.2], [0.6, 0.7], [0.1, 0.4]], [[1, 0], [0, 1], [1, -1]])
    >>> found["cp"], found["cr"], found["of1"]
    (0.75, 0.75, 0.6666666666666666)
    """
    return measure(probs, targets, threshold)[0]


def per_class(
    probs: Array, targets: Array, threshold: float | ArrayLike = 0.5
) -> dict[str, Floats]:
    """Return arrays [K]: ap, ap_voc2010, precision, recall, f1, support, predicted, known.

    `support`, `predicted` and `known` count the images that have the label, are predicted to have
    it, and have a known label. Arguments and errors as in `evaluate`.

    >>> found = per_class([[0.9, 0.2], [0.6, 0.7], [0.1, 0.4]], [[1, 0], [0, 1], [1, -1]])
    >>> found["recall"].tolist(), found["known"].tolist()
    ([0.5, 1.0], [3.0, 2.0])
    """
    return _as_arrays(_go_through(*_checked(probs, targets, threshold)))


def measure(
    probs: Array, targets: Array, threshold: float | ArrayLike = 0.5
) -> tuple[dict[str, float], dict[str, Floats]]:
    """Return the results of `evaluate` and of `per_class`, in the time of `evaluate` alone.

    >>> metrics, classes = measure([[0.9, 0.2], [0.6, 0.7]], [[1, 0], [0, 1]])
    >>> metrics["map"], classes["ap"].tolist()
    (1.0, [1.0, 1.0])
    """
    probs, targets, thresholds = _checked(probs, targets, threshold)
    classes = _go_through(probs, targets, thresholds)
    metrics = {"map": _mean(classes.ap), "map_voc2010": _mean(classes.ap_voc2010)}
    metrics |= _summarise(classes.decisions)
    top = _summarise(_count_top(probs, targets, thresholds, classes.decisions.support))
    metrics |= {f"{name}_top{TOP}": value for name, value in top.items()}
    return metrics, _as_arrays(classes)


def average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Return the average precision of one class: scores [N], targets [N]; nan if none is 1.

    >>> average_precision([0.9, 0.8, 0.7, 0.6], [1, 0, 1, -1])  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    scores, targets = _as_floats(_as_numpy(scores)), _as_numpy(targets)
    positive = np.sort(scores[targets == 1])
    return _average_precision(np.sort(scores[targets >= 0]), positive)[0]


def precision_recall_curve(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    """Return precision and recall of one class at each of its scores [N] as the threshold.

    Thresholds fall, so recall rises; targets [N] hold at least one 1.

    >>> precision_recall_curve([0.9, 0.8, 0.7, 0.6], [1, 0, 1, -1])
    (array([1.        , 0.5       , 0.66666667]), array([0.5, 0.5, 1. ]))
    """
    scores, targets = _as_floats(_as_numpy(scores)), _as_numpy(targets)
    ranked, positive = np.sort(scores[targets >= 0]), np.sort(scores[targets == 1])
    thresholds = np.unique(ranked)[::-1]
    hits = len(positive) - positive.searchsorted(thresholds)
    return hits / (len(ranked) - ranked.searchsorted(thresholds)), hits / len(positive)


def is_single_label(targets: Array) -> bool:
    """Whether each image has at most one label, and exactly one where all are known.

    The targets [N, K] are 1, 0, or -1 for unknown.

    >>> is_single_label([[1, 0], [0, 1], [-1, 0]]), is_single_label([[1, 1], [0, 1]])
    (True, False)
    """
    targets = _as_numpy(targets)
    known, labels = (targets >= 0).all(1), (targets == 1).sum(1)
    return bool(known.any() and (labels[known] == 1).all() and (labels <= 1).all())


def top_accuracy(probs: Array, targets: Array, k: int = 1) -> float:
    """Return the share of images whose one label is among the `k` best (ImageNet's top-1, top-5).

    Ties go to the earlier class; images without known labels are left out, and if there are no
    others, the share is nan. Raises `ValueError` as `evaluate` does, and for targets with several
    labels per image.

    >>> top_accuracy([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], [[1, 0, 0], [0, 1, 0]])
    0.5
    """
    probs, targets, _ = _checked(probs, targets, 0.5)
    if not (targets >= 0).all(1).any():
        return math.nan
    if not is_single_label(targets):
        raise ValueError("top-k accuracy needs targets with exactly one label per image")
    hits = images = 0
    rows_at_a_time = max(1, _BLOCK_CELLS // probs.shape[1])
    for start in range(0, len(probs), rows_at_a_time):
        rows = slice(start, start + rows_at_a_time)
        known = (targets[rows] >= 0).all(1)
        scores, labels = probs[rows][known], targets[rows][known].argmax(1)
        own = scores[np.arange(len(scores)), labels][:, None]
        earlier = np.arange(scores.shape[1]) < labels[:, None]
        rank = (scores > own).sum(1) + ((scores == own) & earlier).sum(1)
        hits, images = hits + int((rank < k).sum()), images + len(scores)
    return hits / images


# -- average precision -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Classes:
    """What is found of each class: arrays [K]."""

    ap: Floats
    ap_voc2010: Floats
    decisions: _Decisions
    known: Counts


def _as_arrays(classes: _Classes) -> dict[str, Floats]:
    counts = classes.decisions
    return {
        "ap": classes.ap,
        "ap_voc2010": classes.ap_voc2010,
        "precision": counts.precision(),
        "recall": counts.recall(),
        "f1": counts.f1(),
        "support": counts.support.astype(np.float64),
        "predicted": counts.predicted.astype(np.float64),
        "known": classes.known.astype(np.float64),
    }


def _average_precision(ranked: NDArray[Any], positive: NDArray[Any]) -> tuple[float, float]:
    """Return average precision, plain and with the monotone (VOC 2010) precision.

    From the sorted scores of all images and of those with the label. Only the latter's ranks
    count: between two of them precision falls. Tied scores are one threshold.
    """
    if len(positive) == 0:
        return float("nan"), float("nan")
    hits = len(positive) - positive.searchsorted(positive)
    precision = hits / (len(ranked) - ranked.searchsorted(positive))
    return float(precision.mean()), float(np.maximum.accumulate(precision).mean())


def _go_through(probs: NDArray[Any], targets: NDArray[Any], thresholds: NDArray[Any]) -> _Classes:
    """Sort the scores of each class once, and compute everything about the class from them."""
    N, K = probs.shape
    width = max(1, min(_BLOCK_CELLS // N, -(-K // _THREADS)))

    def look_at(start: int) -> list[tuple[float, ...]]:
        block = slice(start, start + width)
        # In two steps: a transposed copy straight from rows of K cells misses every cache.
        scores = _as_floats(np.ascontiguousarray(probs[:, block])).T.copy()
        truths = np.ascontiguousarray(targets[:, block]).T.copy()
        unknown = truths < 0
        scores[unknown] = -np.inf  # below every threshold, and below every positive
        decided = scores >= thresholds[:, block].T
        predicted, hits = decided.sum(1), (decided & (truths == 1)).sum(1)
        chosen = [np.sort(row[truth == 1]) for row, truth in zip(scores, truths, strict=True)]
        scores.sort(axis=1)
        rows = []
        for ranked, positive, *counts in zip(scores, chosen, hits, predicted, strict=True):
            rows.append((*_average_precision(ranked, positive), *counts, len(positive)))
        known = N - unknown.sum(1)
        return [(*row, count) for row, count in zip(rows, known.tolist(), strict=True)]

    rows = [row for block in _in_threads(look_at, range(0, K, width)) for row in block]
    ap, voc2010, *counts = np.array(rows, dtype=np.float64).T
    hits, predicted, support, known = (column.astype(np.int64) for column in counts)
    return _Classes(ap, voc2010, _Decisions(hits, predicted, support), known)


# -- decisions at a threshold ------------------------------------------------------------------


@dataclass(frozen=True)
class _Decisions:
    """Images of each class [K]: rightly predicted, predicted, and with the label."""

    hits: Counts
    predicted: Counts
    support: Counts

    def precision(self) -> Floats:
        """0 for a class that is never predicted."""
        return self.hits / np.maximum(self.predicted, 1)

    def recall(self) -> Floats:
        """Nan for a class without positives."""
        return np.where(self.support > 0, self.hits / np.maximum(self.support, 1), np.nan)

    def f1(self) -> Floats:
        """Nan for a class without positives."""
        f1 = 2 * self.hits / np.maximum(self.predicted + self.support, 1)
        return np.where(self.support > 0, f1, np.nan)


def _count_top(
    probs: NDArray[Any], targets: NDArray[Any], thresholds: NDArray[Any], support: Counts
) -> _Decisions:
    """Count decisions among the best labels of each image that reach their threshold.

    Unknown labels compete for the three places, as in CSRA, but are not counted. Ties go to the
    earlier class.
    """
    K = probs.shape[1]

    def count(block: slice) -> Counts:
        scores, truths, limits = probs[block].copy(), targets[block], thresholds[block]
        rows = np.arange(len(scores))
        counts = np.zeros((2, K), np.int64)
        for _ in range(min(TOP, K)):
            best = scores.argmax(1)
            truth = truths[rows, best]
            decided = (scores[rows, best] >= limits[rows, best]) & (truth >= 0)
            counts[0] += np.bincount(best[decided & (truth == 1)], minlength=K)
            counts[1] += np.bincount(best[decided], minlength=K)
            scores[rows, best] = -1  # below every threshold, and never the best again
        return counts

    hits, predicted = sum(_in_threads(count, _image_blocks(probs)), np.zeros((2, K), np.int64))
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


def _image_blocks(array: NDArray[Any]) -> list[slice]:
    """Return slices of rows such that a copy of each stays small."""
    height = max(1, min(_BLOCK_CELLS // array.shape[1], -(-len(array) // _THREADS)))
    return [slice(start, start + height) for start in range(0, len(array), height)]


def _in_threads(work: Callable[[Any], Result], blocks: Iterable[Any]) -> list[Result]:
    """Return the results for all blocks, in order; numpy lets threads sort and count at once."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, blocks))


def _as_floats(scores: NDArray[Any]) -> NDArray[Any]:
    """Return float32 or float64, which numpy sorts fast, without a change of any value."""
    if scores.dtype in (np.float32, np.float64):
        return scores
    return scores.astype(np.float32 if scores.dtype == np.float16 else np.float64)


def _as_numpy(array: Any) -> NDArray[Any]:
    """Return a numpy view where possible; bfloat16, which numpy lacks, becomes float32."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":
            array = array.float()
    return np.asarray(array)


def _first(blocks: Sequence[slice], fits: Sequence[bool]) -> str:
    return f"image {blocks[fits.index(False)].start} and on"


def _are_targets(block: NDArray[Any]) -> bool:
    if np.issubdtype(block.dtype, np.floating) and not (block == np.rint(block)).all():
        return False
    return block.dtype == bool or bool(block.min() >= -1 and block.max() <= 1)


def _checked(
    probs: Array, targets: Array, threshold: float | ArrayLike
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return consistent numpy arrays, or raise an error that names what doesn't fit."""
    probs, targets = _as_numpy(probs), _as_numpy(targets)
    if probs.ndim != 2 or probs.shape != targets.shape or 0 in probs.shape:
        raise ValueError(
            f"probs {probs.shape} and targets {targets.shape} must have the same shape [N, K], "
            "with at least one image and one class"
        )
    if not np.issubdtype(probs.dtype, np.floating):
        probs = probs.astype(np.float64)
    blocks = _image_blocks(probs)
    # nan fails both comparisons
    fits = _in_threads(lambda rows: bool(probs[rows].min() >= 0 and probs[rows].max() <= 1), blocks)
    if not all(fits):
        raise ValueError(f"probs of {_first(blocks, fits)} must lie in 0..1 (no nan)")
    fits = _in_threads(lambda rows: _are_targets(targets[rows]), blocks)
    if not all(fits):
        raise ValueError(f"targets of {_first(blocks, fits)} must be 1, 0 or -1 (unknown)")
    thresholds = np.asarray(threshold, dtype=np.float64)
    if thresholds.shape not in ((), (probs.shape[1],), probs.shape):
        raise ValueError(
            f"threshold {thresholds.shape} must be one number, or one per class or cell"
        )
    # Compare in the scores' own precision: float32 0.8 is at the threshold 0.8.
    return probs, targets, np.broadcast_to(thresholds.astype(probs.dtype), probs.shape)
