"""What ``mltr predict`` writes: a row for each image, as a table, JSON lines, CSV or Parquet.

Rows are written as they come. CSV and Parquet have the columns `path`, `labels`, `probs` (of the
labels), `error`, and then one for each class with its probability; JSON lines have the first
three, or `path` and `error` for an image that can't be read.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from mltr.errors import BrokenImage
from mltr.files import write_atomically
from mltr.inputs import name_of

if TYPE_CHECKING:
    from mltr.data.records import PackedImage
    from mltr.gallery import Tile
    from mltr.predictor import Prediction

OWN_COLUMNS = ("path", "labels", "probs", "error")
SHEET_PICTURES = 60  #: a contact sheet shows the first so many images
SHEET_LABELS = 12  #: and at most so many labels of each
ROW_GROUP = 1024  #: rows that go to Parquet at once


class Row(NamedTuple):
    """One image of the output."""

    image: Path | PackedImage
    labels: list[tuple[str, float]]  #: best first
    probs: NDArray[np.float32] | None  #: of all classes wanted; None: the image can't be read
    error: str = ""

    @property
    def name(self) -> str:
        """The path as text."""
        return printable(name_of(self.image))


@dataclass(frozen=True)
class Selection:
    """Which labels of a prediction a row tells."""

    indices: tuple[int, ...]  #: of the classes wanted, among the network's
    top: int | None = None  #: at most so many labels
    fills_top: bool = False  #: with labels below their thresholds, too

    def row(self, image: Path | PackedImage, found: Prediction | BrokenImage) -> Row:
        """Return the row of an image."""
        if isinstance(found, BrokenImage):
            return Row(image, [], None, printable(str(found)))
        prediction = found.only(self.indices)
        if self.top is None:
            labels = prediction.labels
        elif self.fills_top:
            labels = prediction.top(self.top)
        else:
            labels = prediction.labels[: self.top]
        return Row(image, labels, prediction.probs)


def printable(text: str) -> str:
    """Return text that can be written as UTF-8, as the name of a file on Linux need not be."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def write_rows(
    rows: Iterable[Row], classes: Sequence[str], out: Path | None, form: str, width: int
) -> None:
    """Write all rows in the format `form` to stdout, or to a file that appears once it is whole.

    A table aligns paths at `width` characters. Raises `MltrError` if the file can't be written.
    """

    def write_text(file: TextIO) -> None:
        if form == "jsonl":
            write_jsonl(rows, file)
        elif form == "csv":
            write_csv(rows, classes, file)
        else:
            write_table(rows, width, file)

    def write_file(temporary: Path) -> None:
        if form == "parquet":
            write_parquet(rows, classes, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                write_text(file)

    if out is None:
        write_text(sys.stdout)
        return
    write_atomically(out, write_file)


def write_jsonl(rows: Iterable[Row], file: TextIO) -> None:
    """Write one JSON object a line, and each line at once."""
    for row in rows:
        content: dict[str, Any] = {"path": row.name}
        if row.error:
            content["error"] = row.error
        else:
            content["labels"] = [name for name, _ in row.labels]
            content["probs"] = [round(prob, 6) for _, prob in row.labels]
        print(json.dumps(content, ensure_ascii=False), file=file, flush=True)


def write_csv(rows: Iterable[Row], classes: Sequence[str], file: TextIO) -> None:
    """Write a header and a line an image; several labels in a cell are separated by `; `."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_columns(classes))
    for row in rows:
        labels = "; ".join(name for name, _ in row.labels)
        own_probs = "; ".join(f"{prob:.6g}" for _, prob in row.labels)
        scores = [""] * len(classes) if row.probs is None else [f"{p:.6g}" for p in row.probs]
        writer.writerow([row.name, labels, own_probs, row.error, *scores])


def write_parquet(rows: Iterable[Row], classes: Sequence[str], path: Path) -> None:
    """Write lists for `labels` and `probs`, float32 for each class; `error` is null or a text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [pa.string(), pa.list_(pa.string()), pa.list_(pa.float32()), pa.string()]
    kinds += [pa.float32()] * len(classes)
    schema = pa.schema(list(zip(_columns(classes), kinds, strict=True)))
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(remaining, ROW_GROUP)):
            missing = np.array([row.probs is None for row in group])
            scores = np.zeros((len(group), len(classes)), np.float32)
            scores[~missing] = [row.probs for row in group if row.probs is not None]
            columns: list[Any] = [
                [row.name for row in group],
                [[name for name, _ in row.labels] for row in group],
                [[prob for _, prob in row.labels] for row in group],
                [row.error or None for row in group],
            ]
            arrays = [pa.array(*pair) for pair in zip(columns, kinds[:4], strict=True)]
            arrays += [pa.array(column, mask=missing) for column in scores.T]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _columns(classes: Sequence[str]) -> list[str]:
    """Names of the columns; a class that is called like one of ours gets a prefix."""
    return [*OWN_COLUMNS, *(f"class:{c}" if c in OWN_COLUMNS else c for c in classes)]


def write_table(rows: Iterable[Row], width: int, file: TextIO) -> None:
    """Write a line an image for people: the path, cut to `width` characters, then the labels."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, soft_wrap=True, highlight=False)
    for row in rows:
        name = row.name if len(row.name) <= width else f"…{row.name[1 - width :]}"
        line = Text(f"{name:<{width}}", style="dim")
        if row.error:
            line.append("  can't be read", style="red")
        elif not row.labels:
            line.append("  no label", style="dim")
        for label, prob in row.labels:
            line.append(f"  {label}", style="bold").append(f" {prob:.0%}")
        console.print(line)


def errors_path(out: Path) -> Path:
    """Return the list of images that can't be read: `tags.errors.csv` for `tags.parquet`."""
    return out.with_name(f"{out.stem}.errors.csv")


def with_errors(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """List the images that can't be read in a CSV file, once all rows have passed by.

    There is no file if all could be read; one of an earlier run is removed.
    """
    count = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as listing:
        writer = csv.writer(listing, lineterminator="\n")
        writer.writerow(("path", "error"))
        for row in rows:
            if row.error:
                writer.writerow((row.name, row.error))
                count += 1
            yield row
        if not count:
            path.unlink(missing_ok=True)
            return
        listing.seek(0)

        def copy(temporary: Path) -> None:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                shutil.copyfileobj(listing, file)

        write_atomically(path, copy)


def with_tiles(rows: Iterable[Row], tiles: list[Tile]) -> Iterator[Row]:
    """Keep small copies of the first images, for a contact sheet, as their rows pass by."""
    from mltr.data.images import open_image
    from mltr.gallery import Tile

    for row in rows:
        if not row.error and len(tiles) < SHEET_PICTURES:
            image = open_image(row.image)
            image.thumbnail((480, 480))
            tiles.append(Tile(image, row.labels[:SHEET_LABELS], caption=Path(row.name).name))
        yield row


def write_sheet(path: str | Path, tiles: Sequence[Tile]) -> None:
    """Write a contact sheet; raises `MltrError` if the file can't be written."""
    from mltr.gallery import contact_sheet

    sheet = contact_sheet(tiles)
    write_atomically(path, lambda temporary: sheet.save(temporary, quality=90))
