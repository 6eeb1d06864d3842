"""Labels by name in the cells of a table: one, several with a separator, or a list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mltr.config.schema import DataConfig
from mltr.data.records import Labels, indices_of, normal
from mltr.data.tables.cells import (
    SEPARATORS,
    find_separators,
    flatten,
    is_multi_hot,
    is_punctuation,
    split_cell,
    to_structure,
    to_whole,
)
from mltr.data.tables.names import in_order, unify
from mltr.data.tables.sheet import Column, Sheet
from mltr.errors import MltrError, UsageError

#: Texts by which programs say that there is no value; in small letters, it could be a label.
NULLS = frozenset(["nan", "NaN", "NA", "N/A", "#N/A", "<NA>", "null", "NULL", "None"])
LARGEST = 1 << 31  #: rows x classes of a table
UNUSUAL = ("/", "+", "&")  #: separators, if what is between them occurs by itself
ANSWERS = re.compile("[01]")
MULTI_HOT = re.compile(r"[01](\s*[\s,;|]\s*[01])+")
RECURRING = 5  #: rows for each distinct cell from which the cells are taken for whole names
PLURALS = {"comma": "commas", "hash": "hashes", "newline": "line breaks", "none": "nothing"}


@dataclass(frozen=True)
class Labelled:
    """The labels of all rows of a table."""

    classes: tuple[str, ...]
    rows: Labels  #: [N, K]
    meanings: dict[str, str]  #: of cells
    details: tuple[str, ...] = ()
    is_one_a_row: bool = False  #: no row has two labels, so a photo may have several rows


def read_names(
    sheet: Sheet, columns: Sequence[Column], classes: Sequence[str] | None, config: DataConfig
) -> Labelled:
    """Read columns of names; a row has the labels of all of them.

    Raises `UsageError`, with the choices, where it is ambiguous what separates the labels, or which
    class is which place of a list such as ``[1, 0, 1]``.
    """
    cells = [_parse_values(sheet, column, config) for column in columns]
    if len(cells) == 1:
        cells = [_answers_in(cells[0])]
    hot = [value for own in cells for value in own if isinstance(value, tuple)]
    if hot:
        return _read_multi_hot(sheet, columns, cells, classes)
    texts: Counter[str] = Counter()
    for column, own in zip(columns, cells, strict=True):
        for value, times in zip(own, column.times, strict=True):
            if isinstance(value, str) and value:
                texts[value] += int(times)
    where = f"{sheet.path}, column {columns[0].name!r}"
    separator = _choose_separator(texts, classes, config, where)
    tags = [[split_cell(v, separator) if isinstance(v, str) else v for v in own] for own in cells]
    return _to_labelled(sheet, columns, tags, classes, config, separator if texts else "")


def _parse_values(sheet: Sheet, column: Column, config: DataConfig) -> list[Any]:
    """Return what each distinct value is: a text, a list of labels, None, or a tuple of answers."""
    parsed: list[Any] = []
    for code, value in enumerate(column.values):
        if value is None or (isinstance(value, str) and value.strip() in NULLS):
            parsed.append([] if config.missing == "negative" else None)
            continue
        try:
            if isinstance(value, bytes):
                value = value.decode("utf-8")
            structure = to_structure(value)
            if structure is None and isinstance(value, str):
                parsed.append(value.strip())
            elif is_multi_hot(structure):
                parsed.append(tuple(map(int, structure)))
            else:
                parsed.append(flatten(value if structure is None else structure))
        except ValueError as error:
            if isinstance(value, str) and config.separator != "auto":
                parsed.append(value.strip())
                continue
            row = int(np.flatnonzero(column.codes == code)[0])
            raise MltrError(
                f"{sheet.where(row)}, column {column.name!r}: {str(value)[:60]!r} is not a list of "
                f'labels ({error}); write ["sea", "sky"], or set data.separator if it is a text'
            ) from error
    hot = [value for value in parsed if isinstance(value, tuple)]
    lists = [value for value in parsed if isinstance(value, list) and value]
    if lists or len({len(value) for value in hot}) > 1:  # numbers of classes, then
        parsed = [[str(x) for x in v] if isinstance(v, tuple) else v for v in parsed]
    return parsed


def _answers_in(cells: list[Any]) -> list[Any]:
    """Return texts such as ``0 1 1`` as answers, where nothing else is in the column.

    They are as many in each, and some are the same, which no list of two classes would be.
    """
    texts = [value for value in cells if isinstance(value, str) and value]
    found = {text: ANSWERS.findall(text) for text in texts if MULTI_HOT.fullmatch(text)}
    repeats = any(len(set(answers)) < len(answers) for answers in found.values())
    is_hot = repeats and len({*map(len, found.values())}) == 1
    if not is_hot or len(found) < len({*texts}):
        return cells
    return [
        tuple(map(int, found[value])) if isinstance(value, str) and value else value
        for value in cells
    ]


def _read_multi_hot(
    sheet: Sheet,
    columns: Sequence[Column],
    cells: Sequence[Sequence[Any]],
    classes: Sequence[str] | None,
) -> Labelled:
    """Read lists of 1 and 0, whose places are the classes of `data.classes`."""
    where = f"{sheet.path}, column {columns[0].name!r}"
    width = max(len(value) for value in cells[0] if isinstance(value, tuple))
    if len(columns) > 1 or any(isinstance(value, str) and value for value in cells[0]):
        raise MltrError(f"{where}: lists of 1 and 0 beside other labels")
    if classes is None or len(classes) != width:
        given = "" if classes is None else f", not {len(classes)}"
        raise UsageError(
            f"{where}: lists of {width} answers, 1 or 0, but of which classes? Set data.classes to "
            f"a file that lists {width} names{given}"
        )
    by_value = np.full((len(cells[0]), width), -1, np.int8)
    for index, value in enumerate(cells[0]):
        if value is not None:
            by_value[index] = value or 0
    meanings = {"1": "present", "0": "absent"}
    meanings |= {"null": "unknown"} if None in cells[0] else {}
    return Labelled(tuple(classes), by_value[columns[0].codes], meanings)


def _choose_separator(
    texts: Counter[str], classes: Sequence[str] | None, config: DataConfig, where: str
) -> str:
    """Return what separates the labels of a cell; an empty text if each cell is one label."""
    if config.separator != "auto":
        return SEPARATORS.get(config.separator, config.separator)
    found = find_separators(list(texts))
    if classes:
        known = {normal(name) for name in classes}
        for mark in ("", *found, " "):
            if {normal(tag) for text in texts for tag in split_cell(text, mark)} <= known:
                return mark
    if len(found) > 1:
        raise UsageError(
            f"{where}: what separates the labels? Set data.separator to "
            f"{' or '.join(map(_word_for, found))}, or to none if each cell is one label"
        )
    if found:
        odd = [tag for text in texts for tag in split_cell(text, found[0]) if is_punctuation(tag)]
        if odd:
            raise UsageError(
                f"{where}: is {odd[0]!r} a label? Set data.separator to {_word_for(found[0])} if "
                "so, or else to what separates the labels, such as space, or none"
            )
        return found[0]
    for mark in UNUSUAL:
        marked = [text for text in texts if mark in text.strip(mark)]
        joined = next((text for text in marked if set(split_cell(text, mark)) <= set(texts)), "")
        if joined:
            raise UsageError(
                f"{where}: is {joined[:60]!r} one label, or several? Set data.separator to none or "
                f"to {mark}"
            )
    parts = {part for text in texts for part in text.split()}
    spaced = next((text for text in texts if " " in text), "")
    if not spaced:
        return ""
    if parts <= set(texts) or all(to_whole(part) is not None for part in parts):
        return " "
    if len(parts) > len(texts) and texts.total() >= RECURRING * len(texts):
        return ""  # lists would form more different cells, each more rarely
    raise UsageError(
        f"{where}: is {spaced[:60]!r} one label, or several? Set data.separator to none or to space"
    )


def _word_for(separator: str) -> str:
    return next((word for word, mark in SEPARATORS.items() if mark == separator), separator)


def _to_labelled(
    sheet: Sheet,
    columns: Sequence[Column],
    tags: Sequence[Sequence[list[str] | None]],
    classes: Sequence[str] | None,
    config: DataConfig,
    separator: str,
) -> Labelled:
    times: Counter[str] = Counter()
    for column, own in zip(columns, tags, strict=True):
        for value, number in zip(own, column.times, strict=True):
            for name in value or ():
                times[name] += int(number)
    called = unify(times, config.merge_case, str(sheet.path), classes or ())
    details: tuple[str, ...] = ()
    if separator:
        word = _word_for(separator)
        details = (f"labels separated by {PLURALS.get(word, f'{word}s')}",)
    if classes and times and not set(called.values()) & set(classes):
        called, numbered = _numbers_to_names(called, classes, config, str(sheet.path))
        details += (numbered,) * bool(numbered)
    listed = tuple(classes or in_order(called.values()))
    if len(listed) * len(sheet) > LARGEST:
        raise MltrError(
            f"{sheet.path}: {len(listed):,} different labels in column {columns[0].name!r}; set "
            "data.label_column if that isn't the column of labels, or data.separator"
        )
    rows = np.zeros((len(sheet), len(listed)), np.int8)
    unknown = np.ones(len(sheet), bool)
    for column, own in zip(columns, tags, strict=True):
        indices = [_indices(sheet, column, code, v, called, listed) for code, v in enumerate(own)]
        lengths = np.array([len(found) for found in indices])[column.codes]
        flat = [index for code in column.codes for index in indices[code]]
        rows[np.repeat(np.arange(len(sheet)), lengths), flat] = 1
        unknown &= np.array([value is None for value in own])[column.codes]
    rows[unknown] = -1
    one_a_row = len(columns) == 1 and all(len(value or ()) < 2 for value in tags[0])
    return Labelled(listed, rows, _describe(tags), details, one_a_row)


def _indices(
    sheet: Sheet,
    column: Column,
    code: int,
    names: Iterable[str] | None,
    called: dict[str, str],
    classes: Sequence[str],
) -> list[int]:
    """Return the classes of a distinct value; an unknown one is named with its first row."""
    positions = dict.fromkeys(called[name] for name in names or ())
    if not positions:
        return []
    row = int(np.argmax(column.codes == code)) if set(positions) - set(classes) else 0
    return indices_of(positions, classes, sheet.where(row))


def _numbers_to_names(
    called: dict[str, str], classes: Sequence[str], config: DataConfig, where: str
) -> tuple[dict[str, str], str]:
    """Return names for labels that are numbers of the classes listed, and from where they count.

    Raises `UsageError` for numbers that could count from 0 and from 1.
    """
    numbers = {name: to_whole(name) for name in called}
    whole = [number for number in numbers.values() if number is not None]
    if len(whole) < len(numbers) or min(whole) < 0 or max(whole) > len(classes):
        return called, ""
    if config.count_from != "auto":
        first = int(config.count_from)
    else:
        first = int(max(whole) == len(classes))
        if min(whole) > 0 and not first:
            raise UsageError(
                f"{where}: its labels are numbers of data.classes, from {min(whole)} to "
                f"{max(whole)}: is {classes[0]!r} 0 or 1? Set data.count_from"
            )
    if min(whole) < first or max(whole) - first >= len(classes):
        return called, ""
    names = {
        name: classes[number - first] for name, number in numbers.items() if number is not None
    }
    return names, f"numbers of data.classes, which count from {first}"


def _describe(tags: Sequence[Sequence[list[str] | None]]) -> dict[str, str]:
    meanings = {"named": "present", "not named": "absent"}
    if any(value == [] for own in tags for value in own):
        meanings["empty"] = "no label"
    if any(value is None for own in tags for value in own):
        meanings["null"] = "unknown"
    return meanings
