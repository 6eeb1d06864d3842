"""Label Studio: its exports in JSON, JSON-MIN and CSV."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mltr.data.readers.labelled import LabelledPhoto, PhotoIndex, to_splits
from mltr.data.records import Split
from mltr.data.tables.columns import IS_REMARK
from mltr.data.tables.sheet import read_sheet
from mltr.data.understood import Understood
from mltr.data.walk import is_image
from mltr.errors import MltrError, UsageError
from mltr.files.text import read_text

FORM = "Label Studio"
#: Columns of a table, and keys of JSON-MIN, that hold neither a photo nor labels.
ABOUT = {
    "id",
    "annotator",
    "annotation_id",
    "created_at",
    "updated_at",
    "lead_time",
    "agreement",
    "inner_id",
    "total_annotations",
    "cancelled_annotations",
    "comment_count",
    "project",
    "history",
}
MARKS = ("annotation_id", "lead_time")  #: columns that say that a table is an export
WRONG = (LookupError, TypeError, AttributeError, ValueError)  #: what other contents lead to
IMAGE_KEYS = ("image", "img", "photo", "picture", "url", "image_url")


def is_export(head: str) -> bool:
    """Whether a file is an export, by its first characters."""
    if head.lstrip("\ufeff \r\n\t").startswith("["):
        is_createml = '"coordinates"' in head and not any(f'"{mark}"' in head for mark in MARKS)
        keys = ("annotations", "completions", *MARKS)
        return not is_createml and any(f'"{key}"' in head for key in keys)
    header = re.split(r"[,;\t]", head.partition("\n")[0].strip().replace('"', ""))
    return all(mark in header for mark in MARKS)


def read_label_studio(
    path: str | Path,
    images: str | Path = "",
    classes: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    merge_case: bool | None = None,
) -> Split:
    """Read an export; photos are found by name in `images`, by default the folder of the file.

    Labels are choices and taxonomies, and the classes of boxes, polygons, brushes, key points and
    ellipses. What some annotators of a photo have said and others haven't is unknown. Tasks that
    nobody has annotated are left out and counted. Raises `MltrError` for anything else.
    """
    path = Path(path)
    finder = PhotoIndex(Path(images) if images else path.parent, ignore)
    answers: dict[Path, list[set[str]]] = defaultdict(list)
    bare = 0
    columns: dict[str, str] = {}
    for reference, labels in _told(path, columns):
        bare += labels is None
        if labels is not None:
            answers[finder.find(reference)].append(labels)
    photos = []
    for image, given in answers.items():
        name, agreed = image.relative_to(finder.folder).as_posix(), set.intersection(*given)
        photos.append(LabelledPhoto(image, name, agreed, set.union(*given) - agreed))
    counts = {
        "photos nobody has annotated, left out": bare,
        "photos whose annotators disagree": sum(bool(photo.unknown) for photo in photos),
    }
    meanings = {"not chosen": "absent", "chosen by some annotators": "unknown"}
    understood = Understood(FORM, (path.name,), (), columns, meanings=meanings, counts=counts)
    if not photos:
        raise MltrError(f"{path}: none of its {bare} tasks is annotated")
    return to_splits(photos, classes, understood, str(path), merge_case)[""]


def _told(path: Path, columns: dict[str, str]) -> Iterator[tuple[str, set[str] | None]]:
    """Yield a photo and what one annotator says of it, None for nobody.

    Where the answers are in columns, or in keys of rows, these are added to `columns`.
    """
    try:
        if path.suffix.lower() in (".csv", ".tsv"):
            rows = _rows_of_table(path)
            # Their order is that of the alphabet, or none.
            yield from _of_rows(rows, _answers_of_table(path, rows), columns)
            return
        tasks = json.loads(read_text(path))
        if all("data" in task for task in tasks):
            for task in tasks:
                yield from _of_task(task)
        elif all(any(mark in task for mark in MARKS) for task in tasks):
            yield from _of_rows(tasks, _answers_of_json(path, tasks), columns)
        else:
            raise KeyError("data of a task")
    except (json.JSONDecodeError, RecursionError) as error:
        raise MltrError(f"{path}: not a complete JSON file ({error}); export it again") from error
    except WRONG as error:
        reason = f" (no {error.args[0]})" if isinstance(error, LookupError) else ""
        raise MltrError(f"{path}: not as Label Studio exports it{reason}") from error


def _of_task(task: dict[str, Any]) -> Iterator[tuple[str, set[str] | None]]:
    reference = str(task["data"][_photo_key(task["data"])])
    given = task.get("annotations", task.get("completions", []))
    given = [one for one in given if not one.get("was_cancelled")]
    yield from ((reference, _labels(one["result"])) for one in given)
    if not given:
        yield reference, None


def _labels(results: list[dict[str, Any]]) -> set[str]:
    """Return the labels in the results of one annotation: each is of some control and its kind."""
    labels: set[str] = set()
    for result in results:
        kind, value = str(result.get("type", "")), result.get("value", {})
        if kind in ("choices", "taxonomy") or kind.endswith("labels"):
            labels |= _names(value.get(kind, []))
    return labels


def _names(found: Any) -> set[str]:
    """Return the names in a value, which is a name, a list, a region, or a path of a taxonomy."""
    if isinstance(found, dict):
        kinds = (key for key in found if key in ("choices", "taxonomy") or key.endswith("labels"))
        return {name for kind in kinds for name in _names(found[kind])}
    if isinstance(found, list):
        if found and all(isinstance(path, list) for path in found):  # the last is the most precise
            return {str(path[-1]) for path in found if path}
        return {name for one in found for name in _names(one)}
    return {found} if isinstance(found, str) and found else set()


def _photo_key(data: Mapping[str, Any]) -> str:
    """Return the key of a task's photo: the usual ones first, then that of a path of one."""
    keys = [key for key in IMAGE_KEYS if data.get(key)]
    keys += [key for key, value in data.items() if is_image(Path(str(value).partition("?")[0]))]
    if not keys:
        raise KeyError(f"photo among {', '.join(map(str, data))}")
    return keys[0]


