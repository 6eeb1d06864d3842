"""Output of an audit: lists of issues, a corrected table of labels, and contact sheets."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mltr.data.duplicates import Seen, conflicting_classes, reaches_over_splits, similarity
from mltr.data.hierarchy import ancestors, implied
from mltr.data.records import Labels, Record, Split, Splits, indices_of, original_of
from mltr.data.tables.cells import row_writer, to_answer, to_cells
from mltr.data.tables.columns import is_told_apart
from mltr.data.tables.sheet import read_sheet
from mltr.data.tables.tags import join_tags
from mltr.diagnosis.label_issues import Audit, Issue
from mltr.errors import MltrError, counted
from mltr.files.writing import text_writer, write_atomically
from mltr.pictures.gallery import Tile, contact_sheet, write_picture
from mltr.predict.results import make_tile

ISSUES_FILE, CORRECTED_FILE, DUPLICATES_FILE = "issues.csv", "corrected.csv", "duplicates.csv"
ISSUE_COLUMNS = (
    "rank", "image", "split", "class", "given", "suggested", "label", "score", "probability",
    "likely", "applied",
)  # fmt: skip
PICTURES = 40  #: maximum pictures on a contact sheet
COLUMNS = 8  #: columns of a contact sheet
TILE = 180  #: side of a tile in pixels
NAME_LENGTH = 36  #: maximum characters of a name in a caption or table

PHOTO_NAMES = ("path", "file path", "image path", "photo path")
SPLIT_NAMES = ("split", "subset", "partition", "phase")

Corrections = dict[tuple[str, str], dict[int, int]]  #: labels by (split, image) and class index
Groups = Sequence[Sequence[Seen]]  #: groups of duplicate images


def as_corrections(found: Audit, accepted: Iterable[Issue]) -> Corrections:
    """Return the corrections that apply the suggestions of the accepted issues."""
    corrections: Corrections = {}
    for issue in accepted:
        key = (found.splits[issue.row], found.records[issue.row].name)
        corrections.setdefault(key, {})[issue.class_index] = issue.suggested
    return corrections


# -- lists and tables --------------------------------------------------------------------------


def write_issues(
    folder: Path, found: Audit, listed: Sequence[Issue], accepted: Collection[Issue]
) -> Path:
    """Write one issue per row; the user may edit the column `label`, which `read_review` reads."""
    accepted = set(accepted)
    rows: list[Sequence[Any]] = [ISSUE_COLUMNS]
    for rank, issue in enumerate(listed, start=1):
        rows.append((
            rank, found.records[issue.row].name, found.splits[issue.row],
            found.classes[issue.class_index], issue.given, issue.suggested,
            issue.suggested if issue in accepted else issue.given,
            f"{issue.score:.4f}", f"{issue.probability:.4f}", "yes" if issue.likely else "no",
            "yes" if issue in accepted else "no",
        ))  # fmt: skip
    return write_csv(folder / ISSUES_FILE, rows)


def read_review(path: Path, splits: Splits) -> Corrections:
    """Return the changes to a source's labels by the column `label` of an edited list of issues.

    Raises `MltrError`, with file and row, for a file without the columns of such a list, for
    unknown images and classes, and for labels other than 1, 0, -1 and empty.
    """
    rows = read_issues(path, {"image", "split", "class", "label"})
    known = {(split.name, record.name): record for split in splits for record in split}
    corrections: Corrections = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}, row {number}"
        key, answer = (row["split"], row["image"]), to_answer(row["label"])
        if key not in known:
            raise MltrError(f"{where}: this source has no image {key[1]!r} in its {key[0]} split")
        if answer is None:
            raise MltrError(f"{where}: label {row['label']!r} is not 1, 0, or empty for unknown")
        (index,) = indices_of([row["class"]], splits.train.classes, where)
        label = int(answer or -1)
        if label != known[key].labels[index]:
            corrections.setdefault(key, {})[index] = label
    return corrections


def has_answers(path: Path) -> bool:
    """Whether there is a list of issues with a label that somebody has changed.

    Raises `MltrError` if there is another file of that name.
    """
    if not path.is_file():
        return False
    rows = read_issues(path, {"given", "suggested", "label", "applied"})
    return any(
        to_answer(row["label"])
        != to_answer(row["suggested" if row["applied"] == "yes" else "given"])
        for row in rows
    )


def read_issues(path: Path, needed: set[str]) -> list[dict[str, str]]:
    """Return some columns of a list of issues, as `mltr audit` or any spreadsheet saved it.

    Raises `MltrError` if they aren't there.
    """
    if not path.is_file():
        raise MltrError(f"{path}: no such file of issues")
    sheet = read_sheet(path)
    columns = {column.name: column for column in sheet.columns}
    missing = needed - set(columns)
    if missing:
        raise MltrError(f"{path}: no column {', '.join(sorted(missing))}; is it an {ISSUES_FILE}?")
    return [{name: columns[name][row] for name in needed} for row in range(len(sheet))]


def write_corrected(
    folder: Path, splits: Splits, corrections: Corrections, *, one_each: bool = False
) -> Path | None:
    """Write all labels of a source, corrected, as `write_labels` does.

    Raises `MltrError` for a correction after which a label would lack one that it implies, or, if
    images have `one_each`, an image would have none or several.
    """
    above = ancestors(splits.train.classes, splits.hierarchy)

    def check(name: str, labels: Labels) -> None:
        present = labels == 1
        lacking = np.flatnonzero(implied(present, above) & ~present)
        if len(lacking):
            label = splits.train.classes[lacking[0]]
            raise MltrError(
                f"{name}: {label} can't be absent there, as one of its labels implies it: correct "
                "that, too"
            )
        if one_each and present.sum() != 1:
            raise MltrError(
                f"{name}: it would have {counted(int(present.sum()), 'label')}, and each image has "
                "one here (loss.name ce): correct the others of it, too, by --review"
            )

    def correct(split: Split) -> Split:
        records = []
        for record in split:
            labels = record.labels.copy()
            own = corrections.get((split.name, record.name), {})
            for class_index, label in own.items():
                labels[class_index] = label
            if own:
                check(record.name, labels)
            records.append(replace(record, labels=labels))
        return replace(split, records=records)

    train, val, test = map(correct, splits)
    return write_labels(folder / CORRECTED_FILE, Splits(train, val, test))


def write_labels(path: Path, splits: Splits) -> Path | None:
    """Write all labels of a source as a table for training; None if its images aren't files.

    Paths are absolute, so the table can be moved. Where a class could be taken for another column,
    there is a list of the classes beside it, for `data.classes`.
    """
    classes = splits.train.classes
    rows: list[list[Any]] = [[*label_header(classes), free_name(SPLIT_NAMES, classes)]]
    for split in splits:
        for record in split:
            image = original_of(record.image)
            if not isinstance(image, Path):
                return None
            cells = ["" if label < 0 else int(label) for label in record.labels]
            rows.append([image.resolve(), *cells, split.name])
    listed = class_list_of(path)
    listed.unlink(missing_ok=True)
    if not all(map(is_told_apart, classes)):
        write_atomically(listed, text_writer("".join(f"{name}\n" for name in classes)))
    return write_csv(path, rows)


def label_header(classes: Sequence[str]) -> list[str]:
    """Return the header of a table with a column of photos, and one for each class."""
    return [free_name(PHOTO_NAMES, classes), *classes]


def free_name(names: Sequence[str], classes: Collection[str]) -> str:
    """Return the first of some names for a column that no class has."""
    return next(name for name in names if name not in classes)


def class_list_of(table: Path) -> Path:
    """Return where the list of a table's classes is, if it needs one."""
    return table.with_suffix(".classes.txt")


