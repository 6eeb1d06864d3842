"""Prints and draws the figures of `mltr diagnose`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mltr.diagnosis import bottlenecks as measures
from mltr.diagnosis.figures import HEADLINES, Subject
from mltr.diagnosis.problems import SHOWN, describe_problems, percent
from mltr.errors import counted
from mltr.terminal import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console


SHEET_PICTURES = 20  #: maximum pictures on a contact sheet
MANY_CLASSES = 40  #: maximum number of classes with legible names along a matrix


# -- on screen ---------------------------------------------------------------------------------


def print_diagnosis(console: Console, figures: dict[str, Any], title: str) -> None:
    """Print the three problems, each with its figures and a one-sentence verdict."""
    from rich.text import Text

    intro = f"{counted(figures['images'], 'image')}; in %, with 95% intervals"
    console.print(Text.assemble((printable(title), "bold"), f": {intro}"))
    for number, problem in enumerate(describe_problems(figures), start=1):
        console.print(Text(f"\n{number}. {problem.title}", "bold"))
        if problem.measure:
            console.print(problem.measure)
        if problem.rows:
            _table(console, problem.headings, problem.rows)
        for sentence in (problem.verdict, *problem.remarks):
            console.print(printable(sentence))


def _table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def print_comparison(console: Console, runs: Sequence[str], figures: dict[str, Any]) -> None:
    """Print the headline figures of two runs and their differences."""
    from rich.text import Text

    first, second = ((printable(Path(name).name), "bold") for name in runs)
    terms = f"; the same {figures['images']} images, paired resamples; in %, with 95% intervals"
    console.print(Text.assemble("first: ", first, ", second: ", second, terms))
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
    from mltr.pictures.gallery import write_figure

    paths = [folder / "confusion.png"]
    write_figure(paths[0], draw_confusions(figures))
    for name, rows in offending_images(subject, figures).items():
        if rows:
            paths.append(_save_sheet(folder / f"{name}.png", subject, rows))
    return paths


def draw_confusions(figures: dict[str, Any]) -> Any:
    """Return a matplotlib figure: excess false positives of b with a, for all measured pairs."""
    matrix = 100 * np.array(figures["similar_objects"]["matrix"], dtype=np.float64)
    limit = max(1.0, float(np.nanmax(np.abs(matrix), initial=0.0, where=np.isfinite(matrix))))
    return draw_matrix(
        matrix,
        figures["classes"],
        (-limit, limit),
        "RdBu_r",
        ("b, absent but predicted", "a, present"),
        "Similar objects: excess false positives",
        "percentage points (grey: not measured)",
    )


def draw_matrix(
    matrix: NDArray[np.float64],
    classes: Sequence[str],
    limits: tuple[float, float],
    colours: str,
    axis_names: tuple[str, str],
    title: str,
    unit: str = "",
) -> Any:
    """Return a matplotlib figure of a matrix [K, K]; nan is grey, and `limits` are in its unit."""
    from mltr.pictures.gallery import as_drawn, pyplot

    # Before the axes, whose marks keep the fonts that they begin with.
    names = [as_drawn(name) for name in classes] if len(classes) <= MANY_CLASSES else []
    side = min(10.0, 3.2 + 0.28 * len(classes))
    figure, axes = pyplot().subplots(figsize=(side, side * 0.86), layout="constrained")
    axes.set_facecolor("0.94")
    shown = axes.imshow(matrix, cmap=colours, vmin=limits[0], vmax=limits[1])
    if names:
        places = np.arange(len(classes))
        axes.set_xticks(places, names, rotation=90)
        axes.set_yticks(places, names)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axes.set_title(title, loc="left")
    figure.colorbar(shown, ax=axes, shrink=0.7, label=unit)
    return figure


def offending_images(subject: Subject, figures: dict[str, Any]) -> dict[str, list[int]]:
    """Return the rows of the images behind each problem, most confident mistakes first."""
    probs, targets = subject.predictions.probs, subject.predictions.targets
    predicted = probs >= subject.limits
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
    from mltr.pictures.gallery import contact_sheet, write_picture

    shown = subject.predictions.subset(rows)
    limits = np.broadcast_to(subject.limits, subject.predictions.probs.shape)[rows]
    tiles = make_tiles(subject.split.subset(rows, "shown"), shown, limits)
    write_picture(path, contact_sheet(tiles, columns=5))
    return path
