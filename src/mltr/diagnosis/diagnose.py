"""`mltr diagnose`: measure the paper's three problems in one run, or compare two runs.

The problems are small objects, similar objects, and objects guessed from their usual company. Each
figure comes with the number of images behind it and a 95% interval from resampled images.
Differences within noise are not reported as differences.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mltr.config.schema import SPLITS
from mltr.data.records import same_image
from mltr.diagnosis import bottlenecks as measures
from mltr.diagnosis.bottlenecks import BUCKETS, COCO_EDGES, Company, Estimate, Scored
from mltr.diagnosis.problems import SHOWN, describe_problems, percent
from mltr.errors import MltrError, UsageError, counted
from mltr.evaluation.open_run import OpenRun, open_scored, scores_of
from mltr.predict.views import HELP, parse_views
from mltr.terminal import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from mltr.data.records import Split
    from mltr.evaluation.predictions import Predictions

log = logging.getLogger(__name__)

SHEET_PICTURES = 20  #: maximum pictures on a contact sheet
MANY_CLASSES = 40  #: maximum number of classes with legible names along a matrix

#: Figures that are compared between two runs: description, and whether less is better.
HEADLINES = {
    "map": ("map, all objects", False),
    "ap_small": ("AP of small objects", False),
    "ap_large": ("AP of large objects", False),
    "size_gap": ("AP of large minus small objects", True),
    "recall_small": ("recall of small objects", False),
    "mean_confusion": ("excess false positives with a similar object", True),
    "recall_gap": ("recall with minus without the usual company", True),
    "company_excess": ("excess false positives of absent company", True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="one run, or two to compare")
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="images to score (default: test)"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=500,
        help="bootstrap resamples of the images (default: 500)",
    )
    parser.add_argument("--views", metavar="VIEW,...", help=HELP)
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamples (default: 0)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="folder for the confusion matrix and pictures of errors"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON (- for stdout)")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Diagnose one run, or compare two."""
    from rich.console import Console

    from mltr.files.writing import write_figures

    if len(args.runs) > 2:
        raise UsageError(f"give one run or two, not {len(args.runs)}")
    if args.resamples < 20:
        raise UsageError(f"--resamples {args.resamples}: an interval needs at least 20")
    console = Console(quiet=args.json == "-")
    views = parse_views(args.views)
    subjects = [Subject.open(folder, args.split, overrides, views) for folder in args.runs]
    if len(subjects) == 2:
        figures = compare(subjects[0], subjects[1], args.resamples, args.seed)
        _print_comparison(console, args.runs, figures)
    else:
        subject = subjects[0]
        figures = diagnose(subject, args.resamples, args.seed)
        print_diagnosis(console, figures, f"{Path(args.runs[0]).name}, {args.split}")
        if args.out:
            for path in save_pictures(Path(args.out), subject, figures):
                console.print(f"picture: {path}")
    if args.json:
        write_figures(args.json, figures)
    return 0


class Subject:
    """The scores of a run on a split, with its thresholds and the co-occurrence of its classes."""

    def __init__(
        self,
        predictions: Predictions,
        split: Split,
        train_targets: NDArray[np.int8],
        thresholds: NDArray[np.float64],
        edges: tuple[float, float] | None,
    ) -> None:
        self.predictions, self.split = predictions, split
        self.thresholds, self.edges = thresholds, edges
        self.company = measures.measure_company(train_targets)

    @classmethod
    def open(
        cls,
        folder: str,
        split: str,
        overrides: Sequence[str] = (),
        views: tuple[str, ...] = (),
    ) -> Subject:
        """Open a run and its scores of a split; raises `MltrError` as `of` does."""
        opened = open_scored(folder, overrides)
        return cls.of(opened, scores_of(folder, split, overrides, views=views), split)

    @classmethod
    def of(cls, opened: OpenRun, predictions: Predictions, split: str) -> Subject:
        """Combine a run with its scores; raises `MltrError` if these are for other images."""
        chosen = opened.split(split)
        if predictions.images != tuple(record.name for record in chosen):
            raise MltrError(
                f"{opened.path}: its saved predictions are for other images than the data has now; "
                "give the data with --data.root DIR to score its images again"
            )
        return cls(
            predictions, chosen, opened.splits.train.targets, _thresholds(opened), _edges(opened)
        )

    def scored(self, resamples: int, seed: int) -> Scored:
        """Return decisions and resamples; raises `MltrError` if no label is known."""
        targets = self.predictions.targets
        if not (targets >= 0).any():
            raise MltrError("every label of these images is unknown: nothing can be measured")
        return Scored.of(self.predictions.probs, targets, self.thresholds, resamples, seed)


