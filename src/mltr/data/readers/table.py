"""Your own labels in a table: a CSV of any spreadsheet, or Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mltr.config.schema import DataConfig
from mltr.data.packed import PackedPhotos
from mltr.data.records import PARTS, Record, Split, indices_of
from mltr.data.tables.cells import to_answer
from mltr.data.tables.columns import FLAGS, IS_FLAG, Roles, find_roles, kind_of
from mltr.data.tables.labels import Labelled, read_names
from mltr.data.tables.names import unify
from mltr.data.tables.paths import PhotoFinder
from mltr.data.tables.sheet import PARQUET_SUFFIXES, Column, Sheet, read_sheet
from mltr.data.understood import Understood
from mltr.errors import MltrError, UsageError

WORDS = {1: "present", 0: "absent", -1: "unknown"}


def read_csv(
    path: str | Path,
    images: str | Path = "",
    classes: Sequence[str] | None = None,
    **options: Any,
) -> Split:
    """Read a CSV: a column of photos, and labels.

    The labels are one column a class, or one column of names; a cell of names may hold several, as
    text with separators or as a list in JSON or Python, or a photo may have several rows. Encoding
    (UTF-8, UTF-16, cp1252), columns and separators are found. Paths are relative to `images`, by
    default the table's folder or images/ beside it, and may lack the suffix. Files that aren't
    there are kept and counted in the notes. A column `split` is kept by `open_splits`.

    `options` are fields of `DataConfig`, such as ``separator="|"``. Raises `MltrError`, naming file
    and row, for what can't be read, and `UsageError`, naming the choices, for what is ambiguous.
    """
    path, images = Path(path), Path(images)
    if images != Path() and not images.is_dir():
        images = path.parent / images
    return read_table(path, images, classes, DataConfig(**options))[0]


def read_parquet(
    path: str | Path,
    images: str | Path = "",
    classes: Sequence[str] | None = None,
    **options: Any,
) -> Split:
    """Read a Parquet table as `read_csv` does; its cells may be lists, too."""
    return read_csv(path, images, classes, **options)


def read_table(
    path: Path, images: Path, classes: Sequence[str] | None, config: DataConfig
) -> tuple[Split, list[str]]:
    """Read either kind by its suffix; return also each record's part, if the table states it."""
    sheet, finder, config = _open(path, images, config)
    if len(sheet.columns) < 2 or not len(sheet):
        raise MltrError(f"{path}: needs a header, a column of paths, labels, and at least one row")
    roles = find_roles(sheet, config, classes, finder.is_photo)
    if not config.path_column and finder.is_photo(roles.photos.name):
        raise UsageError(
            f"{path}: there is a photo called {roles.photos.name!r}, as in its first row: if that "
            "isn't a header, add one, such as path,labels; if it is, set data.path_column to it"
        )
    if roles.form == "answers":
        labelled = _read_answers(sheet, roles.labels, classes, config)
    else:
        labelled = read_names(sheet, roles.labels, classes, config)
    labelled = _without_rejected(labelled, roles)
    names = finder.names_of(sheet, roles.photos)
    parts = _read_parts(sheet, roles.split, roles.photos)
    merged = _merge(sheet, names, labelled, parts)
    records = [
        Record(finder.path_of(names[row]), names[row], labelled.rows[row]) for row in merged.rows
    ]
    split = Split(labelled.classes, records, "", merged.notes, _understood(sheet, roles, labelled))
    missing = [record.name for record in records if not finder.is_there(record.name)]
    if len(missing) == len(records):
        raise MltrError(
            f"{path}: none of its {len(records)} images is in {finder.folder}, e.g. "
            f"{missing[0]!r}; set data.images to their folder"
        )
    split.notes["missing_files"] = len(missing)
    return split, [parts[row] for row in merged.rows] if parts else []


def _open(
    path: Path, images: Path, config: DataConfig
) -> tuple[Sheet, PhotoFinder | PackedPhotos, DataConfig]:
    """Return a table, where its photos are, and how to read it."""
    if path.is_file() and path.suffix.lower() in PARQUET_SUFFIXES:
        packed = PackedPhotos(path)
        if packed.column and packed.names and not config.path_column:
            name, names = packed.column[0], packed.names
            photos = Column(name, names, np.arange(len(names), dtype=np.int32))
            return read_sheet(path, photos), packed, replace(config, path_column=name)
    sheet = read_sheet(path)
    finder = PhotoFinder(path, images, Path(config.root))
    if sheet.columns:
        finder.choose_folder(sheet)
    return replace(sheet, details=(*sheet.details, *finder.details)), finder, config


def _understood(sheet: Sheet, roles: Roles, labelled: Labelled) -> Understood:
    columns = {roles.photos.name: "photos"} | {c.name: "labels" for c in roles.labels}
    if roles.split:
        columns[roles.split.name] = "split"
    return Understood(
        "table",
        (sheet.path.name,),
        (*sheet.details, *labelled.details),
        columns,
        tuple(column.name for column in roles.passed_over),
        labelled.meanings,
    )


