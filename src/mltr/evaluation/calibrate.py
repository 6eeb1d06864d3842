"""`mltr calibrate`: fit thresholds for an aim, and calibrate probabilities, on held-out images.

Both are fitted on the run's validation images. The test images only measure the gain. Fitting
starts from the uncalibrated scores, so repeating it changes nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mltr import metrics
from mltr.errors import MltrError, UsageError, counted
from mltr.evaluation.evaluate import percent
from mltr.evaluation.thresholds import AIMS, SCALING_CHOICES, Fitted, fit, parse_aim
from mltr.weights.metadata import SOFTMAX, read_calibration

if TYPE_CHECKING:
    from rich.table import Table

    from mltr.evaluation.open_run import OpenRun
    from mltr.evaluation.open_tagger import OpenTagger
    from mltr.evaluation.predictions import Predictions

log = logging.getLogger(__name__)

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
SOURCE_FIELDS = ("format", "root", "labels", "images", "scenes")  #: fields that identify a source
SHARED, OUT_OF_REACH = "*", "!"  #: marks beside a threshold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a bundle with --data.root")
    parser.add_argument(
        "--aim", default="f1", metavar="AIM", help=f"aim of the thresholds (default: f1): {AIMS}"
    )
    parser.add_argument(
        "--scaling",
        choices=SCALING_CHOICES,
        default="shared",
        help="calibration of the probabilities: a factor and a shift for all classes (default: "
        "shared), for each class (platt), or a factor alone (temperature), which corrects no bias",
    )
    parser.add_argument(
        "--min-positives",
        type=int,
        default=10,
        metavar="N",
        help="classes with fewer positive validation images use the shared threshold (default: 10)",
    )
    parser.add_argument(
        "--reset", action="store_true", help="remove stored thresholds and calibration"
    )
    parser.add_argument("--out", metavar="FOLDER", help="folder for reliability.png (default: RUN)")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON (- for stdout)")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Calibrate a run; overrides such as ``--data.root DIR`` set where its images are."""
    from mltr.evaluation.open_run import OpenRun, open_judged
    from mltr.evaluation.reliability import save_reliability
    from mltr.files.writing import write_figures
    from mltr.runs.folder import RunFolder

    aim = parse_aim(args.aim)
    if args.min_positives < 1:
        raise UsageError(f"--min-positives {args.min_positives} must be at least 1")
    if args.reset:
        return reset(args.run)
    opened = open_judged(args.run, overrides)
    calibration = _without_calibration(opened.path)["calibration"]
    if isinstance(opened, OpenRun):
        _check_held_out(opened)
        if not RunFolder(opened.path).metrics.is_file():
            log.warning("%s isn't finished: a better epoch will discard this", opened.path)
    log.info("scoring %s", counted(len(opened.splits.val), "validation image"))
    val = opened.score_uncalibrated("val")
    # A softmax isn't scaled; only its thresholds are fitted.
    fitted = fit(val, aim, "none" if calibration else args.scaling, args.min_positives)
    test = _test_predictions(opened, overrides)
    figures = report(fitted, val, test, args.min_positives)
    figures["best_epoch"] = _best_epoch(opened.path)
    store(args.run, fitted, figures)
    picture = save_reliability(Path(args.out or args.run), fitted, test)
    if args.json != "-":
        print_report(figures, Path(args.run))
        print(f"reliability curves: {picture}")
    if args.json:
        write_figures(args.json, figures)
    return 0


def reset(folder: str | Path) -> int:
    """Remove thresholds and calibration from a bundle."""
    from mltr.weights.bundle import read_config, update_config

    removed = _without_calibration(folder)
    before = read_config(folder)
    if all(before.get(key) == removed[key] for key in ("thresholds", "calibration")):
        print(f"{folder} has no thresholds and no calibration: nothing to remove")
        return 0
    update_config(folder, removed)
    print(f"{folder}: reset to uncalibrated probabilities and a threshold of 0.5 for every class")
    return 0


def _without_calibration(folder: str | Path) -> dict[str, Any]:
    """Return the entries of config.json without calibration; a tagger keeps its softmax.

    Raises `UsageError` for a run with a softmax.
    """
    from mltr.evaluation.open_run import chooses_one_class
    from mltr.weights.bundle import read_config

    config = read_config(folder)
    is_softmax = read_calibration(config) == SOFTMAX
    if chooses_one_class(folder):
        raise UsageError(
            f"{folder} predicts one class per image: it has no thresholds to calibrate"
        )
    extra = dict(config.get("extra") or {})
    extra.pop("calibrated", None)
    return {
        "thresholds": None,
        "calibration": SOFTMAX.to_dict() if is_softmax else None,
        "extra": extra,
    }


def _check_held_out(opened: OpenRun) -> None:
    """Refuse to fit or measure on training images, if the source or its split has changed.

    With another source this is only a warning, since its images may have the same names.
    """
    from mltr.config.recipe import load_recipe
    from mltr.runs.folder import RunFolder, with_absolute_paths

    folder = RunFolder(opened.path)
    try:
        trained = set(json.loads(folder.splits.read_text("utf-8")).get("train", ()))
    except (OSError, ValueError):  # earlier versions and converted bundles have no such file
        return
    for split in (opened.splits.val, opened.splits.test):
        seen = [record.name for record in split if record.name in trained]
        if not seen:
            continue
        message = (
            f"{len(seen)} of {len(split)} {split.name} images have the names of training images of "
            f"this run ({', '.join(seen[:3])}), and figures on training images are biased"
        )
        recipes = load_recipe(folder.recipe), opened.config
        before, now = (with_absolute_paths(recipe).data for recipe in recipes)
        if all(getattr(before, field) == getattr(now, field) for field in SOURCE_FIELDS):
            raise MltrError(f"{message}; restore the source and its splits, or give another source")
        log.warning("%s: make sure that they are different images", message)