def _thresholds(opened: OpenRun) -> NDArray[np.float64]:
    own = opened.bundle.thresholds
    return np.full(len(opened.bundle.classes), 0.5) if own is None else np.array(own)


def _edges(opened: OpenRun) -> tuple[float, float] | None:
    """Return COCO's size limits for photos, or None (terciles) for the small demo scenes."""
    return None if opened.config.data.format == "scenes" else COCO_EDGES


def diagnose(subject: Subject, resamples: int = 500, seed: int = 0) -> dict[str, Any]:
    """Return all figures as plain values; `small_objects` is None if there are no boxes."""
    scored = subject.scored(resamples, seed)
    classes = subject.predictions.classes
    return {
        "images": len(subject.predictions.images),
        "classes": list(classes),
        "level": measures.LEVEL,
        "resamples": resamples,
        "small_objects": _describe_sizes(subject, scored),
        "similar_objects": _describe_confusions(scored, subject.company, classes),
        "company": _describe_dependences(scored, subject.company, classes),
    }


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    low, high = estimate.interval()
    return {"value": estimate.value, "low": low, "high": high, "images": estimate.images}


def _significant(estimate: Estimate | None) -> bool:
    return estimate is not None and estimate.is_significant


def _describe_sizes(subject: Subject, scored: Scored) -> dict[str, Any] | None:
    records = subject.split.records
    if not any(record.boxes for record in records):
        return None
    classes = subject.predictions.classes
    sizes = measures.measure_sizes(
        scored, measures.largest_areas(records, len(classes)), subject.edges
    )
    return {
        "edges": list(sizes.edges),
        "edges_from": "terciles of these objects" if subject.edges is None else "COCO",
        "images": sizes.images,
        "ap": {bucket: _plain(sizes.mean_ap.get(bucket)) for bucket in BUCKETS},
        "recall": {bucket: _plain(sizes.mean_recall.get(bucket)) for bucket in BUCKETS},
        "gap": _plain(sizes.gap),
        "is_told": _significant(sizes.gap),
        "classes": {
            name: {
                bucket: {"ap": _plain(found), "recall": _plain(sizes.recall[k][bucket])}
                for bucket, found in sizes.ap[k].items()
            }
            for k, name in enumerate(classes)
        },
    }


def _describe_confusions(
    scored: Scored, company: Company, classes: Sequence[str]
) -> dict[str, Any]:
    found = measures.measure_confusions(scored, company)
    return {
        "mean_excess": _plain(found.mean_excess),
        "is_told": _significant(found.mean_excess),
        "pairs": [
            {
                "a": classes[pair.a],
                "b": classes[pair.b],
                "where_a": _plain(pair.where_a),
                "elsewhere": _plain(pair.elsewhere),
                "excess": _plain(pair.excess),
                "is_told": pair.is_significant,
            }
            for pair in found.pairs
        ],
        "against_look_alikes": {
            classes[b]: {
                "look_alikes": [classes[a] for a in found.look_alikes[b]],
                "ap": _plain(ap),
            }
            for b, ap in found.against.items()
        },
        "matrix": found.excess.tolist(),
    }


