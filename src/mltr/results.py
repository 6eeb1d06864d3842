"""What ``mltr predict`` writes: a row for each image, as a table, JSON lines, CSV or Parquet.

Rows are written as they come. CSV and Parquet have the columns `path`, `labels`, `probs` (of the
labels), `error`, and then one for each class with its probability; JSON lines have the first
three, or `path` and `error` for an image that can't be read.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import batched
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

OWN_COLUMNS = ("path", "labels", "probs", "error")
PATH_WIDTH = 48  #: longest path that a table aligns
ROW_GROUP = 1024  #: rows that go to Parquet at once


class Row(NamedTuple):
    """One image of the output."""

    path: Path
    labels: list[tuple[str, float]]  #: best first
    probs: NDArray[np.float32] | None  #: of all classes wanted; None: the image can't be read
    error: str = ""

    @property
    def name(self) -> str:
        """The path as text that any file takes, even if it isn't valid UTF-8."""
        return os.fsencode(self.path).decode("utf-8", "replace")


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
    with pq.ParquetWriter(path, schema) as writer:
        for group in _groups(rows):
            writer.write_batch(pa.record_batch(_arrow_columns(group, len(classes)), schema=schema))


def _groups(rows: Iterable[Row]) -> Iterable[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == ROW_GROUP:
            yield group
            group = []
    if group:
        yield group


def _columns(classes: Sequence[str]) -> list[str]:
    """Names of the columns; a class that is called like one of ours gets a prefix."""
    return [*OWN_COLUMNS, *(f"class:{c}" if c in OWN_COLUMNS else c for c in classes)]


def write_table(rows: Iterable[Row], width: int, file: TextIO) -> None:
    """Write a line an image for people to read: the path in `width` characters, then the labels."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file, soft_wrap=True, highlight=False)
    for row in rows:
        name = row.name if len(row.name) <= width else f"…{row.name[1 - width:]}"
        line = Text(f"{name:<{width}}", style="dim")
        if row.error:
            line.append("  can't be read", style="red")
        elif not row.labels:
            line.append("  no label", style="dim")
        for label, prob in row.labels:
            line.append(f"  {label}", style="bold").append(f" {prob:.0%}")
        console.print(line)