def _without_rejected(labelled: Labelled, roles: Roles) -> Labelled:
    """Return labels without those of rows whose column `Confidence` is 0, as in Open Images.

    Somebody has looked, and the label isn't there.
    """
    for column in roles.passed_over:
        is_number = kind_of(column) in ("answers", "numbers")
        is_verdict = column.name.casefold() == "confidence" and is_number
        if roles.form == "labels" and labelled.is_one_a_row and is_verdict:
            rejected = np.array([to_answer(text) == "0" for text in column.texts])[column.codes]
            labelled.rows[rejected] = 0
            meanings = labelled.meanings | {f"{column.name} 0": "absent"}
            return replace(labelled, meanings=meanings)
    return labelled


# -- a column a class --------------------------------------------------------------------------


def _read_answers(
    sheet: Sheet, columns: Sequence[Column], classes: Sequence[str] | None, config: DataConfig
) -> Labelled:
    answers = [[to_answer(text) for text in column.texts] for column in columns]
    for column, own in zip(columns, answers, strict=True):
        if None in own:
            row = int(np.flatnonzero(column.codes == own.index(None))[0])
            raise MltrError(
                f"{sheet.where(row)}, column {column.name!r}: {column[row]!r} is not 1, 0, -1 or "
                "empty"
            )
    label_of = _labels_of_answers(sheet.path, {a for own in answers for a in own if a}, config)
    times = Counter(column.name for column in columns)
    called = unify(times, config.merge_case, str(sheet.path), classes or ())
    listed = tuple(classes or dict.fromkeys(called.values()))
    if not classes and len(listed) < len(columns) and not config.merge_case:
        raise MltrError(f"{sheet.path}: two columns in the header have the same name")
    by_class = np.full((len(listed), len(sheet)), -1, np.int8)
    for column, own in zip(columns, answers, strict=True):
        (index,) = indices_of([called[column.name]], listed, str(sheet.path))
        labels = np.array([label_of[answer or ""] for answer in own], np.int8)[column.codes]
        by_class[index] = np.maximum(by_class[index], labels)
    meanings = _describe_answers(columns, answers, label_of)
    return Labelled(listed, np.ascontiguousarray(by_class.T), meanings)


def _labels_of_answers(path: Path, seen: set[str], config: DataConfig) -> dict[str, int]:
    """Return the label of each answer; raises `UsageError` if 0 and -1 may each mean absent."""
    if {"0", "-1"} <= seen and config.absent == "auto":
        raise UsageError(
            f"{path} has 1, 0 and -1: set data.absent 0 if 0 means absent (-1 is then unknown), or "
            "data.absent -1 if -1 does (as in VOC, where 0 is difficult: it is then unknown)"
        )
    is_minus = config.absent == -1 or ("-1" in seen and config.absent == "auto")
    return {
        "1": 1,
        "0": -1 if is_minus else 0,
        "-1": 0 if is_minus else -1,
        "": 0 if config.missing == "negative" else -1,
    }


def _describe_answers(
    columns: Sequence[Column], answers: Sequence[Sequence[str | None]], label_of: dict[str, int]
) -> dict[str, str]:
    """Return what each way of writing an answer in a table means."""
    found: dict[str, str] = {}
    for column, own in zip(columns, answers, strict=True):
        for text, answer, times in zip(column.texts, own, column.times, strict=True):
            if times:
                found[text or "empty"] = WORDS[label_of[answer or ""]]
    order = list(WORDS.values())
    return dict(sorted(found.items(), key=lambda entry: order.index(entry[1])))


# -- rows --------------------------------------------------------------------------------------


@dataclass
class _Merged:
    rows: list[int]  #: one for each photo
    notes: dict[str, int]


def _read_parts(sheet: Sheet, column: Column | None, photos: Column) -> list[str]:
    """Return train, val or test for each row; nothing where no column says so."""
    if column is None:
        return []
    flag = IS_FLAG.fullmatch(column.name)
    if flag:
        meaning = FLAGS[(flag[1] or flag[3]).lower()]
        part_of = [meaning.get(to_answer(text) or "", "") for text in column.texts]
    else:
        part_of = [PARTS.get(text.casefold(), "") for text in column.texts]
    for code, part in enumerate(part_of):
        if not part and (rows := np.flatnonzero(column.codes == code)).size:
            row = int(rows[0])
            raise MltrError(
                f"{sheet.where(row)}: {photos[row]!r} has split {column[row]!r}; use train, val or "
                "test"
            )
    return [part_of[code] for code in column.codes]


def _merge(sheet: Sheet, names: Sequence[str], labelled: Labelled, parts: Sequence[str]) -> _Merged:
    """Return one row for each photo, with the labels of all of its rows."""
    first: dict[str, int] = {}
    repeated = joined = 0
    for row, name in enumerate(names):
        known = first.setdefault(name, row)
        if known == row:
            continue
        again = f"{sheet.where(row)}: {name!r} is also in row {known + sheet.first_line}"
        if parts and parts[known] != parts[row]:
            raise MltrError(f"{again}, as {parts[known]} there and {parts[row]} here")
        if np.array_equal(labelled.rows[known], labelled.rows[row]):
            repeated += 1
        elif labelled.is_one_a_row:
            joined += 1
            np.maximum(labelled.rows[known], labelled.rows[row], out=labelled.rows[known])
        else:
            raise MltrError(f"{again}, with other labels")
    notes = {"duplicate_rows_dropped": repeated}
    if joined:
        notes = {"duplicate_rows_dropped": 0, "rows_joined_to_photos": repeated + joined}
    return _Merged(list(first.values()), notes)