def _describe_dependences(
    scored: Scored, company: Company, classes: Sequence[str]
) -> dict[str, Any]:
    found = measures.measure_dependences(scored, company)
    return {
        "mean_recall_gap": _plain(found.mean_gap),
        "mean_excess": _plain(found.mean_excess),
        "is_told": _significant(found.mean_gap) or _significant(found.mean_excess),
        "pairs": [
            {
                "a": classes[pair.a],
                "b": classes[pair.b],
                "conditional": float(company.conditional[pair.a, pair.b]),
                "recall_with": _plain(pair.recall_with),
                "recall_without": _plain(pair.recall_without),
                "recall_gap": _plain(pair.gap),
                "recall_is_told": _significant(pair.gap),
                "company_seen": _plain(pair.company_seen),
                "company_elsewhere": _plain(pair.company_elsewhere),
                "excess": _plain(pair.excess),
                "excess_is_told": _significant(pair.excess),
            }
            for pair in found.pairs
        ],
        "matrix": company.conditional.tolist(),
    }


# -- two runs ----------------------------------------------------------------------------------


def compare(first: Subject, second: Subject, resamples: int = 500, seed: int = 0) -> dict[str, Any]:
    """Return the headline figures of two runs and the paired differences, second minus first.

    If their labels differ, as after an audit, those of the second run are used for both. Raises
    `MltrError` unless both were scored on the same classes and image files; names may differ.
    """
    a, b = first.predictions, second.predictions
    places = {same_image(record): row for row, record in enumerate(second.split)}
    rows_of_b = [places.get(same_image(record), -1) for record in first.split]
    if a.classes != b.classes or sorted(rows_of_b) != list(range(len(b.images))):
        raise MltrError(
            f"the runs can't be compared: the first has {len(a.images)} images of "
            f"{len(a.classes)} classes, the second {len(b.images)} of {len(b.classes)}, and they "
            "differ; choose two runs on the same source"
        )
    targets = b.targets[rows_of_b]
    corrected = int((a.targets != targets).sum())
    if corrected:
        log.info("%d labels differ: those of the second run are used for both", corrected)
    first.predictions = replace(a, targets=targets)
    second.predictions = replace(a, targets=targets, probs=b.probs[rows_of_b])
    second.split = first.split
    found = [_headlines(subject, resamples, seed) for subject in (first, second)]
    rows = {}
    for name, (_, less_is_better) in HEADLINES.items():
        ours, theirs = found[0].get(name), found[1].get(name)
        if ours is None or theirs is None:
            continue
        difference = theirs - ours
        better = "neither, within noise"
        if difference.is_significant:
            better = "second" if (difference.value < 0) == less_is_better else "first"
        rows[name] = {
            "first": _plain(ours),
            "second": _plain(theirs),
            "difference": _plain(difference),
            "better": better,
        }
    return {"images": len(a.images), "level": measures.LEVEL, "headlines": rows}


def _headlines(subject: Subject, resamples: int, seed: int) -> dict[str, Estimate | None]:
    scored = subject.scored(resamples, seed)
    found: dict[str, Estimate | None] = {"map": scored.mean_average_precision()}
    if any(record.boxes for record in subject.split):
        areas = measures.largest_areas(subject.split.records, len(subject.predictions.classes))
        sizes = measures.measure_sizes(scored, areas, subject.edges)
        found |= {
            "ap_small": sizes.mean_ap.get("small"),
            "ap_large": sizes.mean_ap.get("large"),
            "size_gap": sizes.gap,
            "recall_small": sizes.mean_recall.get("small"),
        }
    dependences = measures.measure_dependences(scored, subject.company)
    return found | {
        "mean_confusion": measures.measure_confusions(scored, subject.company, 0).mean_excess,
        "recall_gap": dependences.mean_gap,
        "company_excess": dependences.mean_excess,
    }


# -- on screen ---------------------------------------------------------------------------------


def print_diagnosis(console: Console, figures: dict[str, Any], title: str) -> None:
    """Print the three problems, each with its figures and a one-sentence verdict."""
    from rich.markup import escape

    intro = f"{counted(figures['images'], 'image')}; in %, with 95% intervals"
    console.print(f"[bold]{escape(printable(title))}[/]: {intro}")
    for number, problem in enumerate(describe_problems(figures), start=1):
        console.print(f"\n[bold]{number}. {problem.title}[/]")
        if problem.measure:
            console.print(problem.measure)
        if problem.rows:
            _table(console, problem.headings, problem.rows)
        for sentence in (problem.verdict, *problem.remarks):
            console.print(printable(sentence), markup=False)


