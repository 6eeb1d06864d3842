"""CSV cells that spreadsheets would evaluate: escaped on writing, unescaped on reading."""

from __future__ import annotations

import re
from collections.abc import Iterable

MARK = "'"
#: What spreadsheets take for a formula (OWASP, "CSV injection"), and such texts with our mark.
FORMULA = re.compile(f"{MARK}*[=+@\t\r-]")
NUMBER = re.compile(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?")


def to_cells(values: Iterable[object]) -> list[str]:
    """Return the cells of a row: a text that could be a formula gets an apostrophe in front."""
    cells = ["" if value is None else str(value) for value in values]
    return [MARK + cell if FORMULA.match(cell) and not _is_number(cell) else cell for cell in cells]


def from_cells(cells: Iterable[str]) -> list[str]:
    """Undo `to_cells`."""
    return [cell[1:] if cell.startswith(MARK) and FORMULA.match(cell) else cell for cell in cells]


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None
