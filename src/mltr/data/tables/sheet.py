"""Tables as files: text of any spreadsheet, or Parquet, as columns of distinct values."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mltr.data.tables.cells import from_cells, row_writer
from mltr.errors import MltrError
from mltr.files.text import find_encoding, read_text

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

TEXT_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
LINES_SUFFIX = ".jsonl"  #: an object a line, as in the metadata.jsonl of Hugging Face
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SNIFFED = 1 << 18  #: bytes from which delimiter and types are guessed
SAMPLED = 1000  #: rows, likewise
WORDS_SHOWN = 3
LARGEST_LABEL = 4096  #: bytes; a longer value is the content of an image, not a label


@dataclass(frozen=True, eq=False)
class Column:
    """A column of a table; value i of its N cells is ``values[codes[i]]``."""

    name: str
    values: Sequence[Any]  #: each once: texts from a CSV; anything, None for null, from Parquet
    codes: NDArray[np.integer[Any]]  #: [N]

    def __getitem__(self, row: int) -> Any:
        return self.values[self.codes[row]]

    @cached_property
    def texts(self) -> list[str]:
        """Its values as texts without blanks around them; null is an empty one."""
        return ["" if value is None else str(value).strip() for value in self.values]

    @cached_property
    def times(self) -> NDArray[np.int64]:
        """How often each of its values occurs."""
        return np.bincount(self.codes, minlength=len(self.values))


@dataclass(frozen=True)
class Sheet:
    """A table: columns of equal length, and how they were read."""

    path: Path
    columns: list[Column]
    first_line: int  #: what the first row is called in messages
    details: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns[0].codes) if self.columns else 0

    def where(self, row: int) -> str:
        """Return the place of a row, for messages."""
        return f"{self.path}, row {row + self.first_line}"


def read_sheet(path: Path, photos: Column | None = None) -> Sheet:
    """Read a table by its suffix; raises `MltrError` where it is none.

    `photos` takes the place of a column of that name in Parquet, which isn't read.
    """
    if not path.is_file():
        raise MltrError(f"{path}: no such table")
    if path.suffix.lower() == LINES_SUFFIX:
        return _read_lines(path)
    if path.suffix.lower() in PARQUET_SUFFIXES:
        return _read_parquet(path, photos)
    return _read_text(path)


# -- text --------------------------------------------------------------------------------------


def _read_text(path: Path) -> Sheet:
    content = path.read_bytes()
    encoding = find_encoding(content, path)
    if encoding != "utf-8":
        content = content.decode(encoding, "strict").encode("utf-8")
    content = content.removeprefix(b"\xef\xbb\xbf")
    lines, content = content.count(b"\n"), content.lstrip(b"\r\n")
    blank = lines - content.count(b"\n")
    second_line = content.find(b"\n", content.find(b"\n") + 1) + 1  # beyond a very wide header
    head = content[: max(SNIFFED, second_line)].decode("utf-8", "ignore")
    if told := re.match(r"sep=(.)\r?\n", head):  # by which Excel tells itself
        content, head = content[told.end() :], head[told.end() :]
    delimiter = told[1] if told else find_delimiter(head)
    try:
        sample = _sample(head, delimiter, is_whole=len(content) <= max(SNIFFED, second_line))
    except csv.Error as error:
        raise MltrError(f"{path}: not a CSV ({error})") from error
    if not sample:
        return Sheet(path, [], 1)
    names = [name.strip() for name in from_cells(sample[0])]
    has_header = not any(_is_image_name(name) for name in names)
    if not has_header:
        names = [f"column {number}" for number in range(1, len(names) + 1)]
    columns = _parse(path, content, delimiter, names, sample[has_header:], has_header)
    columns = _without_blanks(columns)
    separated = DELIMITERS.get(delimiter, repr(delimiter))
    details = [f"in {encoding}", f"columns separated by {separated}"]
    details += [] if has_header else ["no header"]
    if encoding == "cp1252":  # which is a guess that the reader of a word can check
        details.append(f"in which it reads {_accented(head)}")
    return Sheet(path, columns, blank + 1 + has_header, tuple(details))


def _accented(text: str) -> str:
    """Return the first words with other letters than those of ASCII.

    >>> _accented("Küste;sea;schön;Küste")
    "'Küste', 'schön'"
    """
    words = re.findall(r"\w*[^\W\x00-\x7f]\w*", text)
    return ", ".join(map(repr, list(dict.fromkeys(words))[:WORDS_SHOWN]))


def find_delimiter(head: str) -> str:
    """Return what separates the columns: what divides most rows as it divides the header."""

    def quality(delimiter: str) -> tuple[float, int]:
        try:
            rows = _sample(head, delimiter, is_whole=False)[:SAMPLED]
        except csv.Error:
            return 0.0, 0
        width = len(rows[0]) if rows else 0
        if width < 2:
            return 0.0, width
        return sum(len(row) == width for row in rows) / len(rows), width

    return max(DELIMITERS, key=quality)


def _sample(head: str, delimiter: str, is_whole: bool) -> list[list[str]]:
    """Return the first rows; the last may be cut off, and is left out unless it is the only one."""
    rows: list[list[str]] = []
    for row in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter):
        if row:
            rows.append(row)
        if len(rows) > SAMPLED + 1:
            break
    return rows if is_whole or len(rows) < 3 else rows[:-1]


def _is_image_name(cell: str) -> bool:
    from mltr.data.images import IMAGE_SUFFIXES

    return cell.strip().lower().endswith(IMAGE_SUFFIXES)


def _parse(
    path: Path,
    content: bytes,
    delimiter: str,
    names: Sequence[str],
    sample: Sequence[Sequence[str]],
    has_header: bool,
) -> list[Column]:
    """Return the columns: those of 1, 0 and -1 as such, others by their distinct texts."""
    import pyarrow as pa

    if not sample:
        return [Column(name, [], np.zeros(0, np.int32)) for name in names]
    cells = zip(*sample, strict=False)
    plain = {i for i, column in enumerate(cells) if {*column} <= {"1", "0", "-1", ""}}
    try:
        table = _parse_once(content, delimiter, len(names), plain, has_header)
        if not all(_is_plain(table.column(index)) for index in plain):
            table = _parse_once(content, delimiter, len(names), set(), has_header)
    except pa.ArrowInvalid:  # some row is longer or shorter, or some cell below is anything else
        content = _repair(path, content, delimiter, names)
        try:
            table = _parse_once(content, delimiter, len(names), set(), has_header)
        except pa.ArrowInvalid as error:
            raise MltrError(f"{path}: not a CSV ({error})") from error
    return [_to_column(name, table.column(i)) for i, name in enumerate(names)]


def _is_plain(cells: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc

    least, most = pc.min_max(cells).as_py().values()
    return least is None or (least >= -1 and most <= 1)


def _parse_once(
    content: bytes, delimiter: str, width: int, plain: set[int], has_header: bool
) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    ids = [str(index) for index in range(width)]
    text = pa.dictionary(pa.int32(), pa.string())
    return arrow_csv.read_csv(
        pa.py_buffer(content),
        # Threads take twice the memory, and read no faster where it matters.
        arrow_csv.ReadOptions(
            column_names=ids, skip_rows_after_names=int(has_header), use_threads=False
        ),
        arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in content),
        arrow_csv.ConvertOptions(
            column_types={name: pa.int8() if int(name) in plain else text for name in ids},
            null_values=[""],
            strings_can_be_null=False,
        ),
    )


def _repair(path: Path, content: bytes, delimiter: str, names: Sequence[str]) -> bytes:
    """Return the table with rows of equal length; only empty cells are added or left out."""
    width = len(names)
    least = max((number for number, name in enumerate(names, start=1) if name), default=width)
    stream = io.StringIO(newline="")
    writer = row_writer(stream, delimiter)
    rows = csv.reader(io.StringIO(content.decode("utf-8"), newline=""), delimiter=delimiter)
    try:
        for number, row in enumerate(rows, start=1):
            if not any(map(str.strip, row)):
                continue
            if len(row) < least or any(row[width:]):
                raise MltrError(
                    f"{path}, row {number}: {len(row)} columns, but the header has {width} (a "
                    "list of labels with commas needs quotes)"
                )
            writer.writerow((row + [""] * width)[:width])
    except csv.Error as error:
        raise MltrError(f"{path}: not a CSV ({error})") from error
    return stream.getvalue().encode("utf-8")


def _without_blanks(columns: Sequence[Column]) -> list[Column]:
    """Return the columns without empty rows, and without empty columns of no name."""
    columns = [column for column in columns if column.name or any(column.texts)]
    rows = np.ones(len(columns[0].codes), bool) if columns else np.zeros(0, bool)
    for column in columns:
        if not rows.any():
            return columns
        rows &= np.array([not text for text in column.texts], bool)[column.codes]
    return [_subset(column, ~rows) for column in columns] if rows.any() else columns


def _subset(column: Column, rows: NDArray[np.bool_]) -> Column:
    """Return some rows of a column, and of its values only theirs."""
    codes = column.codes[rows]
    kept = np.flatnonzero(np.bincount(codes, minlength=len(column.values)))
    places = np.zeros(len(column.values), codes.dtype)
    places[kept] = np.arange(len(kept))
    return Column(column.name, [column.values[int(code)] for code in kept], places[codes])


def _to_column(name: str, cells: pa.ChunkedArray) -> Column:
    import pyarrow as pa

    if cells.type == pa.int8():  # 1, 0, -1; an empty cell is null
        numbers = cells.fill_null(2).to_numpy()
        codes = np.where(numbers < 0, np.int8(3), numbers)
        there = np.flatnonzero(np.bincount(codes, minlength=4))
        codes = np.searchsorted(there, np.arange(4)).astype(np.int8)[codes]
        return Column(name, [("0", "1", "", "-1")[code] for code in there], codes)
    encoded = cells.unify_dictionaries().combine_chunks()
    values = from_cells(encoded.dictionary.to_pylist())
    return Column(name, values, encoded.indices.to_numpy(zero_copy_only=False))


# -- Parquet -----------------------------------------------------------------------------------


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetFile]:
    """Open a Parquet file to read it there; raises `MltrError` where it isn't a whole one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MltrError(f"{path}: not a complete Parquet file ({str(error)[:200]})") from error


