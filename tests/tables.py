"""Tables of a few photos, as people write them, and what `mltr data` says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mltr.cli import main

COUNT = 12
#: The labels of each photo: sea in 6, sky in 4, both in 2.
LABELS = [["sea"] * (i % 2) + ["sky"] * (i % 3 == 0) for i in range(COUNT)]
RIGHT = {"sea": 6, "sky": 4}

Cell = Callable[[list[str]], str]


def describe(folder: Path, *options: str) -> dict[str, Any]:
    """Return what `mltr data` says of a source, without a look at the photos."""
    out = folder.parent / "report.json"
    assert main(["data", str(folder), "--quick", "--json", str(out), *options]) == 0
    (report,) = json.loads(out.read_text("utf-8")).values()
    return report


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Return the line in which `mltr data` refuses a source."""
    capsys.readouterr()
    assert main(["data", str(folder), "--quick", *options]) in (1, 2)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--debug" not in message
    return message


def counts(report: dict[str, Any]) -> dict[str, int]:
    return {name: sum(parts.values()) for name, parts in report["labels"].items()}


def unknown(report: dict[str, Any]) -> int:
    return sum(split["unknown_cells"] for split in report["splits"].values())


def answers(header: str, yes: str, no: str, mark: str = ",") -> str:
    """A column for each class."""
    cells = ((yes if name in own else no for name in RIGHT) for own in LABELS)
    rows = [mark.join([f"p{index}.jpg", *own]) for index, own in enumerate(cells)]
    return "\n".join([header, *rows, ""])


def named(cell: Cell, mark: str = ",", header: str = "path,labels") -> str:
    """One column of labels."""
    rows = [f"p{index}.jpg{mark}{cell(own)}" for index, own in enumerate(LABELS)]
    return "\n".join([header, *rows, ""])


HEADER = "path,sea,sky"
ROWS = [(f"p{index}.jpg", own) for index, own in enumerate(LABELS)]
ONE_HOT = [(int("sea" in own), int("sky" in own)) for own in LABELS]


def write_rows(folder: Path, header: str, rows: list[str], name: str = "labels.csv") -> None:
    (folder / name).write_text("\n".join([header, *rows, ""]), encoding="utf-8")
