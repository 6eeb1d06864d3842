"""Your own labels in a CSV or Parquet table: a column of paths, then labels one-hot or as lists."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mltr.data.cells import from_cells
from mltr.data.folders import split_tags
from mltr.data.records import Labels, Record, Split, indices_of
from mltr.data.understood import Understood
from mltr.errors import MltrError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SPLIT_COLUMN = "split"
ONE_HOT = {"1": 1, "0": 0, "-1": -1, "": -1, "1.0": 1, "0.0": 0, "-1.0": -1}
ONE_HOT |= {"True": 1, "False": 0, "None": -1, "nan": -1}


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: list[str]
    rows: list[list[Any]]  #: texts from CSV; values, possibly lists, from Parquet
    first_line: int  #: what the first row is called in messages

    def where(self, row: int) -> str:
        return f"{self.path}, row {row + self.first_line}"


def read_csv(
    path: str | Path, images: str | Path = "", classes: Sequence[str] | None = None
) -> Split:
    """Read a CSV with a header: image paths in the first column, then labels.

    The labels are either one column a class holding 1, 0, or -1 or nothing for unknown; or one
    column of lists such as "sea, sunset". A column `split` says train, val or test where there is
    one; it is kept by `open_splits`. Paths are relative to `images`, by default the table's
    folder, or images/ beside the table. Files that aren't there are kept and counted in the notes.
    Rows that repeat an image with the same labels are dropped and counted.

    Raises `MltrError`, naming file and row, for other values, contradicting rows, classes not in
    `classes`, and a table none of whose images is there.
    """
    return _to_split(_load_csv(Path(path)), Path(images), classes)


def read_parquet(
    path: str | Path, images: str | Path = "", classes: Sequence[str] | None = None
) -> Split:
    """Read a Parquet table laid out as `read_csv` says; a list column may hold real lists."""
    return _to_split(_load_parquet(Path(path)), Path(images), classes)


def read_table(path: Path, images: Path, classes: Sequence[str] | None) -> tuple[Split, list[str]]:
    """Read either kind by its suffix; return also each record's entry in the column `split`."""
    table = _load_parquet(path) if path.suffix in (".parquet", ".pq") else _load_csv(path)
    split = _to_split(table, images, classes)
    if SPLIT_COLUMN not in table.columns[1:]:
        return split, []
    column = table.columns.index(SPLIT_COLUMN, 1)
    part_of = {str(row[0]): str(row[column]).strip() for row in table.rows}
    return split, [part_of[record.name] for record in split]


