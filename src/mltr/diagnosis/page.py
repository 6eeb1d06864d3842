"""The page of `mltr report`."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mltr import __version__
from mltr.data.images import open_image
from mltr.data.records import Record
from mltr.diagnosis.corrections import ISSUES_FILE, read_issues
from mltr.diagnosis.display import draw_confusions, draw_matrix
from mltr.diagnosis.evidence import explain, has_maps
from mltr.diagnosis.figures import Subject, diagnose
from mltr.diagnosis.overlay import HEAT_MAP_SIDE, overlay
from mltr.diagnosis.problems import describe_problems
from mltr.errors import BrokenImage, MltrError, counted
from mltr.evaluation.curves import (
    MOST_BARS,
    MOST_CURVES,
    draw_average_precision,
    draw_precision_recall,
)
from mltr.evaluation.figures import PROTOCOLS, report
from mltr.evaluation.open_run import OpenRun, is_judged, open_scored, saved_scores, scores_of
from mltr.evaluation.predictions import Predictions, as_predicted
from mltr.pictures.gallery import Tile, pyplot, render, silent_fonts
from mltr.predict.predictor import Prediction, Predictor, as_predictor
from mltr.runs.folder import RunFolder
from mltr.weights.metadata import PREDICTIONS_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASS_HEADINGS = ("class", "AP, %", "precision, %", "recall, %", "F1, %", "images", "threshold")
AUDITED = 15  #: maximum number of labels listed from the audit
EVIDENCE = (
    " The map beside or below each shows the evidence for its first label: red for, blue against."
)
DOTS = 110  #: resolution of the figures in dots per inch

log = logging.getLogger(__name__)


def write_report(run: Path, path: Path, examples: int, overrides: Sequence[str] = ()) -> int:
    """Write the report of a run's test images to `path`; return its size in bytes.

    Raises `MltrError` as `open_scored` does, or if the file can't be written.
    """
    from mltr.files.writing import text_writer, write_atomically

    opened = open_scored(run, overrides)
    predictions = scores_of(run, "test", overrides)
    subject = Subject.of(opened, predictions, "test")
    content = _content(opened, predictions, subject, examples, is_own=not overrides)
    page = render("report.html.j2", **content)
    write_atomically(path, text_writer(page))
    return len(page.encode())


def _content(
    opened: OpenRun, predictions: Predictions, subject: Subject, examples: int, is_own: bool
) -> dict[str, Any]:
    """Return the variables of the template; `is_own` tells that the images are the run's own."""
    from mltr.config.recipe import to_yaml

    figures = report(predictions, thresholds=opened.bundle.thresholds)
    problems = diagnose(subject)
    predictor = as_predictor(opened.bundle)
    is_explained = has_maps(predictor)
    tiles = _examples(opened, predictions, examples, predictor, is_explained)
    contents = [
        ("figures", "All figures"),
        ("classes", "Classes"),
        ("curves", "Curves"),
        ("problems", "The three problems"),
        ("examples", "Examples"),
        ("recipe", "How it was made"),
    ]
    model = opened.config.model
    parameters = sum(p.numel() for p in opened.bundle.model.parameters()) / 1e6
    return {
        "title": f"{opened.path.name}: {model.name} on {_data_name(opened)}",
        "intro": f"{counted(len(predictions.images), 'test image')}, "
        f"{counted(len(predictions.classes), 'class', 'classes')}; "
        f"{parameters:.2f} M parameters, {opened.bundle.preprocess.image_size} px. Written by mltr "
        f"{__version__} on {date.today()}.",
        "contents": [entry for entry in contents if tiles or entry[0] != "examples"],
        "headline": _headline(figures),
        "metrics": _metric_rows(figures),
        "has_own": "at_own_thresholds" in figures,
        "remarks": _remarks(figures) + _audit_remarks(opened),
        "class_headings": CLASS_HEADINGS,
        "classes": _class_rows(figures, subject.thresholds),
        "curves": _curves(opened, predictions, subject, is_own),
        "problems": describe_problems(problems),
        "maps": _maps(problems),
        "examples": tiles,
        "examples_intro": "The most confident mistakes come first, then a sample of the rest."
        + (EVIDENCE if is_explained else ""),
        "recipe": to_yaml(opened.config),
    }


