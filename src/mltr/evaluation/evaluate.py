"""`mltr evaluate`: every metric of a run with its definition, a table of classes, and curves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mltr import metrics
from mltr.config.schema import SPLITS
from mltr.errors import UsageError, counted
from mltr.predict.views import HELP, parse_views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
MANY_CLASSES = 25  #: maximum number of classes with curves of their own colour and name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a bundle with --data.root")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="images to score (default: test)",
    )
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="score the images again instead of reading the stored predictions",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="minimum probability of a predicted label (default: 0.5)",
    )
    parser.add_argument("--views", metavar="VIEW,...", help=HELP)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="folder for the curves (default: RUN, unless --data options choose other images)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON (- for stdout)")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Evaluate a run; overrides such as ``--data.root DIR`` select another source."""
    from mltr.evaluation.open_run import chooses_one_class, scores_of, thresholds_of
    from mltr.files.writing import write_figures

    if not 0 <= args.threshold <= 1:
        raise UsageError(f"--threshold {args.threshold:g} must lie in 0..1")
    views = parse_views(args.views)
    predictions = scores_of(args.run, args.split, overrides, args.rerun, views)
    figures = report(predictions, args.threshold, thresholds_of(args.run, predictions.classes))
    if args.json != "-":
        print_report(figures, f"{Path(args.run).name}, {args.split}")
    is_own = not views and not any(option.startswith("--data.") for option in overrides)
    if args.out or is_own:  # don't replace the curves of the run's own images
        pictures = save_curves(Path(args.out or args.run), predictions, args.split)
        if args.json != "-":
            print("curves:", ", ".join(map(str, pictures)))
    if args.json:
        write_figures(args.json, figures)
    if chooses_one_class(args.run):
        args.next = "mltr diagnose {run}"
    return 0


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


def _report_at(predictions: Predictions, thresholds: Sequence[float]) -> dict[str, Any]:
    """Return the figures that depend on thresholds, at one threshold per class [K]."""
    probs, targets = predictions.probs, predictions.targets
    found, classes = metrics.measure(probs, targets, thresholds)
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
    from rich.console import Console

    console = Console()
    console.print(_headline_table(figures, title))
    console.print(_class_table(figures))
    if "at_own_thresholds" in figures:
        console.print(_own_table(figures["at_own_thresholds"]["per_class"]))
    if figures["classes_without_positives"]:
        names = ", ".join(figures["classes_without_positives"])
        console.print(f"no positives, so left out of every mean: {names}")
    for error in figures["broken_images"][:10]:
        console.print(f"left out, broken: {error}", markup=False)


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


# -- pictures ----------------------------------------------------------------------------------


def save_curves(folder: Path, predictions: Predictions, split: str = "test") -> list[Path]:
    """Write precision-recall curves and the average precision of each class as PNG files.

    For splits other than `test`, the file names end in the name of the split.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from mltr.gallery import write_figure

    suffix = "" if split == "test" else f"_{split}"
    paths = [folder / f"{name}{suffix}.png" for name in ("precision_recall", "average_precision")]
    figure, axes = plt.subplots(figsize=(7, 5.2), layout="constrained")
    draw_precision_recall(axes, predictions)
    write_figure(paths[0], figure)
    height = max(2.4, 0.6 + 0.26 * len(predictions.classes))
    figure, axes = plt.subplots(figsize=(7, min(height, 40)), layout="constrained")
    draw_average_precision(axes, predictions)
    write_figure(paths[1], figure)
    return paths


def draw_precision_recall(axes: Axes, predictions: Predictions) -> None:
    """Draw a curve for each class (grey if there are many), and one for all decisions together."""
    probs, targets = predictions.probs, predictions.targets
    many = len(predictions.classes) > MANY_CLASSES
    for index, name in enumerate(predictions.classes):
        if not (targets[:, index] == 1).any():
            continue
        precision, recall = metrics.precision_recall_curve(probs[:, index], targets[:, index])
        if many:
            axes.plot(recall, precision, color="0.8", lw=0.8)
        else:
            axes.plot(recall, precision, lw=1.4, label=name)
    if (targets == 1).any():
        precision, recall = metrics.precision_recall_curve(probs.ravel(), targets.ravel())
        axes.plot(recall, precision, color="black", lw=2.2, label="all decisions together")
        axes.legend(loc="lower left", fontsize="small", frameon=False)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title("Precision and recall over all thresholds", loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def draw_average_precision(axes: Axes, predictions: Predictions) -> None:
    """Draw the average precision of each class as a bar; classes without positives have none."""
    classes = metrics.per_class(predictions.probs, predictions.targets)
    order = [i for i in np.argsort(classes["ap"]) if not np.isnan(classes["ap"][i])]
    values = 100 * classes["ap"][order]
    names = [f"{predictions.classes[i]} ({classes['support'][i]:.0f})" for i in order]
    bars = axes.barh(names, values, color="#3b7dd8", height=0.7)
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
    axes.set(xlabel="average precision, % (images with the class)", xlim=(0, 108))
    axes.set_title("Average precision by class", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
