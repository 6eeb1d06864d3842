"""Cells of Parquet files, which hold more than texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import (
    LABELS,
    RIGHT,
    ROWS,
    counts,
    describe,
    named,
    refusal,
    unknown,
)

from mltr.data import read_csv, read_parquet

PARQUET: dict[str, list[Any]] = {
    "lists": LABELS,
    "nested lists": [[own] for own in LABELS],
    "bytes": [", ".join(own).encode() if len(own) != 1 else own[0].encode() for own in LABELS],
    "dicts": [{"sea": int("sea" in own), "sky": int("sky" in own)} for own in LABELS],
    "choices": [{"choices": own} for own in LABELS],
    "texts": ["|".join(own) for own in LABELS],
}


@pytest.mark.parametrize("name", PARQUET)
def test_cells_of_parquet(name: str, photos: Path) -> None:
    paths = [path for path, _ in ROWS]
    pq.write_table(pa.table({"path": paths, "labels": PARQUET[name]}), photos / "labels.parquet")
    assert counts(describe(photos)) == RIGHT


def test_multi_hot_lists_need_names(photos: Path, capsys) -> None:
    cells = [[int("sea" in own), int("sky" in own)] for own in LABELS]
    table = pa.table({"path": [path for path, _ in ROWS], "labels": cells})
    pq.write_table(table, photos / "labels.parquet")
    assert "Set data.classes to a file that lists 2 names" in refusal(photos, capsys)
    (photos / "names.txt").write_text("sea\nsky\n")
    assert counts(describe(photos, "--data.classes=names.txt")) == RIGHT


@pytest.mark.parametrize("cell", ["{} {} {}", '"{},{},{}"', "[{} {} {}]", "{}; {}; {}"])
def test_answers_in_a_text_are_no_class_numbers(cell: str, photos: Path, capsys) -> None:
    (photos / "labels.csv").write_text(
        named(lambda own: cell.format("sea" in own, "sky" in own, 0) if own else "")
        .replace("True", "1")
        .replace("False", "0")
    )
    assert "lists of 3 answers, 1 or 0, but of which classes?" in refusal(photos, capsys)
    (photos / "names.txt").write_text("sea\nsky\nsun\n")
    report = describe(photos, "--data.classes=names.txt")
    assert (counts(report), unknown(report)) == (RIGHT | {"sun": 0}, 0)


def test_null_is_unknown(photos: Path) -> None:
    cells = [None if index == 5 else own for index, own in enumerate(LABELS)]
    table = pa.table({"path": [path for path, _ in ROWS], "labels": cells})
    pq.write_table(table, photos / "labels.parquet")
    report = describe(photos)
    assert (counts(report), unknown(report)) == ({"sea": 5, "sky": 4}, 2)
    assert report["understood"]["meanings"]["null"] == "unknown"
    assert read_parquet(photos / "labels.parquet").targets[5].tolist() == [-1, -1]


def test_columns_of_parquet_with_one_name(photos: Path, capsys) -> None:
    paths = pa.array([path for path, _ in ROWS])
    table = pa.Table.from_arrays(
        [paths, pa.array([0, 1] * 6), pa.array([1, 0] * 6)], ["p", "a", "a"]
    )
    pq.write_table(table, photos / "labels.parquet")
    assert "two columns in the header have the same name" in refusal(photos, capsys)


def test_rows_hold_their_labels(photos: Path) -> None:
    """Counts could be right by chance."""
    (photos / "labels.csv").write_text(named(lambda own: "|".join(own)))
    split = read_csv(photos / "labels.csv")
    for record, own in zip(split, LABELS, strict=True):
        assert [
            name for name, label in zip(split.classes, record.labels, strict=True) if label
        ] == own
