"""Texts that a spreadsheet would compute."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltr.data.tables.cells import from_cells, to_cells


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-1+2", "'-1+2"),
        ("\t=1", "'\t=1"),
        ("'=1", "''=1"),
        ("-1", "-1"),
        ("1e-05", "1e-05"),
        ("'tis", "'tis"),
        ("photos/=1.jpg", "photos/=1.jpg"),
        (-1, "-1"),
        (None, ""),
    ],
)
def test_formulas_are_marked_and_nothing_else(text: object, cell: str) -> None:
    assert to_cells([text]) == [cell]


@given(st.lists(st.text(st.sampled_from("'=+-@\t\rab1.,;\n\""), max_size=6), min_size=1))
def test_what_is_written_is_read(texts: list[str]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerow(to_cells(texts))
    stream.seek(0)
    assert from_cells(next(csv.reader(stream))) == texts