def _table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def _print_comparison(console: Console, runs: Sequence[str], figures: dict[str, Any]) -> None:
    names = [Path(name).name for name in runs]
    console.print(
        f"first: [bold]{names[0]}[/], second: [bold]{names[1]}[/]; the same {figures['images']} "
        "images, paired resamples; in %, with 95% intervals"
    )
    rows = [
        (HEADLINES[name][0], percent(row["first"]), percent(row["second"]),
         percent(row["difference"], True), row["better"])
        for name, row in figures["headlines"].items()
    ]  # fmt: skip
    _table(console, ("measure", "first", "second", "second minus first", "better"), rows)
    if not rows:
        console.print("No figure could be measured for both runs.")


# -- pictures ----------------------------------------------------------------------------------


def save_pictures(folder: Path, subject: Subject, figures: dict[str, Any]) -> list[Path]:
    """Write the confusion matrix, and a contact sheet of the worst pictures for each problem."""
    import matplotlib as mpl

    mpl.use("Agg")
    from mltr.gallery import write_figure

    paths = [folder / "confusion.png"]
    write_figure(paths[0], draw_confusions(figures))
    for name, rows in offending_images(subject, figures).items():
        if rows:
            paths.append(_save_sheet(folder / f"{name}.png", subject, rows))
    return paths


def draw_confusions(figures: dict[str, Any]) -> Any:
    """Return a matplotlib figure: excess false positives of b with a, for all measured pairs."""
    import matplotlib.pyplot as plt

    matrix = 100 * np.array(figures["similar_objects"]["matrix"], dtype=np.float64)
    classes = figures["classes"]
    side = min(10.0, 3.2 + 0.28 * len(classes))
    figure, axes = plt.subplots(figsize=(side, side * 0.86), layout="constrained")
    limit = max(1.0, float(np.nanmax(np.abs(matrix), initial=0.0, where=np.isfinite(matrix))))
    axes.set_facecolor("0.94")
    shown = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    if len(classes) <= MANY_CLASSES:
        places = np.arange(len(classes))
        axes.set_xticks(places, classes, rotation=90)
        axes.set_yticks(places, classes)
    axes.set(xlabel="b, absent but predicted", ylabel="a, present")
    axes.set_title("Similar objects: excess false positives", loc="left")
    figure.colorbar(shown, ax=axes, shrink=0.7, label="percentage points (grey: not measured)")
    return figure


def offending_images(subject: Subject, figures: dict[str, Any]) -> dict[str, list[int]]:
    """Return the rows of the images behind each problem, most confident mistakes first."""
    probs, targets = subject.predictions.probs, subject.predictions.targets
    predicted = probs >= subject.thresholds
    index = {name: k for k, name in enumerate(subject.predictions.classes)}
    found: dict[str, list[tuple[float, int]]] = {"small": [], "similar": [], "company": []}
    sizes = figures["small_objects"]
    if sizes is not None:
        areas = measures.largest_areas(subject.split.records, len(index))
        with np.errstate(invalid="ignore"):
            missed = (areas < sizes["edges"][0]) & (targets == 1) & ~predicted
        found["small"] = [(float(probs[row, k]), int(row)) for row, k in np.argwhere(missed)]
    for key, pairs in (
        ("similar", figures["similar_objects"]["pairs"][:SHOWN]),
        ("company", figures["company"]["pairs"][:SHOWN]),
    ):
        for pair in pairs:
            a, b = index[pair["a"]], index[pair["b"]]
            wrong = (targets[:, a] == 1) & (targets[:, b] == 0) & predicted[:, b]
            found[key] += [(-float(probs[row, b]), int(row)) for row in np.flatnonzero(wrong)]
    return {
        name: list(dict.fromkeys(row for _, row in sorted(rows)))[:SHEET_PICTURES]
        for name, rows in found.items()
    }


def _save_sheet(path: Path, subject: Subject, rows: list[int]) -> Path:
    from mltr.evaluation.predictions import make_tiles
    from mltr.gallery import contact_sheet, write_picture

    tiles = make_tiles(subject.split.subset(rows, "shown"), subject.predictions.subset(rows))
    write_picture(path, contact_sheet(tiles, columns=5))
    return path
