"""Tables named for splits, such as train.csv and test.csv, or several of one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from mltr.config.schema import DataConfig
from mltr.data.readers.table import read_table
from mltr.data.records import Record, Split
from mltr.data.tables.names import in_order
from mltr.errors import MltrError, UsageError


def read_part_tables(
    root: Path,
    tables: dict[str, list[Path]],
    classes: Sequence[str] | None,
    config: DataConfig,
) -> dict[str, Split]:
    """Return a split of each part; those of one part are joined."""
    images = root / config.images if config.images else Path()

    def read(classes: Sequence[str] | None) -> dict[str, list[Split]]:
        found: dict[str, list[Split]] = {}
        for part, paths in tables.items():
            for path in paths:
                for name, split in _parts_of_table(path, part, images, classes, config):
                    found.setdefault(name, []).append(split)
        return found

    found = read(classes)
    tables_read = [*chain(*found.values())]
    if len({split.classes for split in tables_read}) > 1:
        # A label that one table doesn't name is absent there, if it is a list. A column of numbers
        # looks like a class of its own where they are all 0 and 1.
        lists = {
            column
            for split in tables_read
            for column, role in split.understood.columns.items()
            if role == "labels" and column not in split.classes
        }
        found = read(in_order({*chain(*(split.classes for split in tables_read))} - lists))
    parts = {}
    for part, (first, *others) in found.items():
        for split in others:
            first.records = [*first.records, *split.records]
            first.understood |= split.understood
            first.notes = dict(Counter(first.notes) + Counter(split.notes))
        if others:
            first.records = _without_repeated(first.records, f"{root}, {part}")
        parts[part] = first
    return parts


def _without_repeated(records: Iterable[Record], where: str) -> list[Record]:
    """Return the record of each photo once; raises `MltrError` if its labels contradict."""
    found: dict[object, Record] = {}
    for record in records:
        before = found.setdefault(record.image, record)
        if before is record:
            continue
        known = (before.labels >= 0) & (record.labels >= 0)
        if (before.labels != record.labels)[known].any():
            raise MltrError(f"{where}: {record.name} is in two tables, with other labels")
        labels = np.maximum(before.labels, record.labels)
        found[record.image] = replace(before, labels=labels)
    return [*found.values()]


def _parts_of_table(
    path: Path, part: str, images: Path, classes: Sequence[str] | None, config: DataConfig
) -> Iterator[tuple[str, Split]]:
    """Yield a table named for a split; that for training may be divided by a column.

    Raises `UsageError` where name and column disagree.
    """
    split, stated = read_table(path, images, classes, config)
    known = {"train", "val"} if part == "train" and "train" in stated else {part}
    if other := next((name for name in stated if name not in known), ""):
        raise UsageError(
            f"{path}: its name says {part}, and a column of it {other}: rename the file, or leave "
            "out the column"
        )
    if len({*stated}) < 2:
        yield part, split
        return
    train, val = (
        split.subset([i for i, own in enumerate(stated) if own == name], name)
        for name in ("train", "val")
    )
    train.notes = split.notes
    yield from (("train", train), ("val", val))
