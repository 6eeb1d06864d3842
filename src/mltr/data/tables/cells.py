"""What a cell of a table holds: escaped formulas, yes or no, or a list of labels."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

MARK = "'"
WINDOWS_END = "\r\n"
#: What spreadsheets take for a formula (OWASP, "CSV injection"), and such texts with our mark.
FORMULA = re.compile(f"{MARK}*[=+@\t\r-]")
NUMBER = re.compile(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?")
WHOLE = re.compile(r"([+-]?[0-9]{1,18})([.,]0*)?")  #: also 1.00, and 1,00 of a German Excel

#: How people and programs write the two answers, and that there is none.
PRESENT = frozenset(
    [
        "true",
        "t",
        "yes",
        "y",
        "x",
        "+",
        "✓",
        "✔",
        "☑",
        "wahr",
        "ja",
        "vrai",
        "oui",
        "si",
        "sí",
        "sì",
    ]
)
ABSENT = frozenset(["false", "f", "no", "n", "✗", "✘", "☐", "falsch", "nein", "faux", "non"])
EMPTY = frozenset(["", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "?", "-", "\u2013"])


def to_cells(values: Iterable[object]) -> list[str]:
    """Return the cells of a row: a text that could be a formula gets an apostrophe in front."""
    cells = ["" if value is None else str(value) for value in values]
    return [MARK + cell if FORMULA.match(cell) and not _is_number(cell) else cell for cell in cells]


class _Lines:
    """A file in which rows of a CSV end with a line feed alone."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> int:
        return self.file.write(f"{row.removesuffix(WINDOWS_END)}\n")


def row_writer(file: TextIO, delimiter: str = ",") -> Any:
    """Return a writer of CSV whose rows end with a line feed.

    Left to end them so itself, `csv` may not quote a cell with a carriage return, which would then
    be read back as two rows.
    """
    return csv.writer(_Lines(file), delimiter=delimiter, lineterminator=WINDOWS_END)


def from_cells(cells: Iterable[str]) -> list[str]:
    """Undo `to_cells`."""
    return [cell[1:] if cell.startswith(MARK) and FORMULA.match(cell) else cell for cell in cells]


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None


def to_whole(text: str) -> int | None:
    """Return the whole number that a text is, or None.

    >>> to_whole("1.00"), to_whole("-1"), to_whole("0,5")
    (1, -1, None)
    """
    found = WHOLE.fullmatch(text)
    return int(found[1]) if found else None


def to_answer(text: str) -> str | None:
    """Return "1", "0", "-1" or "" for what a cell of a class says; None if it says nothing known.

    >>> [to_answer(text) for text in ("TRUE", "no", "1.00", "-1", "NA", "maybe")]
    ['1', '0', '1', '-1', '', None]
    """
    word = text.strip().casefold()
    if word in EMPTY:
        return ""
    if word in PRESENT:
        return "1"
    if word in ABSENT:
        return "0"
    number = to_whole(word)
    return str(number) if number in (1, 0, -1) else None


# -- lists -------------------------------------------------------------------------------------

WORD = r"[^\s!-/:-@\[-`{-~]"  #: a letter, a digit, an emoji: anything but blanks and ASCII's signs
LARGEST_QUOTED = 1 << 16  #: characters of a cell in which quotes count; csv has a limit
QUOTED = re.compile(r'(^|[,;|#\n])\s*"(?:[^"]|"")*"')
#: Where a mark separates labels, and isn't part of one such as ``;)`` or ``C#``.
SEPARATING = {
    "\n": re.compile(r"\n"),
    ",": re.compile(","),
    ";": re.compile(rf'{WORD}["\s]*;\s*($|["\s]*{WORD})|;\s'),
    "|": re.compile(rf'{WORD}["\s]*\|\s*($|["\s]*{WORD})'),
    "#": re.compile(rf"(^|\S\s*)#\s*{WORD}"),
}
SEPARATORS = {
    "comma": ",",
    "semicolon": ";",
    "bar": "|",
    "hash": "#",
    "space": " ",
    "tab": "\t",
    "newline": "\n",
    "none": "",
}
#: Two texts of a Python list without a comma between them, as numpy prints an array.
RUN_TOGETHER = re.compile(r"""['"]\s+['"]""")
#: A list without quotes, as YAML, PostgreSQL and hands write it, or numbers as numpy prints them.
BARE_LIST = re.compile(r"""[\[{]([^\[\]{}()'":]*)[\]}]""")