def _load_csv(path: Path) -> _Table:
    if not path.is_file():
        raise MltrError(f"{path}: no such table")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [from_cells(row) for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MltrError(f"{path}: not a CSV in UTF-8 ({error})") from error
    if len(rows) < 2 or len(rows[0]) < 2:
        raise MltrError(f"{path}: needs a header, a column of paths, labels, and at least one row")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise MltrError(
                f"{path}, row {number}: {len(row)} columns, but the header has {len(rows[0])} (a "
                "list of labels with commas needs quotes)"
            )
    return _Table(path, [name.strip() for name in rows[0]], rows[1:], first_line=2)


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetFile]:
    """Open a Parquet file to read it there; raises `MltrError` where it isn't a whole one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MltrError(f"{path}: not a complete Parquet file ({error})") from error


def _load_parquet(path: Path) -> _Table:
    if not path.is_file():
        raise MltrError(f"{path}: no such table")
    with open_parquet(path) as file:
        table = file.read()
    if table.num_rows == 0 or table.num_columns < 2:
        raise MltrError(f"{path}: needs a column of paths, labels, and at least one row")
    columns = [column.to_pylist() for column in table.columns]
    return _Table(path, table.column_names, [list(row) for row in zip(*columns, strict=True)], 0)


def _to_split(table: _Table, images: Path, classes: Sequence[str] | None) -> Split:
    label_columns = [
        index for index, name in enumerate(table.columns) if index > 0 and name != SPLIT_COLUMN
    ]
    if _holds_lists(table, label_columns):
        names, rows = _read_lists(table, label_columns[0], classes)
    else:
        names, rows = _read_one_hot(table, label_columns, classes)
    folder = _image_folder(table, images)
    records, duplicates = _to_records(table, rows, folder)
    columns = {table.columns[0]: "photos"} | {table.columns[i]: "labels" for i in label_columns}
    columns |= {SPLIT_COLUMN: "split"} if SPLIT_COLUMN in table.columns[1:] else {}
    understood = Understood("table", (table.path.name,), columns=columns)
    split = Split(names, records, "", {"duplicate_rows_dropped": duplicates}, understood)
    missing = split.missing()
    if len(missing) == len(records):
        raise MltrError(
            f"{table.path}: none of its {len(records)} images is in {folder}, e.g. "
            f"{missing[0].name!r}; set data.images to their folder"
        )
    split.notes["missing_files"] = len(missing)
    return split


def _holds_lists(table: _Table, label_columns: list[int]) -> bool:
    """One label column with anything but one-hot values is a column of lists."""
    if len(label_columns) != 1:
        return False
    values = (row[label_columns[0]] for row in table.rows)
    return any(isinstance(v, list) or str(v).strip() not in ONE_HOT for v in values)


def _read_lists(
    table: _Table, column: int, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], list[Labels]]:
    def tags(value: Any) -> list[str]:
        return [str(tag) for tag in value] if isinstance(value, list) else split_tags(value or "")

    lists = [tags(row[column]) for row in table.rows]
    names = tuple(classes or sorted({tag for own in lists for tag in own}))
    rows = []
    for number, own in enumerate(lists):
        labels = np.zeros(len(names), np.int8)
        labels[indices_of(own, names, table.where(number))] = 1
        rows.append(labels)
    return names, rows


def _read_one_hot(
    table: _Table, columns: list[int], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], list[Labels]]:
    names = tuple(table.columns[index] for index in columns)
    if len(set(names)) < len(names):
        raise MltrError(f"{table.path}: two columns in the header have the same name")
    order = indices_of(names, classes, str(table.path)) if classes else list(range(len(names)))
    rows = []
    for number, row in enumerate(table.rows):
        labels = np.full(len(classes or names), -1, np.int8)
        for position, column in zip(order, columns, strict=True):
            value = str(row[column]).strip()
            if value not in ONE_HOT:
                raise MltrError(
                    f"{table.where(number)}, column {table.columns[column]!r}: {value!r} is not "
                    "1, 0, -1 or empty"
                )
            labels[position] = ONE_HOT[value]
        rows.append(labels)
    return tuple(classes or names), rows


def _image_folder(table: _Table, images: Path) -> Path:
    """Where the paths start: as told, or the table's folder, or images/ in it."""
    beside = table.path.parent
    if images != Path():
        return images if images.is_absolute() or images.is_dir() else beside / images
    first = str(table.rows[0][0])
    return beside / "images" if (beside / "images" / first).is_file() else beside


def _to_records(table: _Table, rows: Iterable[Labels], folder: Path) -> tuple[list[Record], int]:
    """Return a record for each image, and how many rows only repeated one."""
    first_seen: dict[str, int] = {}
    records: list[Record] = []
    record_rows: dict[str, Labels] = {}
    duplicates = 0
    for number, labels in enumerate(rows):
        name = str(table.rows[number][0]).strip()
        if not name:
            raise MltrError(f"{table.where(number)}: no image path in the first column")
        if name in first_seen:
            if not np.array_equal(record_rows[name], labels):
                raise MltrError(
                    f"{table.where(number)}: {name!r} is also in row "
                    f"{first_seen[name] + table.first_line}, with other labels"
                )
            duplicates += 1
            continue
        first_seen[name], record_rows[name] = number, labels
        records.append(Record(folder / name, name, labels))
    return records, duplicates
