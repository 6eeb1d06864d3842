"""What ``mltr predict`` writes: a row for each image, as a table, JSON, CSV, TSV or Parquet.

Rows are written as they come. CSV, TSV and Parquet have the columns `path`, `labels`, `probs` (of
the labels), `error`, and then one for each class with its probability; JSON has the first three,
and `error` if something is wrong; an image that can't be read has only `path` and `error`. If the
network's classes have categories, all have a column `categories`, those of the labels.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from mltr.data.detect import ERRORS_HEADER, OWN_COLUMNS
from mltr.data.tables.cells import row_writer, to_cells
from mltr.data.tables.tags import join_tags
from mltr.errors import BrokenImage, MltrError
from mltr.files.text import is_utf8
from mltr.files.writing import check_target, open_regular, write_atomically
from mltr.predict.fiftyone import write_fiftyone
from mltr.predict.inputs import name_of
from mltr.predict.label_studio import write_tasks
from mltr.predict.options import SHEET_PICTURES
from mltr.terminal import UNPRINTABLE, make_console, printable

if TYPE_CHECKING:
    from mltr.data.records import ImageSource, PackedImage
    from mltr.pictures.gallery import Tile
    from mltr.predict.predictor import Prediction

log = logging.getLogger(__name__)

CATEGORIES = "categories"  #: a column of our own behind these, of a network that has some
SHEET_LABELS = 12  #: of each image of a contact sheet, at most
TILE_SIDE = 480  #: pixels that are kept of an image for a sheet
ROW_GROUP = 1024  #: rows that go to Parquet at once
DELIMITERS = {"csv": ",", "tsv": "\t"}


class Row(NamedTuple):
    """One image of the output."""

    image: Path | PackedImage
    labels: list[tuple[str, float]]  #: best first
    probs: NDArray[np.float32] | None  #: of all classes wanted; None: the image can't be read
    error: str = ""  #: why it can't be read, or its sidecar can't be written

    @property
    def name(self) -> str:
        """The path as text."""
        return to_text(name_of(self.image))

    def file(self, reader: str) -> Path:
        """Return the image's own file; raises `MltrError` that `reader` needs one."""
        if not isinstance(self.image, Path):
            raise MltrError(f"{self.name} has no file of its own, and {reader} opens nothing else")
        return self.image


@dataclass(frozen=True)
class Selection:
    """The labels of a prediction that a row contains."""

    indices: tuple[int, ...]  #: of the classes wanted, among the network's
    top: int | None = None  #: at most so many labels
    fills_top: bool = False  #: with labels below their thresholds, too

    def row(self, image: Path | PackedImage, found: Prediction | BrokenImage) -> Row:
        """Return the row of an image."""
        if isinstance(found, BrokenImage):
            return Row(image, [], None, to_text(str(found)))
        prediction = found.only(self.indices)
        if self.top is None:
            labels = prediction.labels
        elif self.fills_top:
            labels = prediction.top(self.top)
        else:
            labels = prediction.labels[: self.top]
        return Row(image, labels, prediction.probs)


def to_text(name: str) -> str:
    r"""Return a name as UTF-8, which that of a file on Linux need not be; no two become one.

    A byte that isn't UTF-8 is written as ``\xff``. In such names, and in those that have ``\x``
    themselves, a backslash is doubled.
    """
    raw = name.encode("utf-8", "surrogateescape")
    with contextlib.suppress(UnicodeDecodeError):
        if b"\\x" not in raw:
            return raw.decode()
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def with_own_files(rows: Iterable[Row], reader: str) -> Iterator[Row]:
    """Leave out images that `reader` can't find by a path in UTF-8, with a warning for each.

    Raises `MltrError` for an image without a file of its own.
    """
    for row in rows:
        if is_utf8(row.file(reader).absolute()):
            yield row
        else:
            log.warning(
                "%s: %s can't be told its name, which isn't UTF-8; left out", row.name, reader
            )


