"""Metrics as naive loops, as a reference for the fast ones."""

from __future__ import annotations

import numpy as np


def naive_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the positives of the precision among all that score at least as high."""
    precisions = []
    for score in scores[targets == 1]:
        at_least = scores >= score
        precisions.append(targets[at_least].sum() / at_least.sum())
    return float(np.mean(precisions))


def naive_top3(
    probs: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray
) -> dict[str, float]:
    """Precision, recall and F1, by class and overall, of the three best labels of each image."""
    decided, limits = np.zeros(probs.shape, bool), np.broadcast_to(threshold, probs.shape)
    for row in range(len(probs)):
        best = sorted(range(probs.shape[1]), key=lambda k: (-probs[row, k], k))[:3]
        for k in best:
            decided[row, k] = probs[row, k] >= limits[row, k] and targets[row, k] >= 0
    cp, cr, f1, totals = [], [], [], np.zeros(3)
    for k in range(probs.shape[1]):
        hits = int((decided[:, k] & (targets[:, k] == 1)).sum())
        predicted, support = int(decided[:, k].sum()), int((targets[:, k] == 1).sum())
        totals += (hits, predicted, support)
        if support:
            cp.append(hits / predicted if predicted else 0.0)
            cr.append(hits / support)
            f1.append(2 * hits / (predicted + support))
    op = totals[0] / totals[1] if totals[1] else 0.0
    overall = totals[0] / totals[2] if totals[2] else float("nan")
    means = [float(np.mean(values)) if values else float("nan") for values in (cp, cr, f1)]

    def harmonic(a: float, b: float) -> float:
        return 2 * a * b / (a + b) if a + b else 0.0

    return {
        "cp": means[0], "cr": means[1], "cf1": harmonic(*means[:2]), "cf1_mean": means[2],
        "op": op, "or": overall, "of1": harmonic(op, overall),
    }  # fmt: skip
