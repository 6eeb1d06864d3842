"""What a calibration gains on the test images: figures and tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mltr import metrics
from mltr.errors import counted
from mltr.evaluation.figures import percent
from mltr.evaluation.thresholds import KEPT, OWN, SHARED, Fitted
from mltr.predict.options import DEFAULT_THRESHOLD
from mltr.predict.thresholds import ALL
from mltr.terminal import make_console

if TYPE_CHECKING:
    from rich.table import Table

    from mltr.evaluation.predictions import Predictions

#: Descriptions of the figures on the test images.
METRICS = {
    "cost_per_image": "cost of false alarms and misses",
    "cf1": "harmonic mean of cp and cr",
    "of1": "overall F1",
    "cf1_mean": "mean of per-class F1",
    "cp": "per-class precision",
    "cr": "per-class recall",
    "op": "overall precision",
    "or": "overall recall",
    "ece": "expected calibration error over all decisions",
    "ece_mean": "the same, mean over classes",
    "brier": "mean squared error of the probabilities",
}
MARKS = {OWN: "", SHARED: "*", KEPT: "="}  #: beside a threshold
OUT_OF_REACH = "!"  #: likewise


def report(
    fitted: Fitted, val: Predictions, test: Predictions, min_positives: int
) -> dict[str, Any]:
    """Return all figures as plain values: the fit, and the test metrics before and after."""
    from mltr.evaluation.predictions import as_predicted
    from mltr.evaluation.reliability import bootstrap_gains, measure

    before, after = as_predicted(test), as_predicted(test, fitted.calibration)
    old_limits, limits = before.limits(fitted.before), after.limits(fitted.thresholds)
    sides = {
        "before": measure(before.probs, before.targets, old_limits, fitted.aim),
        "after": measure(after.probs, after.targets, limits, fitted.aim),
    }
    rows = {
        "before": metrics.per_class(before.probs, before.targets, old_limits),
        "after": metrics.per_class(after.probs, after.targets, limits),
    }
    positives = (val.targets == 1).sum(0)
    return {
        "aim": str(fitted.aim),
        "scaling": fitted.scaling,
        "temperature": _temperature(fitted),
        "min_positives": min_positives,
        "shared_threshold": fitted.shared.get(ALL),
        "category_thresholds": {kind: t for kind, t in fitted.shared.items() if kind != ALL},
        "val_images": len(val.images),
        "test_images": len(test.images),
        "test": sides,
        "gain_95": bootstrap_gains(before, after, limits, old_limits),
        "per_class": {
            name: {
                "threshold": float(fitted.thresholds[k]),
                "threshold_before": float(fitted.before[k]),
                "threshold_is": fitted.origins[k],
                "aim_reached_on_val": fitted.reached[k],
                "val_positives": int(positives[k]),
                "test_positives": int(rows["before"]["support"][k]),
            }
            | {
                side: {key: float(row[key][k]) for key in ("precision", "recall", "f1")}
                for side, row in rows.items()
            }
            for k, name in enumerate(val.classes)
        },
    }


def _temperature(fitted: Fitted) -> float | None:
    calibration = fitted.calibration
    if calibration is None or calibration.method != "temperature":
        return None
    return 1 / calibration.scale[0]


# -- on screen ---------------------------------------------------------------------------------


def print_report(figures: dict[str, Any], folder: Path) -> None:
    """Print the gain on the test images, then a row per class."""
    console = make_console()
    console.print(_gain_table(figures, folder.name))
    console.print(_class_table(figures))
    for line in _remarks(figures, folder):
        console.print(line, highlight=False)


def _gain_table(figures: dict[str, Any], title: str) -> Table:
    from rich.table import Table

    table = Table(
        title=f"{title}, {counted(figures['test_images'], 'test image')}; fitted on "
        f"{counted(figures['val_images'], 'validation image')}",
        title_justify="left",
    )
    table.add_column("metric")
    for heading in ("before", "after", "gain"):
        table.add_column(heading, justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("what it is")
    before, after = figures["test"]["before"], figures["test"]["after"]
    for name, words in METRICS.items():
        if name not in before:
            continue
        unit = 1 if name == "cost_per_image" else 100
        old, new = unit * before[name], unit * after[name]
        if np.isnan(old):  # no known label
            table.add_row(name, "-", "-", "-", "-", words)
            continue
        low, high = (unit * q for q in figures["gain_95"].get(name, (np.nan, np.nan)))
        interval = "" if np.isnan(low) else f"{low:+.2f} .. {high:+.2f}"
        table.add_row(name, f"{old:.2f}", f"{new:.2f}", f"{new - old:+.2f}", interval, words)
    table.caption = (
        f"In %, except for costs. Before: no scaling, {_describe_before(figures)}. "
        f"After: {_describe_scaling(figures)}, thresholds for {figures['aim']}. "
        "Interval: bootstrap over images."
    )
    table.caption_justify = "left"
    return table


def _describe_before(figures: dict[str, Any]) -> str:
    found = {row["threshold_before"] for row in figures["per_class"].values()}
    is_default = found == {DEFAULT_THRESHOLD}
    return "threshold 0.5 for every class" if is_default else "the thresholds that it had"


def _describe_scaling(figures: dict[str, Any]) -> str:
    if figures["temperature"] is not None:
        return f"temperature {figures['temperature']:.3f}"
    return {"shared": "a factor and a shift for all classes", "platt": "Platt scaling"}.get(
        figures["scaling"], "no scaling"
    )


def _class_table(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(caption="val, test: number of images with the class", caption_justify="left")
    table.add_column("class")
    for heading in ("threshold", "val", "test", "precision %", "recall %", "F1 %"):
        table.add_column(heading, justify="right", no_wrap=heading == "F1 %")
    for name, row in figures["per_class"].items():
        after = row["after"]
        table.add_row(
            name,
            f"{row['threshold']:.3f}{_marks(row):2}",
            str(row["val_positives"]),
            str(row["test_positives"]),
            percent(after["precision"]),
            percent(after["recall"]),
            f"{percent(row['before']['f1'])} → {percent(after['f1'])}",
        )
    return table


def _marks(row: Mapping[str, Any]) -> str:
    return MARKS[row["threshold_is"]] + ("" if row["aim_reached_on_val"] else OUT_OF_REACH)


def _remarks(figures: dict[str, Any], folder: Path) -> list[str]:
    """Return footnotes of the table, a caveat, and where the result is stored."""
    rows = figures["per_class"]
    lines = []
    few = f"fewer than {figures['min_positives']} positive validation images or no negative one"
    together = "those of its category" if figures["category_thresholds"] else "all classes"
    words = {
        SHARED: f"shared threshold, the best for {together} together, as the class has {few}",
        KEPT: f"decides as before, as the classes of its category together have {few}",
    }
    origins = {row["threshold_is"] for row in rows.values()}
    lines += [f"{MARKS[origin]} {text}" for origin, text in words.items() if origin in origins]
    if not all(row["aim_reached_on_val"] for row in rows.values()):
        lines.append(
            f"{OUT_OF_REACH} no threshold reaches {figures['aim']} on the validation images; this "
            "one comes closest"
        )
    if figures["best_epoch"] is not None:
        lines.append(
            f"The validation images also chose the epoch ({figures['best_epoch']}), so the network "
            "may be slightly overconfident on them. The test images weren't used for any choice."
        )
    lines.append(
        f"Stored in {folder / 'config.json'}; all predictions use it from now on "
        f"(mltr calibrate {shlex.quote(str(folder))} --reset removes it)."
    )
    return lines