def _read_parquet(path: Path, photos: Column | None) -> Sheet:
    with open_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if not photos or name != photos.name]
        table = file.read(columns=names)
        columns = [_values_of(name, table.column(i)) for i, name in enumerate(table.column_names)]
    known = _class_names(table.schema.metadata or {})
    columns = [_with_names(column, known.get(column.name, ())) for column in columns]
    return Sheet(path, [photos, *columns] if photos else columns, 0, ("Parquet",))


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of the classes in columns of numbers, which `datasets` keeps beside them."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        inner = {name: _inner(feature) for name, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: feature["names"] for name, feature in inner.items() if feature.get("names")}


def _inner(feature: Any) -> Mapping[str, Any]:
    """Return the feature in one of lists, which older versions write as a list."""
    if isinstance(feature, list):
        feature = feature[0] if feature else {}
    elif isinstance(feature, dict):
        feature = feature.get("feature", feature)
    return feature if isinstance(feature, dict) else {}


def _with_names(column: Column, names: Sequence[str]) -> Column:
    """Return a column with names for the numbers of classes; -1 is a hidden label."""

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(one) for one in value]
        if not isinstance(value, int) or value < 0:
            return None
        return names[value] if value < len(names) else value

    return replace(column, values=[*map(named, column.values)]) if names else column