# -- an annotation a row: JSON-MIN and tables --------------------------------------------------


def _of_rows(
    rows: Sequence[Mapping[str, Any]], told: Collection[str], columns: dict[str, str]
) -> Iterator[tuple[str, set[str] | None]]:
    """Yield what each row says in the columns of answers."""
    columns |= {_photo_key(row): "photos" for row in rows} | dict.fromkeys(told, "labels")
    for row in rows:
        found = {name for key in told for name in _names(row.get(key))}
        yield str(row[_photo_key(row)]), found if row.get("annotation_id") or found else None


def _may_be_answers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of rows that may have answers: a comment is no label."""
    photos = {_photo_key(row) for row in rows}
    keys = dict.fromkeys(key for row in rows for key in row)
    known = {*ABOUT, *photos}
    return [
        key
        for key in keys
        if key not in known and not IS_REMARK.fullmatch(key) and not key.startswith("_data_")
    ]


def _answers_of_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of answers: what a task came with is in front of its id, they follow.

    A task that came with an id of its own has that in front, so that nothing can be said.
    """
    answers = _may_be_answers(rows)
    behind = {key for row in rows for key in list(row)[list(row).index("id") + 1 :]}
    if any(_photo_key(row) in behind for row in rows):
        return _answers_of_table(path, rows)
    return [key for key in answers if key in behind]


def _answers_of_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the only key that may have answers, or those with several labels or regions in one.

    Raises `UsageError` where others may be answers or what the tasks came with.
    """
    answers = _may_be_answers(rows)
    sure = [key for key in answers if any(isinstance(row.get(key), dict | list) for row in rows)]
    if len(answers) > 1 and answers != sure:
        raise UsageError(
            f"{path}: the columns {', '.join(answers)} may be answers, or what the tasks "
            "came with: export as JSON (not JSON-MIN), which tells them apart, or delete those "
            "without labels"
        )
    return answers


def _rows_of_table(path: Path) -> list[dict[str, Any]]:
    sheet = read_sheet(path)
    return [
        {column.name: _cell(column[row]) for column in sheet.columns} for row in range(len(sheet))
    ]


def _cell(text: str) -> Any:
    """Return what a cell holds: JSON where there are several labels or regions, else a text."""
    if text and text[0] in "[{":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text