def _audit_remarks(opened: OpenRun) -> list[str]:
    """Return a summary of the run's audit, if there is one of this training and these images."""
    path = opened.path / "audit" / ISSUES_FILE
    if not path.is_file():
        return []
    if path.stat().st_mtime < RunFolder(opened.path).begun():
        log.warning("%s is from before this training: it is left out of the report", path)
        return []
    try:
        issues = read_issues(path, {"class", "image", "split", "given", "likely"})
    except MltrError as error:
        log.warning("the audit is left out of the report: %s", error)
        return []
    if not is_judged(opened.path, opened.splits.test) or not _are_about(issues, opened):
        log.warning("%s is about other images: it is left out of the report", path)
        return []
    rows = [row for row in issues if row["likely"] == "yes"]
    worst = ", ".join(
        f"{row['class']} of {row['image']} ({row['split']}) is given as {row['given']}"
        for row in rows[:AUDITED]
    )
    found = f"The audit lists {counted(len(rows), 'label')} as likely wrong or missing ({path})."
    return [f"{found} The worst: {worst}." if rows else found]


def _are_about(issues: Sequence[Mapping[str, str]], opened: OpenRun) -> bool:
    own = {(split.name, record.name) for split in opened.splits for record in split}
    return not issues or any((row["split"], row["image"]) in own for row in issues)


def _data_name(opened: OpenRun) -> str:
    return Path(opened.config.data.root).name or opened.config.data.format


def _headline(figures: dict[str, Any]) -> list[tuple[str, str]]:
    shown = [
        (f"{name}: {PROTOCOLS[name]}", f"{100 * figures[name]:.2f} %")
        for name in ("map", "cf1", "of1", "top1")
        if name in figures
    ]
    own = figures.get("at_own_thresholds")
    if own:
        shown.append(("of1 at the run's own thresholds", f"{100 * own['of1']:.2f} %"))
    return shown


def _metric_rows(figures: dict[str, Any]) -> list[dict[str, str]]:
    own = figures.get("at_own_thresholds", {})

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.2f}"

    return [
        {
            "name": name,
            "value": percent(figures[name]),
            "own": percent(own.get(name)),
            "top": percent(figures.get(f"{name}_top3")),
            "words": words,
        }
        for name, words in PROTOCOLS.items()
        if name in figures
    ]


def _remarks(figures: dict[str, Any]) -> list[str]:
    remarks = [f"Threshold {figures['threshold']:g}; at or above counts as predicted."]
    if figures["classes_without_positives"]:
        names = ", ".join(figures["classes_without_positives"])
        remarks.append(f"Left out of every mean, as no test image has them: {names}.")
    if figures["broken_images"]:
        remarks.append(f"{len(figures['broken_images'])} broken images are left out.")
    return remarks


def _class_rows(figures: dict[str, Any], thresholds: Any) -> list[list[Any]]:
    rows: list[list[Any]] = []
    own = figures.get("at_own_thresholds", figures)
    for (name, found), threshold in zip(figures["per_class"].items(), thresholds, strict=True):
        decided = own.get("per_class", figures["per_class"])[name]
        shares = [found["ap"], decided["precision"], decided["recall"], decided["f1"]]
        cells = [None if np.isnan(share) else round(100 * share, 2) for share in shares]
        rows.append([name, *cells, int(found["support"]), float(threshold)])
    return sorted(rows, key=lambda row: -1 if row[1] is None else -row[1])


# -- pictures ----------------------------------------------------------------------------------


#: A PNG file's content, its caption, and whether it spans the full width.
Picture = tuple[bytes, str, bool]


def _drawn(figure: Figure, caption: str, wide: bool = False) -> Picture:
    stream = io.BytesIO()
    with silent_fonts():
        figure.savefig(stream, dpi=DOTS, format="png")
    pyplot().close(figure)
    return stream.getvalue(), caption, wide