@dataclass(frozen=True)
class Vocabulary:
    """What rows are written with."""

    classes: Sequence[str]  #: the classes wanted
    categories: Mapping[str, str] = field(default_factory=dict)  #: of these; empty: there are none
    model: str = ""  #: what the network is called

    @property
    def own_columns(self) -> list[str]:
        """The columns before those of the classes."""
        return [*OWN_COLUMNS, *([CATEGORIES] if self.categories else [])]

    @property
    def columns(self) -> list[str]:
        """All columns; a class that is called like one of ours gets a prefix."""
        own = self.own_columns
        return [*own, *(f"class:{c}" if c in own else c for c in self.classes)]

    def of(self, row: Row) -> list[str]:
        """Return the categories of a row's labels."""
        return [self.categories.get(name, "") for name, _ in row.labels]


def write_rows(
    rows: Iterable[Row], vocabulary: Vocabulary, out: Path | None, form: str, width: int
) -> None:
    """Write all rows in the format `form` to stdout, or to a file that appears once it is whole.

    A table aligns paths at `width` characters. Raises `MltrError` if writing fails.
    """

    def write_text(file: TextIO) -> None:
        if form == "jsonl":
            write_jsonl(rows, vocabulary, file)
        elif form == "json":
            write_json(rows, vocabulary, file)
        elif form in DELIMITERS:
            write_csv(rows, vocabulary, file, DELIMITERS[form])
        elif form == "fiftyone":
            write_fiftyone(with_own_files(rows, "FiftyOne"), vocabulary, file)
        elif form == "label-studio":
            write_tasks(with_own_files(rows, "Label Studio"), vocabulary.model, file)
        else:
            write_table(rows, width, file)

    def write_file(temporary: Path) -> None:
        if form == "parquet":
            write_parquet(rows, vocabulary, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                write_text(file)

    if out is not None:
        write_atomically(out, write_file)
        return
    write_text(_stdout(is_data=form != "table"))


def _stdout(is_data: bool) -> TextIO:
    """Return stdout, for data in UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = "utf-8" if is_data else sys.stdout.encoding
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
    return sys.stdout


def write_jsonl(rows: Iterable[Row], vocabulary: Vocabulary, file: TextIO) -> None:
    """Write one JSON object a line, and each line at once."""
    for row in rows:
        print(_to_json(row, vocabulary), file=file, flush=True)


def write_json(rows: Iterable[Row], vocabulary: Vocabulary, file: TextIO) -> None:
    """Write a JSON array of the same objects, one a line."""
    separator = "[\n"
    for row in rows:
        file.write(separator + _to_json(row, vocabulary))
        separator = ",\n"
    file.write("\n]\n" if separator.startswith(",") else "[]\n")


def _to_json(row: Row, vocabulary: Vocabulary) -> str:
    content: dict[str, Any] = {"path": row.name}
    if row.error:
        content["error"] = row.error
    if row.probs is not None:
        content["labels"] = [name for name, _ in row.labels]
        content["probs"] = [round(prob, 6) for _, prob in row.labels]
        if vocabulary.categories:
            content[CATEGORIES] = vocabulary.of(row)
    text = json.dumps(content, ensure_ascii=False)
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_csv(
    rows: Iterable[Row], vocabulary: Vocabulary, file: TextIO, delimiter: str = ","
) -> None:
    """Write a header and a line an image; `join_tags` puts labels in a cell with `; ` between."""
    clean = printable if file.isatty() else str
    writer = row_writer(file, delimiter)
    writer.writerow(map(clean, to_cells(vocabulary.columns)))
    unknown = [""] * len(vocabulary.classes)
    for row in rows:
        labels = join_tags([name for name, _ in row.labels], "; ")
        own_probs = "; ".join(f"{prob:.6g}" for _, prob in row.labels)
        own = [row.name, labels, own_probs, row.error]
        own += ["; ".join(vocabulary.of(row))] if vocabulary.categories else []
        scores = unknown if row.probs is None else [f"{p:.6g}" for p in row.probs]
        writer.writerow([*map(clean, to_cells(own)), *scores])


def write_parquet(rows: Iterable[Row], vocabulary: Vocabulary, path: Path) -> None:
    """Write lists for `labels` and `probs`, float32 for each class; `error` is null or a text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [pa.string(), pa.list_(pa.string()), pa.list_(pa.float32()), pa.string()]
    kinds += [pa.list_(pa.string())] if vocabulary.categories else []
    own = len(kinds)
    kinds += [pa.float32()] * len(vocabulary.classes)
    schema = pa.schema(list(zip(vocabulary.columns, kinds, strict=True)))
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(remaining, ROW_GROUP)):
            missing = np.array([row.probs is None for row in group])
            scores = np.zeros((len(group), len(vocabulary.classes)), np.float32)
            if known := [row.probs for row in group if row.probs is not None]:
                scores[~missing] = known
            columns: list[Any] = [
                [row.name for row in group],
                [[name for name, _ in row.labels] for row in group],
                [[prob for _, prob in row.labels] for row in group],
                [row.error or None for row in group],
            ]
            columns += [list(map(vocabulary.of, group))] if vocabulary.categories else []
            arrays = [pa.array(*pair) for pair in zip(columns, kinds[:own], strict=True)]
            arrays += [pa.array(column, mask=missing) for column in scores.T]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def write_table(rows: Iterable[Row], width: int, file: TextIO) -> None:
    """Write a line an image for people: the path, cut to `width` characters, then the labels."""
    from rich.text import Text

    console = make_console(file=file, soft_wrap=True, highlight=False)
    for row in rows:
        name = printable(row.name)
        name = name if len(name) <= width else f"…{name[1 - width :]}"
        line = Text(f"{name:<{width}}", style="dim")
        if row.probs is None:
            line.append("  can't be read", style="red")
        elif not row.labels:
            line.append("  no label", style="dim")
        for label, prob in row.labels:
            line.append(f"  {printable(label)}", style="bold").append(f" {prob:.0%}")
        if row.error and row.probs is not None:
            line.append("  sidecar not written", style="red")
        console.print(line)