# -- JSON --------------------------------------------------------------------------------------


def _read_lines(path: Path) -> Sheet:
    try:
        lines = read_text(path).split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is another value")
        names = list(dict.fromkeys(name for row in rows for name in row))
    except (ValueError, TypeError, RecursionError) as error:
        raise MltrError(f"{path}: not an object of JSON in each line ({error})") from error
    columns = [_by_distinct(name, [row.get(name) for row in rows]) for name in names]
    return Sheet(path, columns, 1, ("an object a line",))


def _by_distinct(name: str, cells: Iterable[Any]) -> Column:
    """Return a column by its distinct values, which are told apart by their text."""
    known: dict[str, int] = {}
    values: list[Any] = []
    codes = []
    for value in cells:
        code = known.setdefault(repr(value), len(known))
        if code == len(values):
            values.append(value)
        codes.append(code)
    return Column(name, values, np.array(codes, np.int32))


def _values_of(name: str, cells: pa.ChunkedArray) -> Column:
    """Return a column by its distinct values; lists and the like are told apart by their text."""
    import pyarrow as pa

    if pa.types.is_nested(cells.type) or pa.types.is_null(cells.type):
        return _by_distinct(name, (cell.as_py() for cell in cells))
    if pa.types.is_dictionary(cells.type):
        encoded = cells.unify_dictionaries().combine_chunks()
    else:
        encoded = cells.combine_chunks().dictionary_encode()
    values = [*encoded.dictionary.to_pylist(), None]
    return Column(name, values, encoded.indices.fill_null(len(values) - 1).to_numpy())
