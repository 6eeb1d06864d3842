"""The figures of `mltr evaluate`, which training and model cards show, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mltr import metrics
from mltr.errors import counted
from mltr.terminal import make_console, printable

if TYPE_CHECKING:
    from rich.table import Table

    from mltr.evaluation.predictions import Predictions

#: Descriptions of the metrics.
PROTOCOLS = {
    "map": "mAP, non-interpolated, classes without positives left out",
    "map_voc2010": "mAP, precision made monotone (VOC 2010)",
    "cp": "per-class precision",
    "cr": "per-class recall",
    "cf1": "harmonic mean of cp and cr",
    "cf1_mean": "mean of per-class F1",
    "op": "overall precision",
    "or": "overall recall",
    "of1": "overall F1",
    "top1": "images whose label is the top prediction",
    "top5": "images whose label is among the top five predictions",
}
BAR_WIDTH = 10  #: characters


def report(
    predictions: Predictions, threshold: float = 0.5, thresholds: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return all figures as plain values: the metrics by name, `per_class`, and counts.

    With `thresholds` [K], `at_own_thresholds` has the figures at each class's own threshold.
    """
    probs, targets = predictions.probs, predictions.targets
    found, classes = metrics.measure(probs, targets, threshold)
    figures: dict[str, Any] = dict(found)
    if metrics.is_single_label(targets):
        figures |= {
            f"top{k}": metrics.top_accuracy(probs, targets, k)
            for k in (1, 5)
            if k < len(predictions.classes)
        }
    figures["threshold"] = threshold
    figures["images"] = len(predictions.images)
    figures["broken_images"] = list(predictions.errors)
    figures["classes_without_positives"] = [
        name
        for name, support in zip(predictions.classes, classes["support"], strict=True)
        if support == 0
    ]
    figures["per_class"] = {
        name: {key: float(values[index]) for key, values in classes.items()}
        for index, name in enumerate(predictions.classes)
    }
    if thresholds is not None:
        figures["at_own_thresholds"] = _report_at(predictions, thresholds)
    return figures


def without_files(figures: dict[str, Any]) -> dict[str, Any]:
    """Return figures as they may be published: without the lists of files that can't be read."""
    files = ("broken_images", "broken_training_images")
    return {name: value for name, value in figures.items() if name not in files}


def _report_at(predictions: Predictions, thresholds: Sequence[float]) -> dict[str, Any]:
    """Return the figures that depend on thresholds, at one threshold per class [K]."""
    probs, targets = predictions.probs, predictions.targets
    found, classes = metrics.measure(probs, targets, predictions.limits(thresholds))
    figures: dict[str, Any] = dict(found)
    figures["per_class"] = {
        name: {"threshold": float(thresholds[index])}
        | {key: float(classes[key][index]) for key in ("precision", "recall", "f1", "predicted")}
        for index, name in enumerate(predictions.classes)
    }
    return figures


# -- on screen ---------------------------------------------------------------------------------


def print_report(figures: dict[str, Any], title: str) -> None:
    """Print the headline figures with their protocols, then a row per class."""
    console = make_console()
    console.print(_headline_table(figures, title))
    console.print(_class_table(figures))
    if "at_own_thresholds" in figures:
        console.print(_own_table(figures["at_own_thresholds"]["per_class"]))
    if figures["classes_without_positives"]:
        names = ", ".join(figures["classes_without_positives"])
        console.print(f"no positives, so left out of every mean: {names}")
    for error in figures["broken_images"][:10]:
        console.print(printable(f"left out, broken: {error}"))


def _headline_table(figures: dict[str, Any], title: str) -> Table:
    from rich.table import Table

    table = Table(title=f"{title}: {counted(figures['images'], 'image')}", title_justify="left")
    own = figures.get("at_own_thresholds")
    columns = ["%", "top-3 %"] + ([] if own is None else ["own %"])
    for heading in ("metric", *columns, "what it is"):
        table.add_column(heading, justify="right" if "%" in heading else "left")
    for name, words in PROTOCOLS.items():
        if name not in figures:
            continue
        top = figures.get(f"{name}_top3")
        cells = [f"{100 * figures[name]:.2f}", "" if top is None else f"{100 * top:.2f}"]
        if own is not None:
            cells.append("" if top is None else f"{100 * own[name]:.2f}")
        table.add_row(name, *cells, words)
    table.caption = f"threshold {figures['threshold']:g}; at or above counts as predicted"
    if own is not None:
        table.caption += "; own: at each class's own"
    return table


def _class_table(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("class")
    for heading in ("AP %", "precision %", "recall %", "F1 %", "images"):
        table.add_column(heading, justify="right")
    table.add_column("")
    rows = sorted(
        figures["per_class"].items(), key=lambda row: -np.nan_to_num(row[1]["ap"], nan=-1)
    )
    for name, values in rows:
        bar = "" if np.isnan(values["ap"]) else "█" * round(BAR_WIDTH * values["ap"])
        cells = [percent(values[key]) for key in ("ap", "precision", "recall", "f1")]
        table.add_row(name, *cells, f"{values['support']:.0f}", bar)
    return table


def _own_table(classes: dict[str, dict[str, float]]) -> Table:
    """Return the table of classes at their own thresholds, in the order of the data."""
    from rich.table import Table

    table = Table(title="each class at its own threshold", title_justify="left")
    table.add_column("class")
    for heading in ("threshold", "precision %", "recall %", "F1 %", "predicted"):
        table.add_column(heading, justify="right")
    for name, values in classes.items():
        cells = [percent(values[key]) for key in ("precision", "recall", "f1")]
        table.add_row(name, f"{values['threshold']:.3f}", *cells, f"{values['predicted']:.0f}")
    return table


def percent(share: float) -> str:
    """Return a share in percent with one decimal, or ``-`` for nan."""
    return "-" if np.isnan(share) else f"{100 * share:.1f}"
