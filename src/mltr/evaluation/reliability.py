"""Reliability of probabilities: calibration error, reliability curves, gains in F1.

``ece`` is the expected calibration error over all known cells (micro): the absolute difference of
a label's mean probability and frequency in 15 bins of equal width, weighted by their counts.
``ece_mean`` is its mean over classes (macro). ``brier`` is the mean squared error over all known
cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mltr import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mltr.evaluation.aims import Aim
    from mltr.evaluation.predictions import Predictions
    from mltr.evaluation.thresholds import Fitted

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int8]

BINS = 15  #: bins of `ece`, as in Guo et al.
CURVE_BINS = 10  #: bins of the drawn curves
CURVE_MIN = 5  #: minimum decisions behind a point of a curve
BOOTSTRAP_BLOCKS, BOOTSTRAP_SIZE = 20, 50  #: resamples are drawn 50 at a time, to save memory
MANY_CLASSES = 11  #: maximum number of classes with a reliability curve
#: The metrics whose gains get an interval, in the order of `summarise`.
GAINS = ("cp", "cr", "cf1", "cf1_mean", "op", "or", "of1")


def measure(
    probs: Floats, targets: Labels, thresholds: float | Floats, aim: Aim
) -> dict[str, float]:
    """Return the metrics at `thresholds`, calibration errors, and for a cost aim the cost."""
    figures = metrics.evaluate(probs, targets, thresholds)
    figures = {name: value for name, value in figures.items() if "top" not in name}
    known = targets >= 0
    columns = [k for k in range(targets.shape[1]) if known[:, k].any()]
    errors = [calibration_error(probs[known[:, k], k], targets[known[:, k], k]) for k in columns]
    figures["ece"] = calibration_error(probs[known], targets[known])
    figures["ece_mean"] = float(np.mean(errors)) if errors else float("nan")
    figures["brier"] = _brier(probs[known], targets[known])
    if aim.kind == "cost":
        decided = probs >= np.asarray(thresholds, probs.dtype)
        false_alarms = (decided & (targets == 0)).sum()
        misses = (~decided & (targets == 1)).sum()
        cost = aim.false_alarm * false_alarms + aim.miss * misses
        figures["cost_per_image"] = float(cost / len(targets))
    return figures


def calibration_error(probs: Floats, truths: Labels) -> float:
    """Return the expected calibration error of probabilities [n] of label 1; nan if n is 0."""
    if not len(probs):
        return float("nan")
    frequency, confidence, counts = reliability_curve(probs, truths, BINS)
    return float(counts / counts.sum() @ np.abs(frequency - confidence))


def reliability_curve(probs: Floats, truths: Labels, bins: int) -> tuple[Floats, Floats, Floats]:
    """Return frequency, mean probability and count of each non-empty bin of equal width."""
    from sklearn.calibration import calibration_curve

    frequency, confidence = calibration_curve(truths, probs, n_bins=bins, pos_label=1)
    edges = np.linspace(0, 1, bins + 1)[1:-1]  # as in scikit-learn, which doesn't return counts
    counts = np.bincount(np.searchsorted(edges, probs), minlength=bins)
    return frequency, confidence, counts[counts > 0].astype(np.float64)


def _brier(probs: Floats, truths: Labels) -> float:
    from sklearn.metrics import brier_score_loss

    return float(brier_score_loss(truths, probs, pos_label=1)) if len(probs) else float("nan")


def bootstrap_gains(
    before: Predictions,
    after: Predictions,
    thresholds: Floats,
    old_thresholds: float | Floats = 0.5,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Return a 95 % bootstrap interval of the gain in each metric, by name."""
    generator = np.random.default_rng(seed)
    N = len(before.targets)
    old = _image_counts(before.probs >= np.asarray(old_thresholds, np.float32), before.targets)
    new = _image_counts(after.probs >= thresholds.astype(np.float32), after.targets)
    blocks = []
    for _ in range(BOOTSTRAP_BLOCKS):
        draws = (generator.integers(N, size=N) for _ in range(BOOTSTRAP_SIZE))
        times = np.stack([np.bincount(draw, minlength=N) for draw in draws]).astype(np.float32)
        blocks.append(summarise(times @ new) - summarise(times @ old))
    low, high = np.nanquantile(np.concatenate(blocks, axis=1), (0.025, 0.975), axis=1)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(GAINS)}