def write_duplicates(folder: Path, classes: Sequence[str], groups: Groups) -> list[Path]:
    """Write the groups of duplicates, or delete an earlier list if there are none."""
    if not groups:
        (folder / DUPLICATES_FILE).unlink(missing_ok=True)
        return []
    rows: list[Sequence[Any]] = [
        ("group", "image", "split", "labels", "similarity", "conflict", "over_splits")
    ]
    for number, group in enumerate(groups, start=1):
        conflict = join_tags(conflicting_classes(group, classes))
        over = "yes" if reaches_over_splits(group) else "no"
        for image in group:
            labels = join_tags(_given(image.record, classes))
            alike = f"{similarity(group[0], image):.4f}"
            rows.append((number, image.name, image.split, labels, alike, conflict, over))
    return [write_csv(folder / DUPLICATES_FILE, rows)]


def _given(record: Record, classes: Sequence[str]) -> list[str]:
    return [name for name, label in zip(classes, record.labels, strict=True) if label == 1]


def short_name(name: str) -> str:
    """Return the end of a name, its most distinctive part."""
    return name if len(name) <= NAME_LENGTH else f"…{name[1 - NAME_LENGTH :]}"


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table whose cells a spreadsheet doesn't evaluate."""
    text = io.StringIO()
    row_writer(text).writerows(map(to_cells, rows))
    write_atomically(path, text_writer(text.getvalue()))
    return path


# -- contact sheets ----------------------------------------------------------------------------


def draw_issues(folder: Path, found: Audit, listed: Sequence[Issue]) -> list[Path]:
    """Draw contact sheets of the first missing and wrong labels, with their ranks in the list."""
    ranked = list(enumerate(listed, start=1))
    paths = []
    for kind in ("missing", "wrong"):
        chosen = [(rank, issue) for rank, issue in ranked if issue.kind == kind][:PICTURES]
        paths += _draw(folder / f"{kind}.png", [_issue_tile(found, *entry) for entry in chosen])
    return paths


def _issue_tile(found: Audit, rank: int, issue: Issue) -> Tile | None:
    record = found.records[issue.row]
    name = found.classes[issue.class_index]
    question = f"remove {name}?" if issue.given else f"add {name}?"
    given = ", ".join(_given(record, found.classes)) or "nothing"
    caption = f"{rank}. {found.splits[issue.row]}: {short_name(record.name)}; given: {given}"
    return make_tile(record.image, [(question, issue.probability)], caption)


def draw_duplicates(folder: Path, classes: Sequence[str], groups: Groups) -> list[Path]:
    """Draw the first groups; labels that a group disagrees on are red or outlined."""
    tiles = []
    for number, group in enumerate(groups, start=1):
        conflicts = conflicting_classes(group, classes)
        for image in group:
            given = _given(image.record, classes)
            undisputed = [name for name in given if name not in conflicts]
            lacking = [name for name in conflicts if name not in given]
            caption = f"group {number}, {image.split}: {short_name(image.name)}"
            shown = [(name, 1.0) for name in given]
            tiles.append(make_tile(image.record.image, shown, caption, undisputed + lacking))
        if len(tiles) >= PICTURES:
            break
    return _draw(folder / "duplicates.png", tiles[:PICTURES])


def _draw(path: Path, tiles: Iterable[Tile | None]) -> list[Path]:
    """Write a contact sheet, or delete an earlier one if there are no tiles."""
    there = [tile for tile in tiles if tile is not None]
    if not there:
        path.unlink(missing_ok=True)
        return []
    write_picture(path, contact_sheet(there, columns=COLUMNS, tile=TILE))
    return [path]
