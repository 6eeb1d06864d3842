"""Curves of precision and recall, and average precision by class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mltr import metrics
from mltr.pictures.gallery import as_drawn, pyplot, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

    from mltr.evaluation.predictions import Predictions

MOST_CURVES = 300  #: of the most frequent classes
MOST_ANSWERS = 10_000_000  #: of which a curve is drawn
PIXELS = 1000  #: of a picture's side: points of a curve that lie closer are one
MOST_BARS = 80  #: of the worst and the best classes
MANY_CLASSES = 25  #: maximum number of classes with curves of their own colour and name


def save_curves(folder: Path, predictions: Predictions, split: str = "test") -> list[Path]:
    """Write precision-recall curves and the average precision of each class as PNG files.

    For splits other than `test`, the file names end in the name of the split.
    """
    plt = pyplot()
    suffix = "" if split == "test" else f"_{split}"
    paths = [folder / f"{name}{suffix}.png" for name in ("precision_recall", "average_precision")]
    figure, axes = plt.subplots(figsize=(7, 5.2), layout="constrained")
    draw_precision_recall(axes, predictions)
    write_figure(paths[0], figure)
    write_figure(paths[1], draw_average_precision(predictions))
    return paths


def draw_precision_recall(axes: Axes, predictions: Predictions) -> None:
    """Draw a curve for each class (grey if there are many), and one for all decisions together.

    Of more than `MOST_CURVES` classes the most frequent have one.
    """
    probs, targets = predictions.probs, predictions.targets
    many = len(predictions.classes) > MANY_CLASSES
    support = (targets == 1).sum(axis=0)
    drawn = np.argsort(-support, kind="stable")[:MOST_CURVES]
    lines: list[Line2D] = []
    names: list[str] = []
    for index in sorted(drawn[support[drawn] > 0]):
        name = predictions.classes[index]
        precision, recall = _curve(probs[:, index], targets[:, index])
        if many:
            axes.plot(recall, precision, color="0.8", lw=0.8)
        else:
            lines += axes.plot(recall, precision, lw=1.4)
            names.append(as_drawn(name))
    if (targets == 1).any():
        precision, recall = _curve(probs, targets)
        lines += axes.plot(recall, precision, color="black", lw=2.2)
        names.append("all decisions together")
        # With the lines given, names that begin with _ are there, too.
        axes.legend(lines, names, loc="lower left", fontsize="small", frameon=False)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    of_some = f", {MOST_CURVES} most frequent classes" if len(support) > MOST_CURVES else ""
    axes.set_title(f"Precision and recall over all thresholds{of_some}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _curve(
    probs: NDArray[np.float32], targets: NDArray[np.int8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and recall at the thresholds that a picture tells apart.

    Of more answers than `MOST_ANSWERS`, some are drawn, whose curve looks the same.
    """
    probs, targets = probs.ravel(), targets.ravel()
    if len(probs) > MOST_ANSWERS:
        chosen = np.random.default_rng(0).integers(len(probs), size=MOST_ANSWERS)
        if (targets[chosen] == 1).any():
            probs, targets = probs[chosen], targets[chosen]
    precision, recall = metrics.precision_recall_curve(probs, targets)
    places = np.rint(PIXELS * np.stack([precision, recall]))
    shown = np.r_[True, (np.diff(places) != 0).any(axis=0)]
    return precision[shown], recall[shown]


def draw_average_precision(predictions: Predictions) -> Figure:
    """Draw the average precision of each class as a bar; classes without positives have none.

    Of more than `MOST_BARS` classes, half as many of the worst and of the best have one.
    """
    classes = metrics.per_class(predictions.probs, predictions.targets)
    order = [i for i in np.argsort(classes["ap"]) if not np.isnan(classes["ap"][i])]
    title = "Average precision by class"
    if len(order) > MOST_BARS:
        half = MOST_BARS // 2
        title += f": the {half} best and the {half} worst of {len(order)}"
        order = order[:half] + order[-half:]
    # Before the axes, whose marks keep the fonts that they begin with.
    names = [f"{as_drawn(predictions.classes[i])} ({classes['support'][i]:.0f})" for i in order]
    size = (7, max(2.4, 0.6 + 0.26 * len(order)))
    figure: Figure
    figure, axes = pyplot().subplots(figsize=size, layout="constrained")
    values = 100 * classes["ap"][order]
    bars = axes.barh(names, values, color="#3b7dd8", height=0.7)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
    axes.set(xlabel="average precision, % (images with the class)", xlim=(0, 108))
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