def _image_counts(decided: NDArray[np.bool_], targets: Labels) -> Floats:
    """Return each image's contribution to hits, predictions and positives: [3, N, K]."""
    positive = targets == 1
    return np.stack([decided & positive, decided & (targets >= 0), positive]).astype(np.float32)


def summarise(counts: Floats) -> Floats:
    """Return the metrics `GAINS` [7, B] from hits, predictions and positives [3, B, K].

    They are those of `metrics.evaluate`, for B resamples at once.
    """
    hits, predicted, support = counts.astype(np.float64)
    scored = support > 0
    classes = np.maximum(scored.sum(-1), 1)
    precision = (hits / np.maximum(predicted, 1) * scored).sum(-1) / classes
    recall = (hits / np.maximum(support, 1)).sum(-1) / classes
    f1 = (2 * hits / np.maximum(predicted + support, 1)).sum(-1) / classes
    all_hits = hits.sum(-1)
    op = all_hits / np.maximum(predicted.sum(-1), 1)
    overall_recall = all_hits / np.maximum(support.sum(-1), 1)
    cf1, of1 = (
        2 * a * b / np.where(a + b > 0, a + b, 1)
        for a, b in ((precision, recall), (op, overall_recall))
    )
    return np.stack([precision, recall, cf1, f1, op, overall_recall, of1])


# -- pictures ----------------------------------------------------------------------------------


def save_reliability(folder: Path, fitted: Fitted, test: Predictions) -> Path:
    """Write reliability.png, the test images' curves before and after; return its path."""
    from mltr.evaluation.predictions import as_predicted
    from mltr.pictures.gallery import write_figure

    after = as_predicted(test, fitted.calibration).probs
    figure = draw_reliability(as_predicted(test), after, fitted.thresholds)
    path = folder / "reliability.png"
    write_figure(path, figure)
    return path


def draw_reliability(
    test: Predictions, after: NDArray[np.float32], thresholds: Sequence[float] | Floats
) -> Figure:
    """Return a figure of frequency against probability, before and `after` [N, K] calibration.

    One panel is for all decisions together, the others for the most frequent classes.
    """
    from mltr.pictures.gallery import as_drawn, pyplot

    known = test.targets >= 0
    support = (test.targets == 1).sum(0)
    order = np.argsort(-support, kind="stable")[:MANY_CLASSES]
    panels: list[tuple[str, NDArray[np.bool_], float | None]]
    panels = [("all decisions together", known, None)]
    for k in sorted(order):
        only = np.zeros_like(known)
        only[:, k] = known[:, k]
        panels.append((as_drawn(test.classes[k]), only, float(thresholds[k])))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure: Figure
    figure, grid = pyplot().subplots(
        rows,
        columns,
        figsize=(2.9 * columns, 3.1 * rows + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for axes, (title, cells, threshold) in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, title, test.probs[cells], after[cells], test.targets[cells], threshold)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("probability", fontsize="medium")
    figure.supylabel("share of images that have the class", fontsize="medium")
    handles, labels = grid.flat[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    return figure


def _draw_panel(
    axes: Axes, title: str, before: Floats, after: Floats, truths: Labels, threshold: float | None
) -> None:
    """Draw the curves of one class, without bins of fewer than `CURVE_MIN` decisions."""
    axes.plot([0, 1], [0, 1], color="0.75", lw=1, ls=":", label="perfect")
    if threshold is not None:
        axes.axvline(threshold, color="#e07b39", lw=1, label="threshold")
    curves = [(before, "0.55", "before"), (after, "#3b7dd8", "after")]
    if np.array_equal(before, after):
        curves = [(before, "#3b7dd8", "the run")]
    for probs, colour, label in curves:
        if len(probs):
            share, mean, counts = reliability_curve(probs, truths, CURVE_BINS)
            seen = counts >= CURVE_MIN
            axes.plot(mean[seen], share[seen], color=colour, lw=1.6, marker="o", ms=3, label=label)
    errors = [calibration_error(probs, truths) for probs in (before, after)]
    words = " → ".join(f"{100 * error:.1f}" for error in dict.fromkeys(errors))
    words = f"ECE {words} %" if len(before) else "no label"
    axes.set_title(f"{title}\n{words}", loc="left", fontsize="small")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