def _test_predictions(opened: OpenRun | OpenTagger, overrides: Sequence[str]) -> Predictions:
    """Return uncalibrated test scores: the saved ones, unless overrides change the images."""
    from mltr.evaluation.predictions import load_predictions
    from mltr.runs.folder import PREDICTIONS_FILE

    saved = opened.path / PREDICTIONS_FILE
    if saved.is_file() and not overrides:
        return load_predictions(saved)
    log.info("scoring %s", counted(len(opened.splits.test), "test image"))
    return opened.score_uncalibrated("test")


def store(folder: str | Path, fitted: Fitted, figures: Mapping[str, Any]) -> None:
    """Atomically replace thresholds and calibration in the bundle.

    ``extra.calibrated`` records how they were fitted. Classes that the source doesn't have keep
    their thresholds and the plain sigmoid.
    """
    from mltr.predict.predictor import DEFAULT_THRESHOLD
    from mltr.weights.bundle import read_config, update_config

    changes, config = _without_calibration(folder), read_config(folder)
    names = list(figures["per_class"])
    changes["thresholds"] = _filled(
        config, names, fitted.thresholds, config["thresholds"] or DEFAULT_THRESHOLD
    )
    if fitted.calibration is not None:
        changes["calibration"] = {
            "method": fitted.calibration.method,
            "scale": _filled(config, names, fitted.calibration.scale, 1.0),
            "shift": _filled(config, names, fitted.calibration.shift, 0.0),
        }
    changes["extra"]["calibrated"] = {k: v for k, v in figures.items() if k != "per_class"}
    update_config(folder, changes)


def _filled(
    config: Mapping[str, Any],
    names: Sequence[str],
    values: Any,
    default: Sequence[float] | float,
) -> list[float]:
    """Return a value for each class of a bundle: those of `names`, and for others the default."""
    filled = np.empty(len(config["classes"]))
    filled[:] = default
    places = {name: place for place, name in enumerate(config["classes"])}
    filled[[places[name] for name in names]] = values
    return [float(value) for value in filled]


def report(
    fitted: Fitted, val: Predictions, test: Predictions, min_positives: int
) -> dict[str, Any]:
    """Return all figures as plain values: the fit, and the test metrics before and after."""
    from mltr.evaluation.predictions import calibrated
    from mltr.evaluation.reliability import bootstrap_gains, measure

    after = calibrated(test, fitted.calibration)
    sides = {
        "before": measure(test.probs, test.targets, 0.5, fitted.aim),
        "after": measure(after.probs, after.targets, fitted.thresholds, fitted.aim),
    }
    rows = {
        "before": metrics.per_class(test.probs, test.targets, 0.5),
        "after": metrics.per_class(after.probs, after.targets, fitted.thresholds),
    }
    positives = (val.targets == 1).sum(0)
    return {
        "aim": str(fitted.aim),
        "scaling": fitted.scaling,
        "temperature": _temperature(fitted),
        "min_positives": min_positives,
        "shared_threshold": fitted.shared_threshold,
        "val_images": len(val.images),
        "test_images": len(test.images),
        "test": sides,
        "gain_95": bootstrap_gains(test, after, fitted.thresholds),
        "per_class": {
            name: {
                "threshold": float(fitted.thresholds[k]),
                "own_threshold": fitted.own[k],
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


def _best_epoch(folder: Path) -> int | None:
    """Return the epoch chosen on the validation images, or None for a single epoch."""
    from mltr.runs.folder import RunFolder

    try:
        figures = json.loads(RunFolder(folder).metrics.read_text("utf-8"))
        return int(figures["best_epoch"]) if figures["epochs"] > 1 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# -- on screen ---------------------------------------------------------------------------------


def print_report(figures: dict[str, Any], folder: Path) -> None:
    """Print the gain on the test images, then a row per class."""
    from rich.console import Console

    console = Console()
    console.print(_gain_table(figures, folder.name))
    console.print(_class_table(figures))
    for line in _remarks(figures, folder):
        console.print(line, markup=False, highlight=False)


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
        "In %, except for costs. Before: no scaling, threshold 0.5 for every class. After: "
        f"{_describe_scaling(figures)}, thresholds for {figures['aim']}. "
        "Interval: bootstrap over images."
    )
    table.caption_justify = "left"
    return table


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
    shared = "" if row["own_threshold"] else SHARED
    return shared + ("" if row["aim_reached_on_val"] else OUT_OF_REACH)


def _remarks(figures: dict[str, Any], folder: Path) -> list[str]:
    """Return footnotes of the table, a caveat, and where the result is stored."""
    rows = figures["per_class"]
    lines = []
    if not all(row["own_threshold"] for row in rows.values()):
        lines.append(
            f"{SHARED} shared threshold, the best for all classes together, as the class has fewer "
            f"than {figures['min_positives']} positive validation images or no negative one"
        )
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
        f"(mltr calibrate {folder} --reset removes it)."
    )
    return lines