def to_structure(value: Any) -> Any:
    """Return the list, tuple, set or dict that a cell is, or whose JSON or Python text it holds.

    None for any other cell. Raises `ValueError` for a text that begins as one and isn't.

    >>> to_structure("['cat', 'dog']"), to_structure("[cat, dog]"), to_structure("cat, dog")
    (['cat', 'dog'], ['cat', 'dog'], None)
    """
    if isinstance(value, list | tuple | set | dict):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("(") and text.endswith(")"):
        return _to_tuple(text)
    if not (text.startswith(("[", "{")) and text.endswith(("]", "}"))):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if bare := BARE_LIST.fullmatch(text):
        parts = [part.strip() for part in bare[1].split(",")]
        numbers = [to_whole(part) for part in bare[1].split()]
        if len(parts) > 1 or " " not in parts[0]:
            return [part for part in parts if part.casefold() not in EMPTY]
        if None not in numbers:
            return numbers
    if RUN_TOGETHER.search(text):  # which Python would join to one text
        raise ValueError("no comma between two texts")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("neither JSON nor a list of Python") from error


def _to_tuple(text: str) -> tuple[Any, ...] | None:
    """Return the tuple of Python that a text in parentheses is, if it is one."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, tuple) else None


def flatten(value: Any) -> list[str]:
    """Return the labels in a structure, however nested; raises `ValueError` for what is no label.

    Of a dict, these are its `choices`, as in Label Studio, or the keys that are true or 1.

    >>> flatten([["cat"], {"choices": ["dog"]}]), flatten({"cat": 1, "dog": 0})
    (['cat', 'dog'], ['cat'])
    """
    if isinstance(value, dict):
        if "choices" in value:
            return flatten(value["choices"])
        if all(answer in (0, 1, None) for answer in value.values()):
            return [str(name) for name, answer in value.items() if answer]
        raise ValueError("a dict needs `choices`, or 1 or 0 for each label")
    if isinstance(value, list | tuple | set):
        parts = sorted(value, key=str) if isinstance(value, set) else value
        return [label for part in parts if part is not None for label in flatten(part)]
    if isinstance(value, bytes):
        value = value.decode("utf-8")  # UnicodeDecodeError is a ValueError
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return [str(value).strip()] if str(value).strip() else []
    raise ValueError(f"a {type(value).__name__} is no label")


def is_multi_hot(value: Any) -> bool:
    """Whether a structure is a list of two or more answers: ``[1, 0, 1]``."""
    is_list = isinstance(value, list | tuple) and len(value) > 1
    return is_list and all(isinstance(x, int | float) and x in (0, 1) for x in value)


def split_cell(text: str, separator: str) -> list[str]:
    """Return the labels of a text, each once, in order; an empty separator doesn't split.

    A label in double quotes stays whole, as `mltr predict` writes it.

    >>> split_cell('sea; "AC; DC";; sea', ";")
    ['sea', 'AC; DC']
    """
    parts = text.split(separator) if separator else [text]
    if '"' in text and separator in set(",;|#") and len(text) < LARGEST_QUOTED:
        line = re.sub(r"[\r\n]+", " ", text)
        (parts,) = csv.reader([line], delimiter=separator, skipinitialspace=True)
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def find_separators(texts: Sequence[str]) -> list[str]:
    """Return what may separate labels in these texts, other than spaces.

    >>> find_separators(["sea|sky", ";) :|", "C#", '"AC, DC"'])
    ['|']
    """
    bare = [QUOTED.sub(r'\1"quoted"', text) for text in texts]
    return [mark for mark, use in SEPARATING.items() if any(map(use.search, bare))]


def is_punctuation(tag: str) -> bool:
    """Whether nothing in a label is a letter, a digit or an emoji, as in ``:|``."""
    return not re.search(WORD, tag)
