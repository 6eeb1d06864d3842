"""Label Studio: its exports in JSON, JSON-MIN and CSV."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mltr.data.readers.labelled import LabelledPhoto, PhotoIndex, to_splits
from mltr.data.records import Split
from mltr.data.tables.columns import IS_REMARK
from mltr.data.tables.sheet import read_sheet
from mltr.data.understood import Understood
from mltr.errors import MltrError
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
}
MARKS = ("annotation_id", "lead_time")  #: columns that say that a table is an export
WRONG = (LookupError, TypeError, AttributeError, ValueError)  #: what other contents lead to
IMAGE_KEYS = ("image", "img", "photo", "picture", "url", "image_url")


def is_export(head: str) -> bool:
    """Whether a file is an export, by its first characters."""
    if head.lstrip("\ufeff \r\n\t").startswith("["):
        return any(f'"{key}"' in head for key in ("annotations", "completions", *MARKS))
    header = re.split(r"[,;\t]", head.partition("\n")[0].strip().replace('"', ""))
    return all(mark in header for mark in MARKS)


def read_label_studio(
    path: str | Path,
    images: str | Path = "",
    classes: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
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
    for reference, labels in _rows_of_table(path) if _is_table(path) else _tasks(path):
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
    understood = Understood(FORM, (path.name,), meanings=meanings, counts=counts)
    if not photos:
        raise MltrError(f"{path}: none of its {bare} tasks is annotated")
    return to_splits(photos, classes, understood, str(path))[""]


def _tasks(path: Path) -> Iterator[tuple[str, set[str] | None]]:
    """Yield from a JSON file a photo and what one annotator says of it; None for nobody."""
    try:
        tasks = json.loads(read_text(path))
        for task in tasks:
            if "data" not in task:  # JSON-MIN: an annotation each
                yield _row(task)
                continue
            reference = _reference(task["data"])
            given = task.get("annotations", task.get("completions", []))
            given = [one for one in given if not one.get("was_cancelled")]
            yield from ((reference, _labels(one["result"])) for one in given)
            if not given:
                yield reference, None
    except (json.JSONDecodeError, RecursionError) as error:
        raise MltrError(f"{path}: not a complete JSON file ({error}); export it again") from error
    except WRONG as error:
        raise MltrError(_told_wrong(path, error)) from error


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


def _row(row: dict[str, Any]) -> tuple[str, set[str] | None]:
    """Return the photo and the labels in a row of JSON-MIN, or of a table.

    What a task came with is in front of its id, the answers follow; a comment is no label.
    """
    keys = list(row)
    answers = keys[keys.index("id") + 1 :] if "id" in keys else keys
    told = [key for key in answers if key not in ABOUT and not IS_REMARK.fullmatch(key)]
    found = {name for key in told for name in _names(row[key])}
    return _reference(row), found if row.get("annotation_id") or found else None


def _reference(data: dict[str, Any]) -> str:
    """Return the path or URL of a task's photo."""
    keys = [key for key in IMAGE_KEYS if data.get(key)]
    if not keys:
        raise KeyError(f"photo among {', '.join(map(str, data))}")
    return str(data[keys[0]])


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _rows_of_table(path: Path) -> Iterator[tuple[str, set[str] | None]]:
    sheet = read_sheet(path)
    try:
        for row in range(len(sheet)):
            yield _row({column.name: _cell(column[row]) for column in sheet.columns})
    except WRONG as error:
        raise MltrError(_told_wrong(path, error)) from error


def _told_wrong(path: Path, error: Exception) -> str:
    reason = f" (no {error.args[0]})" if isinstance(error, LookupError) else ""
    return f"{path}: not as Label Studio exports it{reason}; export it again"


def _cell(text: str) -> Any:
    """Return what a cell holds: JSON where there are several labels or regions, else a text."""
    if text and text[0] in "[{":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text
