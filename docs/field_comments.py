"""Documents a field by its `#:` comment, which stands behind it or in the lines before."""

from __future__ import annotations

from typing import Any

import griffe

MARK = "#:"


class FieldComments(griffe.Extension):
    """An extension of the reader that the page of Python is made with."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring is None and attr.lineno is not None and (words := _comment(attr)):
            attr.docstring = griffe.Docstring(words, parent=attr)


def _comment(attr: griffe.Attribute) -> str:
    lines = attr.lines_collection[attr.filepath]
    own = lines[attr.lineno - 1 : attr.endlineno]
    behind = [line.partition(MARK)[2].strip() for line in own if MARK in line]
    if behind:
        return " ".join(behind)
    first = attr.lineno - 1
    while first and lines[first - 1].lstrip().startswith(MARK):
        first -= 1
    before = lines[first : attr.lineno - 1]
    return " ".join(line.lstrip().removeprefix(MARK).strip() for line in before)