def errors_path(out: Path) -> Path:
    """Return the list of images with errors: `tags.parquet.errors.csv` for `tags.parquet`."""
    return out.with_name(f"{out.name}.errors.csv")


def with_errors(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """List the images with errors in a CSV file, once all rows have passed by.

    There is no file if there are none; one of an earlier run is removed. What someone else has
    put there stays.
    """
    count = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as listing:
        writer = row_writer(listing)
        writer.writerow(ERRORS_HEADER)
        for row in rows:
            if row.error:
                writer.writerow(to_cells((row.name, row.error)))
                count += 1
            yield row
        if not _is_ours(path):
            if count:
                log.warning("%s is not a list of errors written by mltr: it is kept", path)
            return
        if not count:
            path.unlink(missing_ok=True)
            return
        listing.seek(0)

        def copy(temporary: Path) -> None:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                shutil.copyfileobj(listing, file)

        write_atomically(path, copy)


def _is_ours(path: Path) -> bool:
    """Whether a list of errors may be replaced: by us alone, or if there is none."""
    try:
        with open_regular(check_target(path)) as file:
            return file.readline(100) == f"{','.join(ERRORS_HEADER)}\n".encode()
    except FileNotFoundError:
        return True
    except (OSError, MltrError):
        return False


def with_tiles(rows: Iterable[Row], tiles: list[Tile]) -> Iterator[Row]:
    """Keep small copies of the first images, for a contact sheet, as their rows pass by."""
    for row in rows:
        if row.probs is not None and len(tiles) < SHEET_PICTURES:
            tile = make_tile(row.image, row.labels[:SHEET_LABELS], printable(Path(row.name).name))
            tiles += [tile] if tile else []
        yield row


def make_tile(
    image: ImageSource,
    labels: Sequence[tuple[str, float]],
    caption: str,
    truth: Sequence[str] | None = None,
) -> Tile | None:
    """Return a small copy of an image for a contact sheet; None if it can't be read any more."""
    from mltr.data.images import open_image
    from mltr.pictures.gallery import Tile

    with contextlib.suppress(BrokenImage):
        picture = open_image(image)
        picture.thumbnail((TILE_SIDE, TILE_SIDE))
        return Tile(picture, labels, truth, caption)
    return None


def write_sheet(path: str | Path, tiles: Sequence[Tile]) -> None:
    """Write a contact sheet; raises `MltrError` if the file can't be written."""
    from mltr.pictures.gallery import contact_sheet

    sheet = contact_sheet(tiles)
    write_atomically(path, lambda temporary: sheet.save(temporary, quality=90))
