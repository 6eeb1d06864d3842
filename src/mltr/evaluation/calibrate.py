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

from mltr.errors import UsageError, counted
from mltr.evaluation.aims import AIMS, SCALING_CHOICES, parse_aim

if TYPE_CHECKING:
    from mltr.evaluation.open_run import OpenRun
    from mltr.evaluation.open_tagger import OpenTagger
    from mltr.evaluation.predictions import Predictions
    from mltr.evaluation.thresholds import Fitted

log = logging.getLogger(__name__)


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
        help="classes with fewer positive validation images share a threshold, those of a category "
        "if there are any (default: 10)",
    )
    parser.add_argument(
        "--reset", action="store_true", help="remove stored thresholds and calibration"
    )
    parser.add_argument("--out", metavar="FOLDER", help="folder for reliability.png (default: RUN)")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON (- for stdout)")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Calibrate a run; overrides such as ``--data.root DIR`` set where its images are."""
    from mltr.evaluation.gain import print_report, report
    from mltr.evaluation.open_run import open_judged
    from mltr.evaluation.reliability import save_reliability
    from mltr.evaluation.thresholds import fit
    from mltr.files.writing import write_figures
    from mltr.runs.folder import RunFolder
    from mltr.weights.bundle import read_config
    from mltr.weights.metadata import read_categories

    aim = parse_aim(args.aim)
    if args.min_positives < 1:
        raise UsageError(f"--min-positives {args.min_positives} must be at least 1")
    if args.reset:
        return reset(args.run)
    opened = open_judged(args.run, overrides)
    plain = _without_calibration(opened.path)
    folder = RunFolder(opened.path)
    if folder.holds_a_state() and not folder.metrics.is_file():
        log.warning("%s isn't finished: a better epoch will discard this", opened.path)
    log.info("scoring %s", counted(len(opened.splits.val), "validation image"))
    val = opened.score_uncalibrated("val")
    # A softmax isn't scaled; only its thresholds are fitted.
    scaling = "none" if plain["calibration"] else args.scaling
    config = read_config(opened.path)
    categories, before = (
        None if values is None else _of(config, val.classes, values)
        for values in (read_categories(config), plain["thresholds"])
    )
    fitted = fit(val, aim, scaling, args.min_positives, categories, before)
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
    """Give a bundle the probabilities and thresholds back that it had before."""
    from mltr.weights.bundle import read_config, update_config

    removed = _without_calibration(folder)
    before = read_config(folder)
    if all(before.get(key) == removed[key] for key in ("thresholds", "calibration")):
        print(f"{folder} isn't calibrated: nothing to remove")
        return 0
    update_config(folder, removed)
    thresholds = "its earlier thresholds" if removed["thresholds"] else "a threshold of 0.5"
    print(f"{folder}: reset to uncalibrated probabilities and {thresholds} for every class")
    return 0


def _without_calibration(folder: str | Path) -> dict[str, Any]:
    """Return the entries of config.json as they were before calibration.

    A tagger keeps its softmax; raises `UsageError` for a run with one.
    """
    from mltr.evaluation.open_run import chooses_one_class
    from mltr.weights.bundle import read_config
    from mltr.weights.metadata import SOFTMAX, read_calibration

    config = read_config(folder)
    is_softmax = read_calibration(config) == SOFTMAX
    if chooses_one_class(folder):
        raise UsageError(
            f"{folder} predicts one class per image: it has no thresholds to calibrate"
        )
    extra = dict(config.get("extra") or {})
    told = extra.pop("calibrated", None)
    before = told.get("thresholds_before") if isinstance(told, dict) else config["thresholds"]
    return {
        "thresholds": before,
        "calibration": SOFTMAX.to_dict() if is_softmax else None,
        "extra": extra,
    }


def _test_predictions(opened: OpenRun | OpenTagger, overrides: Sequence[str]) -> Predictions:
    """Return uncalibrated test scores: the saved ones, unless overrides change the images."""
    from mltr.evaluation.open_run import saved_scores
    from mltr.weights.metadata import PREDICTIONS_FILE

    if (opened.path / PREDICTIONS_FILE).is_file() and not overrides:
        return saved_scores(opened.path)
    log.info("scoring %s", counted(len(opened.splits.test), "test image"))
    return opened.score_uncalibrated("test")


def store(folder: str | Path, fitted: Fitted, figures: Mapping[str, Any]) -> None:
    """Atomically replace thresholds and calibration in the bundle.

    ``extra.calibrated`` records how they were fitted, and the thresholds before. Classes that the
    source doesn't have keep those, and the plain sigmoid.
    """
    from mltr.predict.options import DEFAULT_THRESHOLD
    from mltr.weights.bundle import read_config, update_config

    changes, config = _without_calibration(folder), read_config(folder)
    names = list(figures["per_class"])
    before = changes["thresholds"]
    changes["thresholds"] = _filled(config, names, fitted.thresholds, before or DEFAULT_THRESHOLD)
    if fitted.calibration is not None:
        changes["calibration"] = {
            "method": fitted.calibration.method,
            "scale": _filled(config, names, fitted.calibration.scale, 1.0),
            "shift": _filled(config, names, fitted.calibration.shift, 0.0),
        }
    told = {key: value for key, value in figures.items() if key != "per_class"}
    changes["extra"]["calibrated"] = told | {"thresholds_before": before}
    update_config(folder, changes)


def _of(config: Mapping[str, Any], names: Sequence[str], values: Sequence[Any]) -> list[Any]:
    """Return those of a bundle's `values`, one for each of its classes, that belong to `names`."""
    own = dict(zip(config["classes"], values, strict=True))
    return [own[name] for name in names]


def _filled(
    config: Mapping[str, Any],
    names: Sequence[str],
    values: Any,
    default: Sequence[float] | float,
) -> list[float]:
    """Return a value for each class of a bundle: those of `names`, and for others the default."""
    import numpy as np

    filled = np.empty(len(config["classes"]))
    filled[:] = default
    places = {name: place for place, name in enumerate(config["classes"])}
    filled[[places[name] for name in names]] = values
    return [float(value) for value in filled]


def _best_epoch(folder: Path) -> int | None:
    """Return the epoch chosen on the validation images, or None for a single epoch."""
    from mltr.runs.folder import RunFolder

    try:
        figures = json.loads(RunFolder(folder).metrics.read_text("utf-8"))
        return int(figures["best_epoch"]) if figures["epochs"] > 1 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