def _curves(
    opened: OpenRun, predictions: Predictions, subject: Subject, is_own: bool
) -> list[Picture]:
    from mltr.evaluation.reliability import draw_reliability

    plt = pyplot()
    drawn = []
    figure, axes = plt.subplots(figsize=(7, 5.2), layout="constrained")
    draw_precision_recall(axes, predictions)
    few = len(predictions.classes) <= MOST_CURVES
    which = "each class" if few else f"the {MOST_CURVES} most frequent classes"
    drawn.append(_drawn(figure, f"Precision and recall of {which} over all thresholds."))
    figure = draw_average_precision(predictions)
    few = (predictions.targets == 1).any(axis=0).sum() <= MOST_BARS
    which = "each class" if few else f"the {MOST_BARS // 2} worst and the {MOST_BARS // 2} best"
    drawn.append(_drawn(figure, f"Average precision of {which}, and the number of images."))
    raw = predictions
    if opened.bundle.calibration is not None:
        has_saved = is_own and (opened.path / PREDICTIONS_FILE).is_file()
        found = saved_scores(opened.path) if has_saved else opened.score_uncalibrated("test")
        raw = as_predicted(found)
    words = "Observed frequency of a label against its predicted probability."
    if opened.bundle.calibration is None:
        words += " Not calibrated; see mltr calibrate."
    figure = draw_reliability(raw, predictions.probs, subject.thresholds)
    drawn.append(_drawn(figure, words, wide=True))
    curves = opened.path / "curves.png"
    if curves.is_file():
        drawn.append((curves.read_bytes(), "Training and validation by epoch.", True))
    return drawn


def _maps(problems: dict[str, Any]) -> list[Picture]:
    matrix = 100 * np.array(problems["company"]["matrix"], dtype=np.float64)
    np.fill_diagonal(matrix, np.nan)
    title = "Company: P(b|a) in training, %"
    company = draw_matrix(matrix, problems["classes"], (0, 100), "viridis", ("b", "a"), title)
    return [
        _drawn(company, "Share of the training images with a that also have b."),
        _drawn(
            draw_confusions(problems),
            "Excess false positives of b on images with a, for pairs that rarely occur together.",
        ),
    ]


def _examples(
    opened: OpenRun,
    predictions: Predictions,
    count: int,
    predictor: Predictor,
    is_explained: bool,
) -> list[Tile]:
    """Return pictures with their labels: half mistakes, half evenly from the rest.

    With heat maps if each `is_explained`.
    """
    wrong = np.abs(predictions.probs - (predictions.targets == 1)) * (predictions.targets >= 0)
    order = np.argsort(-wrong.max(axis=1), kind="stable")
    mistakes = order[: count // 2]
    rest = order[count // 2 :]
    evenly = rest[np.linspace(0, len(rest) - 1, min(count - len(mistakes), len(rest))).astype(int)]
    tiles = []
    split = opened.split("test")
    classes = predictions.classes
    for row in dict.fromkeys([*mistakes.tolist(), *evenly.tolist()]):
        try:
            truth = [classes[k] for k in np.flatnonzero(predictions.targets[row] == 1)]
            found = predictor.to_prediction(predictions.probs[row])
            tiles.append(_example(predictor, split[row], found, truth, is_explained))
        except BrokenImage:
            continue
    return tiles


def _example(
    predictor: Predictor, record: Record, found: Prediction, truth: list[str], is_explained: bool
) -> Tile:
    picture = open_image(record.image)
    if is_explained:
        first = [(found.labels or found.top(1))[0][0]]
        (evidence,) = explain(predictor, picture, first, longest=HEAT_MAP_SIDE)
        shown = _side_by_side(picture, overlay(picture, evidence.heat))
    else:
        shown = picture
        shown.thumbnail((HEAT_MAP_SIDE, HEAT_MAP_SIDE))
    return Tile(shown, found.labels, truth, record.name)


def _side_by_side(picture: Image.Image, right: Image.Image) -> Image.Image:
    left = picture.resize(right.size, reducing_gap=3.0)
    stacked = left.width >= left.height
    size = (left.width, 2 * left.height) if stacked else (2 * left.width, left.height)
    both = Image.new("RGB", size)
    both.paste(left, (0, 0))
    both.paste(right, (0, left.height) if stacked else (left.width, 0))
    return both
